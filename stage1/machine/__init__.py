"""GPUs of one machine and the processes that share a training."""
