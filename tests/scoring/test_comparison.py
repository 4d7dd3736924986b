"""Comparisons: intervals over articles and seeds against plain resampling, what p values may claim, and verdicts."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage1.scoring.metrics import Interval, mean_interval

from stage1.config import StudyConfig
from stage1.scoring import comparison
from stage1.scoring.comparison import (
    difference,
    finding,
    holm,
    interval,
    pairs,
    thresholds,
    verdict,
    verdict_over,
)

SMALLEST = 1 / (comparison.RESAMPLES + 1)


def table(scores: np.ndarray) -> pd.DataFrame:
    """Scores [articles, questions, seeds] as rows; nan where an article has no such question."""
    rows = [
        {
            "id": f"{article}-{question}",
            "title": f"article {article}",
            "seed": seed,
            "f1": float(score),
        }
        for (article, question, seed), score in np.ndenumerate(scores)
        if not np.isnan(score)
    ]
    return pd.DataFrame(rows)


def drawn(
    seed=0, articles=30, questions=4, seeds=3, between=10.0, of_seeds=0.0, noise=5.0
) -> np.ndarray:
    """Scores around 50 with standard deviations of their own for articles, seeds, and what is left."""
    rng = np.random.default_rng(seed)
    scores = 50 + rng.normal(0, between, (articles, 1, 1)) + rng.normal(0, of_seeds, (1, 1, seeds))
    return scores + rng.normal(0, noise, (articles, questions, seeds))


def centred(noise: float, seed=0) -> np.ndarray:
    """Noise whose mean over every seed is zero, up to rounding."""
    values = np.random.default_rng(seed).normal(0, noise, (30, 4, 3))
    return values - values.mean((0, 1))


def width(found: Interval) -> float:
    return found.high - found.low


def uneven(scores: np.ndarray) -> np.ndarray:
    """One question in the first article, two in the next, and over again from as many as there are."""
    articles, questions, _ = scores.shape
    there = np.arange(questions) <= (np.arange(articles) % questions)[:, None]
    return np.where(there[:, :, None], scores, np.nan)


def plain_resampling(scores: np.ndarray, resamples=3_000) -> tuple[float, float]:
    """The interval by drawing articles and seeds, each with replacement, one resample at a time."""
    rng, (articles, _, seeds) = np.random.default_rng(99), scores.shape
    means = []
    for _ in range(resamples):
        chosen = scores[rng.integers(articles, size=articles)][
            :, :, rng.integers(seeds, size=seeds)
        ]
        means.append(np.nanmean(chosen))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize("sizes", [np.array, uneven], ids=["even", "uneven"])
@pytest.mark.parametrize("of_seeds", [0.0, 4.0])
def test_an_interval_is_that_of_drawing_articles_and_seeds_with_replacement(of_seeds, sizes):
    scores = sizes(drawn(seeds=5, of_seeds=of_seeds))
    found, (low, high) = interval(table(scores)), plain_resampling(scores)
    assert found.mean == pytest.approx(np.nanmean(scores))
    assert found.low == pytest.approx(low, abs=0.07 * (high - low))
    assert found.high == pytest.approx(high, abs=0.07 * (high - low))


def test_seeds_that_differ_widen_the_interval_and_equal_ones_do_not():
    """The means are the same; the second table has seeds 15 points apart."""
    scores = np.repeat(drawn(seeds=1), 3, axis=2)
    alike, apart = interval(table(scores)), interval(table(scores + np.array([-15.0, 0.0, 15.0])))
    alone = interval(table(scores[:, :, :1]))
    assert alike.mean == pytest.approx(apart.mean) and alike.mean == pytest.approx(alone.mean)
    assert width(alike) == pytest.approx(width(alone), rel=0.1)
    assert width(apart) > 2 * width(alike)


def test_of_a_single_seed_articles_alone_are_drawn_whatever_their_size():
    scores = table(uneven(drawn(articles=25, questions=8, seeds=1)))
    found, expected = (
        interval(scores),
        mean_interval(scores["f1"].tolist(), scores["title"].tolist(), resamples=5_000),
    )
    assert found.mean == pytest.approx(expected.mean)
    assert found.low == pytest.approx(expected.low, abs=0.07 * width(expected))
    assert found.high == pytest.approx(expected.high, abs=0.07 * width(expected))


def test_questions_weigh_alike_and_not_articles():
    scores = table(np.repeat([[[100.0]], [[0.0]]], 9, axis=1)).iloc[:10]  # nine questions, and one
    for seeds in ([3], [3, 8]):
        assert interval(
            pd.concat([scores.assign(seed=seed) for seed in seeds])
        ).mean == pytest.approx(90)


def test_intervals_hold_the_true_mean_about_as_often_as_they_say(monkeypatch):
    """Five seeds that differ by as much as the articles' mean does. Articles alone would be far too sure."""
    monkeypatch.setattr(comparison, "RESAMPLES", 300)
    held = naive = 0
    for trial in range(100):
        scores = drawn(trial, articles=20, questions=2, seeds=5, between=10.0, of_seeds=5.0)
        _, low, high = interval(table(scores))
        held += low <= 50 <= high
        of_articles = scores.mean((1, 2))
        low, high = np.percentile(
            np.random.default_rng(trial).choice(of_articles, (300, 20)).mean(1), [2.5, 97.5]
        )
        naive += low <= 50 <= high
    assert 87 <= held <= 99
    assert naive < held - 5


