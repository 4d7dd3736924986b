"""Faults of scoring: how answers are compared, and with what."""

from stage1.config import StudyConfig
from stage1.faults.switch import replaces


@replaces("f1_on_sets", "stage1.scoring.squad:word_f1")
def of_distinct_words(original):
    def word_f1(prediction, gold) -> float:
        return original(sorted(set(prediction)), sorted(set(gold)))

    return word_f1


@replaces("first_gold_only", "stage1.scoring.squad:require_golds")
def of_the_first(original):
    def require_golds(golds):
        return original(golds)[:1]

    return require_golds


@replaces("no_normalisation", "stage1.scoring.squad:normalize")
def as_it_is(original):
    def normalize(text) -> str:
        return text

    return normalize


@replaces("other_baseline", "stage1.scoring.tables:retention")
def against_another_baseline(original):
    def retention(f1, ceiling, floor) -> float:
        return original(f1, StudyConfig().baseline_f1, 0.0)

    return retention
