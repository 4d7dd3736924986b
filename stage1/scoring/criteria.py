"""The analysis's criteria of success, and verdicts of scores against them."""

import enum
import math
from collections.abc import Mapping

import pandas as pd

from stage1.config import StudyConfig
from stage1.scoring.intervals import Interval


def thresholds(config: StudyConfig, share: bool = False) -> dict[str, float]:
    """Return the criteria in F1 percent, or as percent of the analysis's baseline if `share`."""
    scale = 100 / config.baseline_f1 if share else 1.0
    return {name: scale * getattr(config, f"{name}_f1") for name in ("target", "script", "failure")}


class Verdict(enum.StrEnum):
    MET = "target met"
    ONLY_SCRIPT = "target missed (a success only to the script)"
    MISSED = "target missed"
    FAILURE = "failure"


def verdict(score: float, criteria: Mapping[str, float]) -> Verdict:
    """Return the verdict on a score; the target decides.

    Between 65 and 70 the analysis contradicts itself: its script reports success, its text says
    that the target is missed.
    """
    if score >= criteria["target"]:
        return Verdict.MET
    if score >= criteria["script"]:
        return Verdict.ONLY_SCRIPT
    return Verdict.MISSED if score >= criteria["failure"] else Verdict.FAILURE


def verdict_over(interval: Interval, criteria: Mapping[str, float]) -> str:
    """Return the verdict that holds for the whole interval, or else the range of verdicts."""
    if math.isnan(interval.low):
        return "open: no interval"
    low, high = verdict(interval.low, criteria), verdict(interval.high, criteria)
    return low if low == high else f"open: from {low} to {high}"


def run_verdict(best: pd.Series, config: StudyConfig) -> str:
    """Return the verdict on a run's best condition (`f1`, `f1_low`, `f1_high`).

    A language model with random weights gets no verdict.
    """
    if config.shape_only:
        return "no verdict: the language model has random weights, so its F1 says nothing"
    return verdict_over(Interval(best["f1"], best["f1_low"], best["f1_high"]), thresholds(config))