def test_a_single_article_says_nothing():
    one = table(drawn(articles=1))
    found = interval(one)
    assert (
        found.mean == pytest.approx(one["f1"].mean())
        and math.isnan(found.low)
        and math.isnan(found.high)
    )
    mean, *others = difference(one, table(drawn(1, articles=1)))
    assert math.isfinite(mean) and all(map(math.isnan, others))


def test_another_metric_is_read_by_its_name():
    scores = table(drawn()).assign(em=0.0)
    assert interval(scores, "em") == Interval(0, 0, 0) != interval(scores)


def test_an_interval_is_the_same_every_time_and_in_any_order():
    scores = table(drawn(seeds=4, of_seeds=3.0))
    found = interval(scores)
    assert interval(scores) == found
    assert interval(scores.sample(frac=1.0, random_state=1)) == pytest.approx(found, rel=1e-12)


# ---------------------------------------------------------------- differences


def test_a_table_does_not_differ_from_itself():
    scores = table(drawn())
    assert difference(scores, scores) == (0, 0, 0, 1.0, pytest.approx(SMALLEST))


@settings(max_examples=10)
@given(seed=st.integers(0, 1_000), shift=st.floats(-5, 5))
def test_a_difference_turned_round_changes_its_sign_alone(seed, shift):
    first, second = table(drawn(seed)), table(drawn(seed + 1) + shift)
    one, other = difference(first, second), difference(second, first)
    assert (other.mean, other.low, other.high) == pytest.approx(
        (-one.mean, -one.high, -one.low), rel=1e-9
    )
    assert (other.p, other.p_margin) == (one.p, one.p_margin)


def test_a_difference_is_the_interval_of_the_differences_whatever_the_tables_share():
    one, noise = drawn(), centred(1.0)
    first, second = table(one + 1.5 + noise), table(one)
    found, expected = difference(first, second), interval(table(1.5 + noise))
    assert found.mean == pytest.approx(1.5)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert width(interval(first)) > 5 * width(expected)


def test_seeds_that_one_table_lacks_do_not_count():
    one, other = drawn(seeds=4, of_seeds=9.0), drawn(1, seeds=4, of_seeds=9.0)
    first, second = table(one[:, :, :3]), table(other).query("seed > 0")
    assert difference(first, second) == difference(table(one[:, :, 1:3]), table(other[:, :, 1:3]))


def test_rows_are_matched_by_question_and_seed_and_not_by_place():
    one = drawn()
    first, second = table(one + 3), table(one).sample(frac=1.0, random_state=2)
    assert difference(first, second) == pytest.approx((3, 3, 3, 2 * SMALLEST, 1.0))


@settings(max_examples=20)
@given(shift=st.floats(-3, 3))
def test_a_p_value_is_small_where_the_interval_excludes_none(shift):
    found = difference(table(shift + centred(10.0, seed=3)), table(np.zeros((30, 4, 3))))
    if found.p < 0.04:
        assert not found.low <= 0 <= found.high
    if found.p > 0.06:
        assert found.low <= 0 <= found.high
    assert 0 < found.p <= 1 and 0 < found.p_margin <= 1


