"""Comparisons of runs: intervals over articles and seeds, p values, equivalence, corrections."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.scoring.comparison import (
    MARKS,
    Finding,
    contrast,
    difference,
    holm,
    interval,
    leaders,
    matrix,
    pairs,
)
from stage1.scoring.crossed import SMALLEST_P, Estimate
from stage1.scoring.intervals import Interval, mean_interval


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


# ---------------------------------------------------------------- intervals


def test_an_interval_adds_the_half_widths_over_articles_and_seeds_in_quadrature():
    """Articles -10, 0, 10 and seeds -1, 1 that add up without interaction.

    Over articles the standard error is 10 / sqrt(3) with t(2) = 4.303, over seeds sqrt(2 / 2) = 1
    with t(1) = 12.706.
    """
    articles, seeds = np.array([-10.0, 0.0, 10.0]), np.array([-1.0, 1.0])
    result = interval(table(50 + articles[:, None, None] + seeds))
    half = math.hypot(4.3027 * 10 / math.sqrt(3), 12.7062)
    assert result == pytest.approx((50, 50 - half, 50 + half), abs=1e-3)


def test_the_interaction_of_articles_and_seeds_counts_once():
    """Without it the articles are alike and so are the seeds: nothing but the interaction is left.

    Both articles have 50 on average, so have both seeds. Then only the safeguard remains: the
    interval over articles alone, which has no width here.
    """
    assert interval(table(np.array([[[40.0, 60.0]], [[60.0, 40.0]]]))) == (50, 50, 50)
    scores = drawn(articles=12, questions=1, seeds=4, between=0.0, noise=5.0)[:, 0]
    means = scores.mean(0)
    t = 3.1824 * means.std(ddof=1) / 2  # four seeds
    rest = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    pure = max(scores.mean(1).var(ddof=1) / 12 - (rest**2).sum() / (11 * 3) / (12 * 4), 0)
    alone = 2.201 * scores.mean(1).std(ddof=1) / math.sqrt(12)
    half = max(math.hypot(t, 2.201 * math.sqrt(pure)), alone)
    assert width(interval(table(scores[:, None]))) == pytest.approx(2 * half, rel=1e-3)


def test_seeds_that_differ_widen_the_interval_and_equal_ones_do_not():
    """The means are the same; the second table has seeds 15 points apart."""
    scores = np.repeat(drawn(seeds=1), 3, axis=2)
    alike, apart = interval(table(scores)), interval(table(scores + np.array([-15.0, 0.0, 15.0])))
    alone = interval(table(scores[:, :, :1]))
    assert alike.mean == pytest.approx(apart.mean) and alike.mean == pytest.approx(alone.mean)
    assert width(alike) == pytest.approx(width(alone))
    assert width(apart) > 2 * width(alike)


def test_an_interval_of_one_seed_is_that_of_resampling_articles_whatever_their_size():
    scores = table(uneven(drawn(articles=60, questions=8, seeds=1)))
    expected = mean_interval(scores["f1"].tolist(), scores["title"].tolist(), resamples=5_000)
    result = interval(scores)
    assert result.mean == pytest.approx(expected.mean)
    assert result[1:] == pytest.approx(expected[1:], abs=0.07 * width(expected))


@pytest.mark.parametrize("seeds", [[3], [3, 8]])
def test_questions_have_equal_weight_and_articles_have_not(seeds):
    scores = table(np.repeat([[[100.0]], [[0.0]]], 9, axis=1)).iloc[:10]  # nine questions, and one
    scores = pd.concat([scores.assign(seed=seed) for seed in seeds])
    assert interval(scores).mean == pytest.approx(90)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw with mean 0, standard deviation 1 and skewness 1."""
    return (rng.gamma(4, size=shape) - 4) / 2


def error(rng: np.random.Generator, seeds: int, of_seeds: float, draw=normal) -> np.ndarray:
    """Draw what is off in 20 articles by `seeds`; the articles' share of it is about 2 points."""
    off = rng.normal(0, 10, (20, 1)) + rng.normal(0, 5, (20, seeds))
    return off + of_seeds * draw(rng, (1, seeds))


