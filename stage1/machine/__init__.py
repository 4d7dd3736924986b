"""GPUs of one machine, and the processes that train an adapter together."""
