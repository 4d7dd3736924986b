"""The analysis's criteria, and verdicts of scores and intervals against them."""

import math

import pandas as pd
import pytest

from stage1.config import StudyConfig
from stage1.scoring.criteria import run_verdict, thresholds, verdict, verdict_over
from stage1.scoring.intervals import Interval

ONLY_SCRIPT = "target missed (a success only to the script)"
CONFIG = StudyConfig()


def test_thresholds_are_the_analysis_own_or_shares_of_its_baseline():
    assert thresholds(CONFIG) == {"target": 70, "script": 65, "failure": 50}
    shares = {"target": 85.366, "script": 79.268, "failure": 60.976}  # 70 / 82, 65 / 82, 50 / 82
    assert thresholds(CONFIG, share=True) == pytest.approx(shares, abs=1e-3)
    other = StudyConfig(baseline_f1=50.0, target_f1=40.0, script_f1=30.0, failure_f1=20.0)
    shares = {"target": 80, "script": 60, "failure": 40}
    assert thresholds(other, share=True) == pytest.approx(shares)


@pytest.mark.parametrize(
    "score, expected",
    [
        (100.0, "target met"), (70.0, "target met"), (69.999, ONLY_SCRIPT), (65.0, ONLY_SCRIPT),
        (64.999, "target missed"), (50.0, "target missed"), (49.999, "failure"), (0.0, "failure"),
    ],
)  # fmt: skip
def test_a_score_equal_to_a_threshold_meets_it(score, expected):
    assert verdict(score, thresholds(CONFIG)) == expected


@pytest.mark.parametrize(
    "interval, expected",
    [
        ((72.0, 70.0, 74.0), "target met"),
        ((71.0, 69.0, 73.0), f"open: from {ONLY_SCRIPT} to target met"),
        ((67.0, 65.0, 69.9), ONLY_SCRIPT),
        ((57.0, 40.0, 80.0), "open: from failure to target met"),
        ((51.0, 49.0, 53.0), "open: from failure to target missed"),
        ((30.0, 20.0, 40.0), "failure"),
        ((80.0, math.nan, math.nan), "open: no interval"),
    ],
)
def test_a_verdict_is_open_unless_it_holds_for_the_whole_interval(interval, expected):
    assert verdict_over(Interval(*interval), thresholds(CONFIG)) == expected


def test_random_weights_get_no_verdict():
    best = pd.Series({"f1": 72.0, "f1_low": 70.0, "f1_high": 74.0})
    assert run_verdict(best, CONFIG) == "target met"
    assert run_verdict(best, CONFIG.replace(shape_only=True)).startswith("no verdict")
