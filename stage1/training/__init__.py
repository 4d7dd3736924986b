"""Training one adapter: batches, the loop, balancing of terms, gradient readings, memory."""

from stage1.training.loop import Progress, curve_table, train
from stage1.training.microbatches import TrainingError

__all__ = ["Progress", "TrainingError", "curve_table", "train"]
