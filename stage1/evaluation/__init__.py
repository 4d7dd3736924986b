"""What the frozen model answers under each condition, and how near the rebuilt embeddings are."""

from stage1.evaluation.conditions import evaluate, evaluate_floors, untrained_conditions
from stage1.evaluation.reconstruction import reconstruction

__all__ = ["evaluate", "evaluate_floors", "reconstruction", "untrained_conditions"]
