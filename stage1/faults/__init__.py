"""Every fault of the gallery as a switch: one small replacement of a public function each."""

from stage1.faults import compression, corpus, generation, scores, training
from stage1.faults.switch import FaultError, carries_faults, current, switched_on

__all__ = [
    "FaultError", "carries_faults", "compression", "corpus", "current", "generation", "scores",
    "switched_on", "training",
]  # fmt: skip
