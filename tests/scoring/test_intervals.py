"""Bootstrap intervals over groups of questions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.scoring.intervals import Interval, mean_interval

FIVE = [0.0, 10.0, 50.0, 100.0, 30.0]


def numbered(count: int, size: int = 1) -> list[str]:
    """Return the groups of `count` scores, `size` in each."""
    return [f"g{i // size}" for i in range(count)]


def width(interval: Interval) -> float:
    return interval.high - interval.low


@given(
    pairs=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.floats(0, 100)), min_size=2, max_size=30
    ).filter(lambda pairs: len({group for group, _ in pairs}) > 1)
)
def test_an_interval_is_ordered_and_within_the_scores(pairs):
    groups, scores = zip(*pairs, strict=True)
    interval = mean_interval(scores, groups, resamples=200)
    assert interval.mean == pytest.approx(np.mean(scores))
    rounding = 1e-9
    assert min(scores) - rounding <= interval.low <= interval.high + rounding
    assert interval.high <= max(scores) + rounding


def test_an_interval_holds_the_mean():
    scores = np.random.default_rng(0).uniform(0, 100, 400).tolist()
    interval = mean_interval(scores, numbered(400, 10))
    assert interval.low < interval.mean < interval.high


def test_an_interval_is_the_same_every_time_and_depends_on_the_seed():
    groups = list("abcde")
    assert mean_interval(FIVE, groups) == mean_interval(FIVE, groups)
    first, second = (mean_interval(FIVE, groups, seed=seed, resamples=50) for seed in (1, 2))
    assert first != second


def test_an_interval_does_not_depend_on_the_order_of_the_examples():
    groups = list("ababc")
    assert mean_interval(FIVE, groups) == mean_interval(FIVE[::-1], groups[::-1])


def test_a_single_group_has_no_interval():
    interval = mean_interval([0.0, 100.0], ["a", "a"])
    assert interval.mean == 50 and math.isnan(interval.low) and math.isnan(interval.high)


def test_equal_scores_have_an_interval_of_no_width():
    interval = mean_interval([70.0] * 6, list("aabbbc"))
    assert interval == Interval(70.0, pytest.approx(70), pytest.approx(70))


def test_repeating_the_examples_of_an_article_does_not_narrow_the_interval():
    scores = np.random.default_rng(0).integers(0, 101, 20).astype(float)
    once = mean_interval(scores.tolist(), numbered(20))
    repeated = np.repeat(scores, 10).tolist()
    by_article, by_question = (mean_interval(repeated, numbered(200, size)) for size in (10, 1))
    assert width(by_article) > 2 * width(by_question)
    assert width(by_article) == pytest.approx(width(once), rel=0.1)


def test_a_higher_level_gives_a_wider_interval():
    scores, groups = [float(i % 7) for i in range(60)], numbered(60, 3)
    narrow, wide = (mean_interval(scores, groups, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_95_percent_intervals_cover_the_true_mean_about_that_often():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(150):
        scores = 50 + np.repeat(rng.normal(0, 10, 40), 4) + rng.normal(0, 5, 160)
        interval = mean_interval(scores.tolist(), numbered(160, 4), resamples=400)
        covered += interval.low <= 50 <= interval.high
    assert 0.87 * 150 <= covered <= 0.99 * 150


@pytest.mark.parametrize("scores, groups", [([1.0], ["a", "b"]), ([1.0, 2.0], ["a"]), ([], [])])
def test_scores_and_groups_must_match(scores, groups):
    with pytest.raises(ValueError, match="scores and"):
        mean_interval(scores, groups)


def test_an_interval_prints_with_one_decimal():
    assert str(Interval(81.25, 79.0, 83.456)) == "81.2 [79.0, 83.5]"
