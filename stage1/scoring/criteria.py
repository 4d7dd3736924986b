"""The analysis's criteria of success, and verdicts of scores against them."""

import enum
import math
from collections.abc import Mapping

import pandas as pd

from stage1.config import StudyConfig
from stage1.scoring.intervals import Interval
from stage1.scoring.tables import retention

LEAST_GAIN = 5.0
"""F1 points that the passage must be worth: with less between floor and ceiling, a run
orders nothing."""


def thresholds(config: StudyConfig) -> dict[str, float]:
    """Return the criteria in F1 percent, as the analysis gives them."""
    return {name: getattr(config, f"{name}_f1") for name in ("target", "script", "failure")}


def retention_thresholds(config: StudyConfig, floor: float) -> dict[str, float]:
    """Return the criteria as retention in percent, of the analysis's baseline.

    Retention has the floor subtracted, so the criteria have too. The analysis measured no floor for
    its baseline: `floor` is that of this run, in F1 percent. They are nan if it reaches the
    baseline.
    """
    points = thresholds(config)
    return {name: retention(f1, config.baseline_f1, floor) for name, f1 in points.items()}


class Verdict(enum.StrEnum):
    MET = "target met"
    ONLY_SCRIPT = "target missed (passes the script)"
    MISSED = "target missed"
    FAILURE = "failure"


OPEN = "target undecided"


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
    """Return what holds for the whole interval: of the target, and whether it may be a failure."""
    if math.isnan(interval.low) or math.isnan(criteria["target"]):
        return f"{OPEN}: no interval to compare"
    low, high = verdict(interval.low, criteria), verdict(interval.high, criteria)
    if low == high:
        return low
    of_target = OPEN if high is Verdict.MET else Verdict.MISSED
    return f"{of_target}, failure possible" if low is Verdict.FAILURE else of_target


def joint_verdict(
    f1: Interval, kept: Interval, points: Mapping[str, float], shares: Mapping[str, float]
) -> str:
    """Return one verdict on F1 in points and on retention in percent.

    Where the two differ, it says which verdict holds at which target.
    """
    of_points, of_share = verdict_over(f1, points), verdict_over(kept, shares)
    if of_points == of_share:
        return of_points
    return (
        f"at {points['target']:g} points: {of_points}; "
        f"at {shares['target']:.1f} % retention: {of_share}"
    )


def run_verdict(best: pd.Series, config: StudyConfig) -> str:
    """Return the verdict on a run's best condition (`f1`, `f1_low`, `f1_high`).

    A language model with random weights gets no verdict.
    """
    if config.shape_only:
        return "no verdict: the language model has random weights, so its F1 says nothing"
    return verdict_over(Interval(best["f1"], best["f1_low"], best["f1_high"]), thresholds(config))