@pytest.mark.parametrize(
    "shift, margin, expected",
    [
        (2, 2.0, 1.0),
        (-2, 2.0, 1.0),
        (5, 2.0, 1.0),
        (1, 2.0, SMALLEST),
        (-1, 2.0, SMALLEST),
        (1, 0.5, 1.0),
    ],
)
def test_a_margin_is_reached_from_the_difference_that_equals_it(shift, margin, expected):
    """Whole numbers, the same difference everywhere: every resample has it exactly."""
    one = np.arange(24.0).reshape(6, 2, 2)
    assert difference(table(one + shift), table(one), margin=margin).p_margin == pytest.approx(
        expected
    )


def test_at_the_margin_with_noise_equivalence_is_a_toss():
    found = difference(table(2 + centred(3.0)), table(np.zeros((30, 4, 3))))
    assert 0.3 < found.p_margin < 0.7


@pytest.mark.parametrize(
    "spoil",
    [
        lambda scores: scores.iloc[1:],
        lambda scores: scores[scores["title"] != "article 3"],
        lambda scores: scores.replace({"id": {"0-0": "another"}}),
        lambda scores: scores.assign(seed=scores["seed"] + 3),
        lambda scores: pd.concat([scores, scores.iloc[:1]]),
    ],
    ids=["a row", "an article", "another question", "other seeds", "a row twice"],
)
def test_tables_of_different_questions_or_without_a_common_seed_are_not_compared(spoil):
    scores = table(drawn())
    for pair in ((scores, spoil(scores)), (spoil(scores), scores)):
        with pytest.raises(
            ValueError, match="not scored on the same questions with a seed in common"
        ):
            difference(*pair)


@pytest.mark.parametrize(
    "spoil", [lambda scores: scores.iloc[1:], lambda scores: pd.concat([scores, scores.iloc[:1]])]
)
def test_a_table_without_one_score_per_question_and_seed_is_refused(spoil):
    scores = spoil(table(drawn()))
    for ask in (lambda: interval(scores), lambda: difference(scores, scores)):
        with pytest.raises(ValueError):
            ask()


def test_a_difference_reads_well():
    assert str(difference(table(drawn() + 3), table(drawn()))) == "3.0 [3.0, 3.0]"


# ---------------------------------------------------------------- many comparisons


@pytest.mark.parametrize(
    "p, adjusted",
    [
        (
            [0.01, 0.04, 0.03],
            [0.03, 0.06, 0.06],
        ),  # 3 x 0.01; 2 x 0.03; 1 x 0.04 raised to the one before
        ([0.04, 0.01, 0.03, 0.005], [0.06, 0.03, 0.06, 0.02]),
        ([0.2], [0.2]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
)
def test_hand_worked_adjustments(p, adjusted):
    assert holm(p) == pytest.approx(adjusted)


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8), alpha=st.floats(0.001, 0.999))
def test_what_is_at_most_alpha_is_what_holms_procedure_rejects(p, alpha):
    """Smallest first, each against alpha over the number of those left; the first that fails ends it."""
    rejected = set()
    for done, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[i] * (len(p) - done) > alpha:
            break
        rejected.add(i)
    assert {i for i, value in enumerate(holm(p)) if value <= alpha} == rejected


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8), data=st.data())
def test_adjusted_p_values_keep_their_order_and_are_never_smaller(p, data):
    order = data.draw(st.permutations(range(len(p))))
    adjusted = holm(p)
    assert holm([p[i] for i in order]) == [adjusted[i] for i in order]
    assert all(before <= after <= 1 for before, after in zip(p, adjusted, strict=True))
    assert all(adjusted[i] <= adjusted[j] for i in order for j in order if p[i] <= p[j])


LEVELS = {"worst": -20.0, "best": 20.0, "near": 18.5, "same": 20.0}


@pytest.fixture(scope="module")
def levels() -> pd.DataFrame:
    """Four objectives on the same questions; `same` is `best` with noise on top."""
    one = drawn()
    scores = {name: one + shift + centred(1.0, i) for i, (name, shift) in enumerate(LEVELS.items())}
    scores["same"] -= 0.01
    return pd.concat([table(values).assign(objective=name) for name, values in scores.items()])


