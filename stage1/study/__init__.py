"""A study is prepared once; its adapters are trained, tested, recorded, swept and priced here."""

from stage1.study.preparation import Study, new_adapter, objective_context, prepare
from stage1.study.rates import learning_rate
from stage1.study.references import ce_references, reconstruction_references
from stage1.study.runs import (
    obtain,
    run,
    selection_scores,
    test_adapter,
    test_untrained,
    train_adapter,
    write_adapter,
)

__all__ = [
    "Study", "ce_references", "learning_rate", "new_adapter", "objective_context", "obtain",
    "prepare", "reconstruction_references", "run", "selection_scores", "test_adapter",
    "test_untrained", "train_adapter", "write_adapter",
]  # fmt: skip
