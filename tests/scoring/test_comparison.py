"""Comparisons of runs: intervals over articles and seeds, p values, equivalence, corrections."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.scoring import comparison
from stage1.scoring.comparison import Finding, contrast, difference, holm, interval, pairs
from stage1.scoring.intervals import Interval, mean_interval

SMALLEST = 1 / (comparison.RESAMPLES + 1)


def table(scores: np.ndarray) -> pd.DataFrame:
    """Return scores [articles, questions, seeds] as rows; nan stands for no such question."""
    rows = []
    for (article, question, seed), score in np.ndenumerate(scores):
        if not np.isnan(score):
            key = {"id": f"{article}-{question}", "title": f"article {article}", "seed": seed}
            rows.append(key | {"f1": float(score)})
    return pd.DataFrame(rows)


def drawn(
    seed=0, articles=30, questions=4, seeds=3, between=10.0, of_seeds=0.0, noise=5.0
) -> np.ndarray:
    """Draw scores around 50, with standard deviations for articles, seeds and the residual."""
    rng = np.random.default_rng(seed)
    scores = 50 + rng.normal(0, between, (articles, 1, 1)) + rng.normal(0, of_seeds, (1, 1, seeds))
    return scores + rng.normal(0, noise, (articles, questions, seeds))


def centred(noise: float, seed=0) -> np.ndarray:
    """Draw noise whose mean is zero for every seed, up to rounding."""
    values = np.random.default_rng(seed).normal(0, noise, (30, 4, 3))
    return values - values.mean((0, 1))


def width(interval: Interval) -> float:
    return interval.high - interval.low


def uneven(scores: np.ndarray) -> np.ndarray:
    """Keep one question of the first article, two of the next, and so on, cyclically."""
    articles, questions, _ = scores.shape
    kept = np.arange(questions) <= (np.arange(articles) % questions)[:, None]
    return np.where(kept[:, :, None], scores, np.nan)


def plain_resampling(scores: np.ndarray, resamples=3_000) -> tuple[float, float]:
    """Return the interval from drawing articles and seeds with replacement, one by one."""
    rng, (articles, _, seeds) = np.random.default_rng(99), scores.shape
    means = []
    for _ in range(resamples):
        of_articles = scores[rng.integers(articles, size=articles)]
        means.append(np.nanmean(of_articles[:, :, rng.integers(seeds, size=seeds)]))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def assert_close(interval: Interval, expected: tuple[float, float, float]) -> None:
    """Compare two bootstrap intervals up to the noise of resampling."""
    mean, low, high = expected
    assert interval.mean == pytest.approx(mean)
    assert interval[1:] == pytest.approx((low, high), abs=0.07 * (high - low))


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize("sizes", [np.array, uneven], ids=["even", "uneven"])
@pytest.mark.parametrize("of_seeds", [0.0, 4.0])
def test_an_interval_is_that_of_drawing_articles_and_seeds_with_replacement(of_seeds, sizes):
    scores = sizes(drawn(seeds=5, of_seeds=of_seeds))
    assert_close(interval(table(scores)), (np.nanmean(scores), *plain_resampling(scores)))


def test_seeds_that_differ_widen_the_interval_and_equal_ones_do_not():
    """The means are the same; the second table has seeds 15 points apart."""
    scores = np.repeat(drawn(seeds=1), 3, axis=2)
    alike, apart = interval(table(scores)), interval(table(scores + np.array([-15.0, 0.0, 15.0])))
    alone = interval(table(scores[:, :, :1]))
    assert alike.mean == pytest.approx(apart.mean) and alike.mean == pytest.approx(alone.mean)
    assert width(alike) == pytest.approx(width(alone), rel=0.1)
    assert width(apart) > 2 * width(alike)


def test_with_a_single_seed_only_articles_are_resampled_whatever_their_size():
    scores = table(uneven(drawn(articles=25, questions=8, seeds=1)))
    expected = mean_interval(scores["f1"].tolist(), scores["title"].tolist(), resamples=5_000)
    assert_close(interval(scores), expected)


@pytest.mark.parametrize("seeds", [[3], [3, 8]])
def test_questions_have_equal_weight_and_articles_have_not(seeds):
    scores = table(np.repeat([[[100.0]], [[0.0]]], 9, axis=1)).iloc[:10]  # nine questions, and one
    scores = pd.concat([scores.assign(seed=seed) for seed in seeds])
    assert interval(scores).mean == pytest.approx(90)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say(monkeypatch):
    """The five seeds vary as much as the mean over articles; articles alone cover far less."""
    monkeypatch.setattr(comparison, "RESAMPLES", 300)
    covered = by_articles = 0
    for trial in range(100):
        scores = drawn(trial, articles=20, questions=2, seeds=5, between=10.0, of_seeds=5.0)
        _, low, high = interval(table(scores))
        covered += low <= 50 <= high
        means = np.random.default_rng(trial).choice(scores.mean((1, 2)), (300, 20)).mean(1)
        low, high = np.percentile(means, [2.5, 97.5])
        by_articles += low <= 50 <= high
    assert 87 <= covered <= 99
    assert by_articles < covered - 5


def test_a_single_article_has_no_interval():
    one = table(drawn(articles=1))
    mean, low, high = interval(one)
    assert mean == pytest.approx(one["f1"].mean()) and math.isnan(low) and math.isnan(high)
    mean, *others = difference(one, table(drawn(1, articles=1)))
    assert math.isfinite(mean) and all(map(math.isnan, others))


def test_a_metric_is_read_by_its_name():
    scores = table(drawn()).assign(em=0.0)
    assert interval(scores, "em") == Interval(0, 0, 0) != interval(scores)


def test_an_interval_is_the_same_every_time_and_in_any_order():
    scores = table(drawn(seeds=4, of_seeds=3.0))
    first = interval(scores)
    assert interval(scores) == first
    assert interval(scores.sample(frac=1.0, random_state=1)) == pytest.approx(first, rel=1e-12)


# ---------------------------------------------------------------- differences


def test_a_table_does_not_differ_from_itself():
    scores = table(drawn())
    assert difference(scores, scores) == (0, 0, 0, 1.0, pytest.approx(SMALLEST))


@settings(max_examples=10)
@given(seed=st.integers(0, 1_000), shift=st.floats(-5, 5))
def test_swapping_the_tables_changes_only_the_sign_of_the_difference(seed, shift):
    first, second = table(drawn(seed)), table(drawn(seed + 1) + shift)
    one, other = difference(first, second), difference(second, first)
    assert other[:3] == pytest.approx((-one.mean, -one.high, -one.low), rel=1e-9)
    assert other[3:] == one[3:]


def test_the_interval_of_a_difference_ignores_what_both_tables_share():
    one, noise = drawn(), centred(1.0)
    first, second = table(one + 1.5 + noise), table(one)
    expected = interval(table(1.5 + noise))
    assert expected.mean == pytest.approx(1.5)
    assert difference(first, second)[:3] == pytest.approx(expected)
    assert width(interval(first)) > 5 * width(expected)


def test_seeds_that_one_table_lacks_are_ignored():
    one, other = drawn(seeds=4, of_seeds=9.0), drawn(1, seeds=4, of_seeds=9.0)
    first, second = table(one[:, :, :3]), table(other).query("seed > 0")
    assert difference(first, second) == difference(table(one[:, :, 1:3]), table(other[:, :, 1:3]))


def test_rows_are_matched_by_question_and_seed_and_not_by_position():
    one = drawn()
    first, second = table(one + 3), table(one).sample(frac=1.0, random_state=2)
    assert difference(first, second) == pytest.approx((3, 3, 3, 2 * SMALLEST, 1.0))


@settings(max_examples=20)
@given(shift=st.floats(-3, 3))
def test_a_p_value_is_small_exactly_where_the_interval_excludes_zero(shift):
    result = difference(table(shift + centred(10.0, seed=3)), table(np.zeros((30, 4, 3))))
    if not 0.04 <= result.p <= 0.06:
        assert (result.p > 0.06) == (result.low <= 0 <= result.high)
    assert 0 < result.p <= 1 and 0 < result.p_margin <= 1


@pytest.mark.parametrize(
    "shift, margin, expected",
    [(2, 2.0, 1.0), (-2, 2.0, 1.0), (1, 2.0, SMALLEST), (-1, 2.0, SMALLEST), (1, 0.5, 1.0)],
)
def test_a_difference_equal_to_the_margin_reaches_it(shift, margin, expected):
    """In whole numbers, the same everywhere, every resample has exactly this difference."""
    one = np.arange(24.0).reshape(6, 2, 2)
    result = difference(table(one + shift), table(one), margin=margin)
    assert result.p_margin == pytest.approx(expected)


def test_a_noisy_difference_at_the_margin_reaches_it_half_the_time():
    result = difference(table(2 + centred(3.0)), table(np.zeros((30, 4, 3))))
    assert 0.3 < result.p_margin < 0.7


@pytest.mark.parametrize(
    "spoil",
    [
        lambda scores: scores.iloc[1:],
        lambda scores: scores[scores["title"] != "article 3"],
        lambda scores: scores.replace({"id": {"0-0": "another"}}),
        lambda scores: scores.assign(seed=scores["seed"] + 3),
        lambda scores: pd.concat([scores, scores.iloc[:1]]),
    ],
    ids=["no row", "no article", "another question", "other seeds", "a row twice"],
)
def test_tables_of_different_questions_or_without_a_common_seed_are_not_compared(spoil):
    scores, reason = table(drawn()), "not scored on the same questions with a seed in common"
    for pair in ((scores, spoil(scores)), (spoil(scores), scores)):
        with pytest.raises(ValueError, match=reason):
            difference(*pair)


@pytest.mark.parametrize(
    "spoil", [lambda scores: scores.iloc[1:], lambda scores: pd.concat([scores, scores.iloc[:1]])]
)
def test_a_table_without_one_score_per_question_and_seed_is_refused(spoil):
    scores = spoil(table(drawn()))
    with pytest.raises(ValueError):
        interval(scores)
    with pytest.raises(ValueError):
        difference(scores, scores)


def test_a_difference_prints_as_an_interval():
    assert str(difference(table(drawn() + 3), table(drawn()))) == "3.0 [3.0, 3.0]"


# ---------------------------------------------------------------- many comparisons


@pytest.mark.parametrize(
    "p, adjusted",
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; 2 x 0.03; 1 x 0.04, raised to 0.06
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
def test_adjusted_p_values_at_most_alpha_are_those_that_holms_procedure_rejects(p, alpha):
    """Smallest first, each against alpha over the number left; the first that fails ends it."""
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
    result = pairs(levels, "objective")
    order = ["best", "same", "near", "worst"]
    assert list(zip(result["first"], result["second"], strict=True)) == [
        (first, second) for i, first in enumerate(order) for second in order[i + 1 :]
    ]
    assert (result["mean"] > 0).all()
    of = {name: levels[levels["objective"] == name] for name in order}
    alone = pd.DataFrame([difference(of[row.first], of[row.second]) for row in result.itertuples()])
    for name in ("mean", "low", "high"):
        assert result[name].tolist() == alone[name].tolist()
    for p in ("p", "p_margin"):
        assert result[p].tolist() == holm(alone[p].tolist())
    findings = result.set_index(["first", "second"])["finding"]
    assert findings[("best", "same")] is Finding.EQUIVALENT
    assert findings[("best", "near")] is Finding.SLIGHTLY_DIFFERENT
    assert findings[("near", "worst")] is Finding.DIFFERENT


def test_the_p_values_of_pairs_are_corrected_for_the_number_of_pairs(levels):
    all_pairs = pairs(levels, "objective").set_index(["first", "second"])
    assert all_pairs.loc[("best", "worst"), "p"] == pytest.approx(6 * 2 * SMALLEST)
    one_pair = pairs(levels[levels["objective"].isin(["best", "worst"])], "objective")
    assert len(one_pair) == 1 and one_pair["p"][0] == pytest.approx(2 * SMALLEST)


@pytest.mark.parametrize(
    "shift, noise, expected",
    [
        (10, 5, Finding.DIFFERENT),
        (1, 1, Finding.SLIGHTLY_DIFFERENT),
        (0, 1, Finding.EQUIVALENT),
        (0, 60, Finding.UNDECIDED),
    ],
)
def test_two_p_values_together_decide_the_finding(shift, noise, expected):
    result = difference(table(drawn() + shift + centred(noise)), table(drawn()))
    assert Finding.of(result.p, result.p_margin) is expected


@pytest.mark.parametrize("p", [0.05, math.nan])
def test_nothing_is_found_at_the_level_of_significance_itself(p):
    assert Finding.of(p, p) is Finding.UNDECIDED


# ---------------------------------------------------------------- factors

STARTS = ("pca_inverse", "random")


def factorial() -> pd.DataFrame:
    """Return the F1 of three examples on two articles under two factors, with two seeds each."""
    f1 = {
        ("random", "unit_rms", 0): [0.0, 10.0, 20.0],
        ("random", "unit_rms", 1): [10.0, 20.0, 30.0],
        ("random", "calibrated", 0): [20.0, 30.0, 40.0],
        ("random", "calibrated", 1): [30.0, 40.0, 50.0],
        ("pca_inverse", "unit_rms", 0): [40.0, 40.0, 40.0],
        ("pca_inverse", "unit_rms", 1): [40.0, 40.0, 0.0],
        ("pca_inverse", "calibrated", 0): [40.0, 0.0, 0.0],
        ("pca_inverse", "calibrated", 1): [40.0, 40.0, 0.0],
    }
    examples = pd.DataFrame({"id": ["a1", "a2", "b1"], "title": ["A", "A", "B"]})
    tables = [
        examples.assign(initialisation=start, output_scaling=scaling, seed=seed, f1=values)
        for (start, scaling, seed), values in f1.items()
    ]
    return pd.concat(tables, ignore_index=True)


def test_a_contrast_is_the_mean_difference_on_the_same_examples():
    """By example 40, 30, 10 less 15, 25, 35 is 25, 5, -25.

    The extremes are one article and one seed, drawn twice: A with seed 0 gives 40, 20 less 10, 20;
    B with seed 1 gives 0 less 40.
    """
    result = contrast(factorial(), "initialisation", *STARTS)
    assert result[:3] == pytest.approx((5 / 3, -40, 15))


def test_the_other_factor_has_a_contrast_of_its_own():
    """By example 32.5, 27.5, 22.5 less 22.5, 27.5, 22.5 is 10, 0, 0."""
    result = contrast(factorial(), "output_scaling", "calibrated", "unit_rms")
    assert result.mean == pytest.approx(10 / 3) and result.low < 0 < result.high


def test_swapping_the_levels_changes_only_the_sign_of_a_contrast():
    one, other = (
        contrast(factorial(), "initialisation", *levels) for levels in (STARTS, STARTS[::-1])
    )
    assert other[:3] == pytest.approx((-one.mean, -one.high, -one.low))
    assert other[3:] == pytest.approx(one[3:])


def test_a_contrast_may_be_of_another_score():
    scores = factorial()
    scores["em"] = np.where(scores["output_scaling"] == "calibrated", 100.0, 40.0)
    result = contrast(scores, "output_scaling", "calibrated", "unit_rms", "em")
    assert result[:3] == pytest.approx((60, 60, 60))


def test_order_and_column_types_change_no_contrast():
    texts = ["id", "title", "initialisation", "output_scaling"]
    types = dict.fromkeys(texts, "category") | {"f1": "float32"}
    mixed = factorial().sample(frac=1, random_state=0).astype(types)
    expected = contrast(factorial(), "initialisation", *STARTS)
    assert contrast(mixed, "initialisation", *STARTS) == pytest.approx(expected)


@pytest.mark.parametrize("level", STARTS)
def test_levels_with_different_examples_are_not_compared(level):
    scores = factorial()
    scores = scores[(scores["initialisation"] != level) | (scores["id"] != "a2")]
    reason = "initialisation: 'pca_inverse' and 'random': the two were not scored"
    with pytest.raises(ValueError, match=reason):
        contrast(scores, "initialisation", *STARTS)
