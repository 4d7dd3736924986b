"""SQuAD v1.1 scores against hand-worked cases and a plain version of the official script."""

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.scoring.squad import exact_match, f1, normalize

WORDS = [
    "the", "A", "an", "Cat", "cat.", "cats", "the-cat", "an'", "théâtre", "U.S.", "1,000", "1000",
    "…", "-", "  ",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join) | st.text(max_size=12)
GOLDS = st.lists(TEXTS, min_size=1, max_size=3)


# The official script (evaluate-v1.1.py), step by step as published.


def official_words(text):
    lowered = text.lower()
    without_punctuation = "".join(ch for ch in lowered if ch not in set(string.punctuation))
    without_articles = re.sub(r"\b(a|an|the)\b", " ", without_punctuation)
    return without_articles.split()


def official_f1(prediction, gold):
    prediction_words, gold_words = official_words(prediction), official_words(gold)
    same = sum((Counter(prediction_words) & Counter(gold_words)).values())
    if same == 0:
        return 0
    precision, recall = same / len(prediction_words), same / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def official_exact_match(prediction, gold):
    return " ".join(official_words(prediction)) == " ".join(official_words(gold))


def best(score, prediction, golds):
    return 100 * max(score(prediction, gold) for gold in golds)


@given(prediction=TEXTS, golds=GOLDS)
def test_scores_are_those_of_the_official_script(prediction, golds):
    assert f1(prediction, golds) == pytest.approx(best(official_f1, prediction, golds))
    assert exact_match(prediction, golds) == best(official_exact_match, prediction, golds)


@pytest.mark.parametrize(
    "prediction, golds, em, expected_f1",
    [
        ("Ada Bell", ["Ada Bell"], 100, 100),
        ("the Ada Bell.", ["ada bell"], 100, 100),
        ("U.S.", ["US"], 100, 100),
        ("Bell Ada", ["Ada Bell"], 0, 100),
        ("Ada", ["Ada Bell"], 0, 200 / 3),  # precision 1, recall 1/2
        ("Ada Bell of Usk", ["Ada Bell"], 0, 200 / 3),  # precision 1/2, recall 1
        ("cat cat cat", ["cat"], 0, 50),  # repetitions count: precision 1/3, recall 1
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
        ("", [""], 100, 0),  # both empty: equal to the v1.1 script, without a common word
        ("the", ["a", "!"], 100, 0),
    ],
)
def test_hand_worked_scores(prediction, golds, em, expected_f1):
    assert exact_match(prediction, golds) == em
    assert f1(prediction, golds) == pytest.approx(expected_f1)


@pytest.mark.parametrize("score", [f1, exact_match])
@pytest.mark.parametrize("golds", ["Ada", "", [], ()])
def test_gold_answers_must_be_a_list_of_at_least_one(score, golds):
    with pytest.raises(ValueError, match="at least one gold answer"):
        score("Ada", golds)


@given(prediction=TEXTS, golds=GOLDS)
def test_scores_are_percentages(prediction, golds):
    assert exact_match(prediction, golds) in (0, 100)
    assert 0 <= f1(prediction, golds) <= 100


@given(one=TEXTS, other=TEXTS)
def test_scores_are_symmetric_in_prediction_and_gold(one, other):
    assert f1(one, [other]) == f1(other, [one])
    assert exact_match(one, [other]) == exact_match(other, [one])


@given(prediction=TEXTS, gold=TEXTS)
def test_f1_is_100_exactly_for_the_same_words(prediction, gold):
    bags = [Counter(normalize(text).split()) for text in (prediction, gold)]
    assert (f1(prediction, [gold]) == 100) == (bags[0] == bags[1] != Counter())


@given(text=TEXTS, gold=TEXTS)
def test_normalisation_changes_no_score(text, gold):
    assert exact_match(normalize(text), [text]) == 100
    assert exact_match(text, [gold]) == exact_match(normalize(text), [normalize(gold)])
    assert f1(text, [gold]) == f1(normalize(text), [normalize(gold)])


@given(prediction=TEXTS, golds=GOLDS)
def test_an_exact_match_has_an_f1_of_100_unless_it_is_empty(prediction, golds):
    if exact_match(prediction, golds) and normalize(prediction):
        assert f1(prediction, golds) == 100


@given(prediction=TEXTS, golds=GOLDS, more=TEXTS)
def test_one_more_gold_answer_never_lowers_a_score(prediction, golds, more):
    assert f1(prediction, [*golds, more]) >= f1(prediction, golds)
    assert exact_match(prediction, [*golds, more]) >= exact_match(prediction, golds)