def test_every_pair_is_compared_once_the_better_one_first(levels):
    found = pairs(levels, "objective")
    order = ["best", "same", "near", "worst"]
    assert list(zip(found["first"], found["second"], strict=True)) == [
        (first, second) for i, first in enumerate(order) for second in order[i + 1 :]
    ]
    assert (found["mean"] > 0).all()
    of = {name: levels[levels["objective"] == name] for name in order}
    alone = [difference(of[row.first], of[row.second]) for row in found.itertuples()]
    assert [(row.mean, row.low, row.high) for row in found.itertuples()] == [
        one[:3] for one in alone
    ]
    for p in ("p", "p_margin"):
        assert found[p].tolist() == holm([getattr(one, p) for one in alone])
    findings = {(row.first, row.second): row.finding for row in found.itertuples()}
    assert findings[("best", "same")] == "equivalent within 2"
    assert findings[("best", "near")] == "different, by less than 2"
    assert findings[("near", "worst")] == "different"


def test_the_p_values_of_pairs_are_corrected_for_the_number_of_pairs(levels):
    found = pairs(levels, "objective").set_index(["first", "second"])
    assert found.loc[("best", "worst"), "p"] == pytest.approx(6 * 2 * SMALLEST)
    few = pairs(levels[levels["objective"].isin(["best", "worst"])], "objective")
    assert len(few) == 1 and few["p"][0] == pytest.approx(2 * SMALLEST)


@pytest.mark.parametrize(
    "shift, noise, said",
    [
        (10, 5, "different"),
        (1, 1, "different, by less than 2"),
        (0, 1, "equivalent within 2"),
        (0, 60, "undecided"),
    ],
)
def test_what_two_p_values_say_together(shift, noise, said):
    found = difference(table(drawn() + shift + centred(noise)), table(drawn()))
    assert finding(found.p, found.p_margin, 2.0) == said


def test_a_finding_names_its_margin_and_claims_nothing_at_the_level_itself():
    assert finding(1.0, 0.01, 2.5) == "equivalent within 2.5"
    assert finding(0.05, 0.05, 2.0) == finding(math.nan, math.nan, 2.0) == "undecided"


# ---------------------------------------------------------------- verdicts


def test_thresholds_are_the_analysis_own_or_shares_of_its_baseline():
    assert thresholds(StudyConfig()) == {"target": 70, "script": 65, "failure": 50}
    shares = {"target": 85.366, "script": 79.268, "failure": 60.976}  # 70 / 82, 65 / 82, 50 / 82
    assert thresholds(StudyConfig(), share=True) == pytest.approx(shares, abs=1e-3)
    other = StudyConfig(baseline_f1=50.0, target_f1=40.0, script_f1=30.0, failure_f1=20.0)
    assert thresholds(other, share=True) == pytest.approx(
        {"target": 80, "script": 60, "failure": 40}
    )


MISSED = "target missed (a success only to the script)"


@pytest.mark.parametrize(
    "score, said",
    [
        (100.0, "target met"), (70.0, "target met"), (69.999, MISSED), (65.0, MISSED), (64.999, "target missed"),
        (50.0, "target missed"), (49.999, "failure"), (0.0, "failure"),
    ],
)  # fmt: skip
def test_a_threshold_is_met_by_the_score_that_equals_it(score, said):
    assert verdict(score, thresholds(StudyConfig())) == said


@pytest.mark.parametrize(
    "found, said",
    [
        ((72.0, 70.0, 74.0), "target met"),
        ((71.0, 69.0, 73.0), f"open: from {MISSED} to target met"),
        ((67.0, 65.0, 69.9), MISSED),
        ((57.0, 40.0, 80.0), "open: from failure to target met"),
        ((51.0, 49.0, 53.0), "open: from failure to target missed"),
        ((30.0, 20.0, 40.0), "failure"),
    ],
)
def test_a_verdict_is_open_unless_the_whole_interval_shares_it(found, said):
    assert verdict_over(Interval(*found), thresholds(StudyConfig())) == said