@pytest.mark.parametrize("draw", [normal, skewed])
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seeds", [0.0, 2.0, 10.0])
def test_half_widths_with_few_seeds_cover_the_true_mean_as_often_as_they_say(of_seeds, seeds, draw):
    """Of 400, 380 are expected; 368 leaves room for chance and for the skewness."""
    rng, sizes = np.random.default_rng(0), np.ones(20)
    drawn = [Estimate.of(error(rng, seeds, of_seeds, draw), sizes) for _ in range(400)]
    assert sum(abs(one.mean) <= one.half_width() for one in drawn) >= 368


def test_the_interval_of_three_seeds_that_vary_much_covers_as_often_as_it_says():
    """Resampling articles and seeds covers 80 to 90 of 100 here."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(100):
        _, low, high = interval(table(50 + error(rng, 3, of_seeds=10.0)[:, None]))
        covered += low <= 50 <= high
    assert covered >= 92


def test_an_interval_of_five_seeds_that_are_alike_is_hardly_wider_than_one_over_articles():
    scores = drawn(articles=170, questions=1, seeds=5, noise=5.0)
    alone = interval(table(scores.mean(2, keepdims=True)))
    assert width(alone) <= width(interval(table(scores))) < 1.2 * width(alone)


def test_bounds_of_a_mean_stay_within_0_and_100_percent_and_those_of_a_difference_do_not():
    one, other = table(drawn() - 45 + np.array([-5, 0, 5])), table(drawn())
    assert interval(one).low == 0 < interval(one).mean
    assert difference(one, other).low < -45


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
    assert interval(scores.sample(frac=1.0, random_state=1)) == first


# ---------------------------------------------------------------- differences


def test_a_table_does_not_differ_from_itself():
    scores = table(drawn())
    assert difference(scores, scores) == (0, 0, 0, 1.0, SMALLEST_P / 2)


@settings(max_examples=10)
@given(seed=st.integers(0, 1_000), shift=st.floats(-5, 5))
def test_swapping_the_tables_changes_only_the_sign_of_the_difference(seed, shift):
    first, second = table(drawn(seed)), table(drawn(seed + 1) + shift)
    one, other = difference(first, second), difference(second, first)
    assert other[:3] == pytest.approx((-one.mean, -one.high, -one.low), rel=1e-9)
    assert other[3:] == pytest.approx(one[3:])


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
    assert difference(first, second) == pytest.approx((3, 3, 3, SMALLEST_P, 1.0))


@settings(max_examples=30)
@given(shift=st.floats(-8, 8), seeds=st.integers(1, 5), of_seeds=st.sampled_from([0.0, 3.0]))
def test_a_p_value_is_small_exactly_where_the_interval_excludes_zero(shift, seeds, of_seeds):
    scores = drawn(articles=12, seeds=seeds, of_seeds=of_seeds)
    result = difference(table(scores - 50 + shift), table(np.zeros_like(scores)))
    assert (result.p < 0.05) == (not result.low <= 0 <= result.high)
    assert 0 < result.p <= 1 and 0 < result.p_margin <= 1


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.999])
def test_a_p_value_is_one_minus_the_level_whose_interval_just_reaches_zero(level, seeds):
    scores = drawn(seeds=seeds, of_seeds=3.0)
    mean, _, high = interval(table(scores), level=level)
    result = difference(table(scores), table(np.full_like(scores, high)))
    assert result.mean == pytest.approx(mean - high) and result.p == pytest.approx(1 - level)


@pytest.mark.parametrize("mean", [1.0, -1.0, 0.0])
def test_the_p_value_of_the_margin_is_small_where_the_90_percent_interval_is_inside_it(mean):
    scores = drawn(seeds=3, of_seeds=1.0)
    scores += mean - scores.mean()
    half = width(interval(table(scores + 50), level=0.9)) / 2
    inside, outside = (
        difference(table(scores), table(np.zeros_like(scores)), margin=abs(mean) + factor * half)
        for factor in (1.01, 0.99)
    )
    assert inside.p_margin < 0.05 < outside.p_margin


@pytest.mark.parametrize(
    "shift, margin, expected",
    [(2, 2.0, 0.5), (-2, 2.0, 0.5), (1, 2.0, 0.0), (-1, 2.0, 0.0), (1, 0.5, 1.0)],
)
def test_a_difference_equal_to_the_margin_is_not_within_it(shift, margin, expected):
    """In whole numbers, the same everywhere, nothing is left to chance."""
    one = np.arange(24.0).reshape(6, 2, 2)
    result = difference(table(one + shift), table(one), margin=margin)
    assert result.p_margin == pytest.approx(expected)


def test_a_noisy_difference_at_the_margin_has_a_p_value_of_one_half():
    result = difference(table(2 + centred(3.0)), table(np.zeros((30, 4, 3))))
    assert result.p_margin == pytest.approx(0.5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda scores: scores.iloc[1:],
        lambda scores: scores[scores["title"] != "article 3"],
        lambda scores: scores.replace({"id": {"0-0": "another"}}),
        lambda scores: scores.assign(seed=scores["seed"] + 3),
    ],
    ids=["no row", "no article", "another question", "other seeds"],
)
def test_tables_of_different_questions_or_without_a_common_seed_are_not_compared(spoil):
    scores, reason = table(drawn()), "not scored on the same questions with a seed in common"
    for pair in ((scores, spoil(scores)), (spoil(scores), scores)):
        with pytest.raises(ValueError, match=reason):
            difference(*pair)


def test_a_question_with_two_scores_of_one_seed_is_not_compared():
    scores = table(drawn())
    twice = pd.concat([scores, scores.iloc[:1]])
    for pair in ((scores, twice), (twice, scores)):
        with pytest.raises(ValueError, match="more than one score with the same seed"):
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
    one_pair = pairs(levels[levels["objective"].isin(["best", "near"])], "objective")
    assert len(one_pair) == 1 and 0 < one_pair["p"][0] < 0.05
    assert one_pair["p"][0] < all_pairs.loc[("best", "near"), "p"] <= 6 * one_pair["p"][0]


def test_the_matrix_shows_every_pair_from_both_sides(levels):
    table = pairs(levels, "objective")
    square = matrix(table)
    assert set(square) == set(square.index) == set(levels["objective"])
    for _, pair in table.iterrows():
        mark = MARKS[pair["finding"]]
        assert square.loc[pair["first"], pair["second"]] == f"{pair['mean']:+.1f} {mark}"
        assert square.loc[pair["second"], pair["first"]] == f"{-pair['mean']:+.1f} {mark}"
    assert set(square.to_numpy().diagonal()) == {""} and square.index[0] == "best"


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
    """By example 40, 30, 10 less 15, 25, 35 is 25, 5, -25; by seed it is 5 and -5 / 3.

    Sums by article and seed, A then B: 40 and 20, -15 and -35 (sizes 2 and 1).
    """
    result = contrast(factorial(), "initialisation", *STARTS)
    assert result.mean == pytest.approx(5 / 3)
    assert result.mean - result.low == pytest.approx(result.high - result.mean)
    assert result.p > 0.05 and result.low < 0 < result.high


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


def test_leaders_are_the_best_level_and_all_not_found_different_from_it():
    one = table(drawn())
    shifts = {"low": -30.0, "high": 0.0, "close": -0.1}
    scores = pd.concat([one.assign(f1=one["f1"] + x, name=name) for name, x in shifts.items()])
    assert leaders(scores, "name") == ["high", "close"]
    assert leaders(scores[scores["name"] != "close"], "name") == ["high"]


def test_with_one_seed_every_level_may_be_the_best():
    one = table(drawn(seeds=1))
    shifts = {"low": -30.0, "high": 0.0}
    scores = pd.concat([one.assign(f1=one["f1"] + x, name=name) for name, x in shifts.items()])
    assert leaders(scores, "name") == ["high", "low"]
