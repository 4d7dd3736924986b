"""SQuAD v1.1 scores against hand-worked cases and a plain reading of the official script; bootstrap intervals."""

import math
import re
import string
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage1.scoring.metrics import (
    Interval,
    exact_match,
    f1,
    mean_interval,
    normalize,
    retention,
    summary,
)

WORDS = [
    "the",
    "A",
    "an",
    "Cat",
    "cat.",
    "cats",
    "the-cat",
    "an'",
    "théâtre",
    "U.S.",
    "1,000",
    "1000",
    "…",
    "-",
    "  ",
]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join) | st.text(max_size=12)
GOLDS = st.lists(TEXTS, min_size=1, max_size=3)


# The official script (evaluate-v1.1.py), step by step as it is published.


def official_normalize(text):
    lowered = text.lower()
    without_punctuation = "".join(
        character for character in lowered if character not in set(string.punctuation)
    )
    without_articles = re.sub(r"\b(a|an|the)\b", " ", without_punctuation)
    return " ".join(without_articles.split())


def official_f1(prediction, gold):
    prediction_words, gold_words = (
        official_normalize(prediction).split(),
        official_normalize(gold).split(),
    )
    same = sum((Counter(prediction_words) & Counter(gold_words)).values())
    if same == 0:
        return 0
    precision, recall = same / len(prediction_words), same / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def official_exact_match(prediction, gold):
    return official_normalize(prediction) == official_normalize(gold)


@given(prediction=TEXTS, golds=GOLDS)
def test_scores_are_those_of_the_official_script(prediction, golds):
    assert f1(prediction, golds) == pytest.approx(
        100 * max(official_f1(prediction, gold) for gold in golds)
    )
    assert exact_match(prediction, golds) == 100 * max(
        official_exact_match(prediction, gold) for gold in golds
    )


@pytest.mark.parametrize(
    "prediction, golds, em, expected_f1",
    [
        ("Ada Bell", ["Ada Bell"], 100, 100),
        ("the Ada Bell.", ["ada bell"], 100, 100),
        ("U.S.", ["US"], 100, 100),
        ("Bell Ada", ["Ada Bell"], 0, 100),
        ("Ada", ["Ada Bell"], 0, 200 / 3),  # precision 1, recall 1/2
        ("Ada Bell of Usk", ["Ada Bell"], 0, 200 / 3),  # precision 1/2, recall 1
        (
            "cat cat cat",
            ["cat"],
            0,
            50,
        ),  # a word counts as often as in the other text: precision 1/3, recall 1
        ("cat cat", ["cat dog cat"], 0, 80),  # precision 1, recall 2/3
        ("red cat", ["blue dog"], 0, 0),
        ("apple", ["pple"], 0, 0),  # articles are whole words
        ("sofa", ["sof"], 0, 0),
        ("theory", ["ory"], 0, 0),
        ("Usk", ["River Usk", "Usk"], 100, 100),  # the best of the gold answers
        ("River", ["Wye", "River Usk"], 0, 200 / 3),
        ("1,000", ["1000"], 100, 100),
        ("well-known", ["wellknown"], 100, 100),
        ("well known", ["well-known"], 0, 0),
        ("", ["Ada"], 0, 0),
        ("The.", ["Ada"], 0, 0),
        ("", [""], 100, 0),  # both empty: the v1.1 script finds them equal, and no word in common
        ("the", ["a", "!"], 100, 0),
    ],
)
def test_hand_worked_scores(prediction, golds, em, expected_f1):
    assert exact_match(prediction, golds) == em
    assert f1(prediction, golds) == pytest.approx(expected_f1)


@pytest.mark.parametrize("score", [f1, exact_match])
@pytest.mark.parametrize("golds", ["Ada", "", [], ()])
def test_gold_answers_must_be_a_list_of_some(score, golds):
    with pytest.raises(ValueError, match="at least one gold answer"):
        score("Ada", golds)


