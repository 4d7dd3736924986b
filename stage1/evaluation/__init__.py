"""The frozen model's answers under each condition, and the error of reconstructed embeddings."""

from stage1.evaluation.conditions import evaluate, evaluate_floors, untrained_conditions
from stage1.evaluation.reconstruction import reconstruction

__all__ = ["evaluate", "evaluate_floors", "reconstruction", "untrained_conditions"]
