"""The analysis's criteria, and verdicts of scores and intervals against them."""

import math

import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stage1.config import StudyConfig
from stage1.scoring.criteria import (
    joint_verdict,
    retention_thresholds,
    run_verdict,
    thresholds,
    verdict,
    verdict_over,
)
from stage1.scoring.intervals import Interval
from stage1.scoring.tables import retention

ONLY_SCRIPT = "target missed (passes the script)"
CONFIG = StudyConfig()


def test_thresholds_are_the_analysis_own():
    assert thresholds(CONFIG) == {"target": 70, "script": 65, "failure": 50}


def test_the_floor_is_subtracted_from_thresholds_as_it_is_from_retention():
    shares = {"target": 85.366, "script": 79.268, "failure": 60.976}  # 70 / 82, 65 / 82, 50 / 82
    assert retention_thresholds(CONFIG, floor=0.0) == pytest.approx(shares, abs=1e-3)
    shares = {"target": 83.333, "script": 76.389, "failure": 55.556}  # 60, 55, 40 of 72
    assert retention_thresholds(CONFIG, floor=10.0) == pytest.approx(shares, abs=1e-3)


@given(floor=st.floats(0, 49), score=st.floats(0, 100))
def test_a_run_with_the_baseline_of_the_analysis_has_one_verdict(floor, score):
    """Where the ceiling is the analysis's baseline, points and retention say the same."""
    kept = retention(score, CONFIG.baseline_f1, floor)
    assume(all(abs(score - threshold) > 1e-6 for threshold in thresholds(CONFIG).values()))
    shares = retention_thresholds(CONFIG, floor)
    assert verdict(kept, shares) == verdict(score, thresholds(CONFIG))


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
        ((71.0, 69.0, 73.0), "target undecided"),
        ((67.0, 65.0, 69.9), ONLY_SCRIPT),
        ((57.0, 40.0, 80.0), "target undecided, failure possible"),
        ((51.0, 49.0, 53.0), "target missed, failure possible"),
        ((66.0, 60.0, 69.0), "target missed"),
        ((30.0, 20.0, 40.0), "failure"),
        ((80.0, math.nan, math.nan), "target undecided: no interval to compare"),
    ],
)
def test_a_verdict_over_an_interval_says_what_holds_for_all_of_it(interval, expected):
    assert verdict_over(Interval(*interval), thresholds(CONFIG)) == expected


SHARES = {"target": 80.0, "script": 75.0, "failure": 60.0}


@pytest.mark.parametrize(
    "f1, kept, expected",
    [
        ((72.0, 70.0, 74.0), (90.0, 88.0, 92.0), "target met"),
        ((60.0, 55.0, 62.0), (70.0, 65.0, 72.0), "target missed"),
        (
            (72.0, 70.0, 74.0),
            (73.0, 71.0, 74.9),
            "at 70 points: target met; at 80.0 % retention: target missed",
        ),
        (
            (70.0, 68.0, 72.0),
            (55.0, 53.0, 57.0),
            "at 70 points: target undecided; at 80.0 % retention: failure",
        ),
    ],
)
def test_a_joint_verdict_says_at_which_target_it_holds_where_they_differ(f1, kept, expected):
    result = joint_verdict(Interval(*f1), Interval(*kept), thresholds(CONFIG), SHARES)
    assert result == expected


def test_a_floor_at_the_baseline_leaves_retention_without_a_verdict():
    shares = retention_thresholds(CONFIG, floor=82.0)
    expected = "target undecided: no interval to compare"
    assert verdict_over(Interval(90.0, 80.0, 95.0), shares) == expected


def test_random_weights_get_no_verdict():
    best = pd.Series({"f1": 72.0, "f1_low": 70.0, "f1_high": 74.0})
    assert run_verdict(best, CONFIG) == "target met"
    assert run_verdict(best, CONFIG.replace(shape_only=True)).startswith("no verdict")