@given(prediction=TEXTS, golds=GOLDS)
def test_scores_are_percentages(prediction, golds):
    assert exact_match(prediction, golds) in (0, 100)
    assert 0 <= f1(prediction, golds) <= 100


@given(one=TEXTS, other=TEXTS)
def test_prediction_and_gold_may_trade_places(one, other):
    assert f1(one, [other]) == f1(other, [one])
    assert exact_match(one, [other]) == exact_match(other, [one])


@given(prediction=TEXTS, gold=TEXTS)
def test_f1_is_full_exactly_for_the_same_words(prediction, gold):
    bags = [Counter(normalize(text).split()) for text in (prediction, gold)]
    assert (f1(prediction, [gold]) == 100) == (bags[0] == bags[1] != Counter())


@given(text=TEXTS, gold=TEXTS)
def test_normalisation_changes_no_score(text, gold):
    assert exact_match(normalize(text), [text]) == 100
    assert exact_match(text, [gold]) == exact_match(normalize(text), [normalize(gold)])
    assert f1(text, [gold]) == f1(normalize(text), [normalize(gold)])


@given(prediction=TEXTS, golds=GOLDS)
def test_an_exact_match_has_full_f1_unless_it_is_empty(prediction, golds):
    if exact_match(prediction, golds) and normalize(prediction):
        assert f1(prediction, golds) == 100


@given(prediction=TEXTS, golds=GOLDS, more=TEXTS)
def test_one_more_gold_answer_never_lowers_a_score(prediction, golds, more):
    assert f1(prediction, [*golds, more]) >= f1(prediction, golds)
    assert exact_match(prediction, [*golds, more]) >= exact_match(prediction, golds)


# ---------------------------------------------------------------- intervals


@given(
    groups=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.floats(0, 100)), min_size=2, max_size=30
    ).filter(lambda pairs: len({group for group, _ in pairs}) > 1)
)
def test_an_interval_is_ordered_and_within_the_scores(groups):
    names, scores = [name for name, _ in groups], [score for _, score in groups]
    interval = mean_interval(scores, names, resamples=200)
    assert interval.mean == pytest.approx(np.mean(scores))
    rounding = 1e-9
    assert (
        min(scores) - rounding
        <= interval.low
        <= interval.high + rounding
        <= max(scores) + 2 * rounding
    )


def test_an_interval_holds_the_mean():
    rng = np.random.default_rng(0)
    scores, groups = rng.uniform(0, 100, 400).tolist(), [f"g{i // 10}" for i in range(400)]
    interval = mean_interval(scores, groups)
    assert interval.low < interval.mean < interval.high


def test_an_interval_is_the_same_every_time_and_depends_on_the_seed():
    scores, groups = [0.0, 10.0, 50.0, 100.0, 30.0], list("abcde")
    assert mean_interval(scores, groups) == mean_interval(scores, groups)
    assert mean_interval(scores, groups, seed=1, resamples=50) != mean_interval(
        scores, groups, seed=2, resamples=50
    )


def test_an_interval_does_not_depend_on_the_order_of_the_examples():
    scores, groups = [0.0, 10.0, 50.0, 100.0, 30.0], list("ababc")
    assert mean_interval(scores, groups) == mean_interval(scores[::-1], groups[::-1])


def test_a_single_group_says_nothing():
    interval = mean_interval([0.0, 100.0], ["a", "a"])
    assert interval.mean == 50 and math.isnan(interval.low) and math.isnan(interval.high)


def test_equal_scores_have_no_width():
    interval = mean_interval([70.0] * 6, list("aabbbc"))
    assert interval == Interval(70.0, pytest.approx(70), pytest.approx(70))


def test_repeating_the_examples_of_an_article_does_not_narrow_the_interval():
    scores = [float(score) for score in np.random.default_rng(0).integers(0, 101, 20)]
    repeated, articles = (
        np.repeat(scores, 10).tolist(),
        np.repeat(np.arange(20).astype(str), 10).tolist(),
    )
    honest, naive = (
        mean_interval(repeated, articles),
        mean_interval(repeated, [str(i) for i in range(200)]),
    )
    once = mean_interval(scores, [str(i) for i in range(20)])
    assert honest.high - honest.low > 2 * (naive.high - naive.low)
    assert honest.high - honest.low == pytest.approx(once.high - once.low, rel=0.1)


