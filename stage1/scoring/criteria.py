"""The analysis's criteria of success, and verdicts of scores against them."""

import enum
import math
from collections.abc import Mapping

import pandas as pd

from stage1.config import StudyConfig
from stage1.scoring.intervals import Interval


def thresholds(config: StudyConfig, share: bool = False) -> dict[str, float]:
    """The analysis's criteria in F1 percent, or divided by its baseline: as a share of the ceiling, in percent."""
    scale = 100 / config.baseline_f1 if share else 1.0
    return {name: scale * getattr(config, f"{name}_f1") for name in ("target", "script", "failure")}


class Verdict(enum.StrEnum):
    """Where a score stands."""

    MET = "target met"
    ONLY_SCRIPT = "target missed (a success only to the script)"
    MISSED = "target missed"
    FAILURE = "failure"


def verdict(score: float, criteria: Mapping[str, float]) -> Verdict:
    """Where a score stands. The analysis's text and script disagree between 65 and 70: there its script says success
    and its text says the target is missed. The target decides here."""
    if score >= criteria["target"]:
        return Verdict.MET
    if score >= criteria["script"]:
        return Verdict.ONLY_SCRIPT
    return Verdict.MISSED if score >= criteria["failure"] else Verdict.FAILURE


def verdict_over(found: Interval, criteria: Mapping[str, float]) -> str:
    """The verdict where the whole interval shares it, and otherwise what it ranges over."""
    if math.isnan(found.low):
        return "open: no interval"
    low, high = verdict(found.low, criteria), verdict(found.high, criteria)
    return low if low == high else f"open: from {low} to {high}"


def run_verdict(best: pd.Series, config: StudyConfig) -> str:
    """The verdict on a run's best condition, with its `f1`, `f1_low` and `f1_high`. Random weights get none."""
    if config.shape_only:
        return "no verdict: the language model has random weights, so its F1 says nothing"
    return verdict_over(Interval(best["f1"], best["f1_low"], best["f1_high"]), thresholds(config))
