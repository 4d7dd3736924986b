"""Scores of answers, their intervals and differences, and criteria of success. Needs no torch."""

from stage1.scoring.comparison import Finding, contrast, difference, interval, leaders, pairs
from stage1.scoring.criteria import (
    Verdict,
    joint_verdict,
    retention_thresholds,
    run_verdict,
    thresholds,
    verdict,
    verdict_over,
)
from stage1.scoring.intervals import Interval, mean_interval
from stage1.scoring.squad import exact_match, f1
from stage1.scoring.tables import condition_table, over_seeds, retention, summary

__all__ = [
    "Finding", "Interval", "Verdict", "condition_table", "contrast", "difference", "exact_match",
    "f1", "interval", "joint_verdict", "leaders", "mean_interval", "over_seeds", "pairs",
    "retention",
    "retention_thresholds", "run_verdict", "summary", "thresholds", "verdict", "verdict_over",
]  # fmt: skip