def test_a_wider_level_gives_a_wider_interval():
    scores, groups = [float(i % 7) for i in range(60)], [f"g{i // 3}" for i in range(60)]
    narrow, wide = (mean_interval(scores, groups, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_95_percent_intervals_hold_the_true_mean_about_that_often():
    rng, held = np.random.default_rng(0), 0
    groups = [f"g{i // 4}" for i in range(160)]
    for _ in range(150):
        scores = 50 + np.repeat(rng.normal(0, 10, 40), 4) + rng.normal(0, 5, 160)
        interval = mean_interval(scores.tolist(), groups, resamples=400)
        held += interval.low <= 50 <= interval.high
    assert 0.87 * 150 <= held <= 0.99 * 150


@pytest.mark.parametrize("scores, groups", [([1.0], ["a", "b"]), ([1.0, 2.0], ["a"]), ([], [])])
def test_scores_and_groups_must_match(scores, groups):
    with pytest.raises(ValueError, match="scores and"):
        mean_interval(scores, groups)


def test_an_interval_reads_well():
    assert str(Interval(81.25, 79.0, 83.456)) == "81.2 [79.0, 83.5]"


def test_a_summary_has_a_row_per_group_with_means_and_intervals():
    scored = pd.DataFrame(
        {
            "condition": ["text"] * 4 + ["other"] * 4,
            "title": ["a", "a", "b", "b"] * 2,
            "f1": [100.0, 100.0, 50.0, 50.0] + [0.0] * 4,
            "em": [100.0, 100.0, 0.0, 0.0] + [0.0] * 4,
            "ended": [True, True, True, False] * 2,
            "empty": [False, False, False, True] * 2,
            "tokens": [1, 2, 3, 4] * 2,
            "ce_first": [1.0, 2.0, 3.0, 6.0] * 2,
            "ce_later": [math.nan, 2.0, math.nan, 4.0] + [math.nan] * 4,
            "right_first": [1.0, 1.0, 0.0, 1.0] * 2,
            "right_later": [math.nan, 0.5, math.nan, 1.0] + [math.nan] * 4,
        }
    )
    first, second = summary(scored, ["condition"]).to_dict("records")
    assert (first["condition"], first["f1"], first["em"], first["ended"], first["tokens"]) == (
        "text",
        75,
        50,
        0.75,
        2.5,
    )
    assert (first["f1_low"], first["f1_high"], first["em_low"], first["em_high"]) == (
        50,
        100,
        0,
        100,
    )
    assert (first["questions"], first["articles"]) == (4, 2)
    assert (first["empty"], first["ce_first"], first["right_first"]) == (0.25, 3.0, 0.75)
    assert (first["ce_later"], first["right_later"]) == (
        3.0,
        0.75,
    )  # over the answers that have later tokens
    assert (second["condition"], second["f1"]) == ("other", 0)
    assert math.isnan(second["ce_later"]) and math.isnan(second["right_later"])


@pytest.mark.parametrize(
    "score, ceiling, floor, expected",
    [
        (90, 90, 10, 100),
        (10, 90, 10, 0),
        (50, 90, 10, 50),
        (70, 90, 10, 75),
        (98, 90, 10, 110),
        (2, 90, 10, -10),
    ],
)
def test_retention_is_the_share_of_the_way_from_floor_to_ceiling(score, ceiling, floor, expected):
    assert retention(float(score), float(ceiling), float(floor)) == pytest.approx(expected)


@pytest.mark.parametrize("ceiling", [10.0, 9.0])
def test_nothing_is_retained_where_the_ceiling_is_not_above_the_floor(ceiling):
    assert math.isnan(retention(50.0, ceiling, 10.0))
