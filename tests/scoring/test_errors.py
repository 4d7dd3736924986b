"""What wrong answers are."""

import pandas as pd
import pytest

from stage1.scoring import errors
from stage1.scoring.errors import Kind

PASSAGE = "Berta Holm keeps the lamp of Ildimark. Anton Riss keeps the bell."


@pytest.mark.parametrize(
    "prediction, expected",
    [
        ("the Berta Holm!", Kind.RIGHT),
        ("Anton Riss", Kind.OTHER_SPAN),
        ("anton  riss.", Kind.OTHER_SPAN),
        ("Anton Rissen", Kind.NOT_IN_PASSAGE),
        ("erta Holm", Kind.NOT_IN_PASSAGE),
        ("", Kind.EMPTY),
        ("the", Kind.EMPTY),
    ],
)
def test_an_answer_is_right_empty_another_span_or_not_in_the_passage(prediction, expected):
    assert errors.kind(prediction, ["Berta Holm"], PASSAGE) is expected


def test_shares_add_up_to_a_hundred_in_every_condition():
    predictions = ["Berta Holm", "Anton Riss", "", "Berta Holm"]
    answers = pd.DataFrame({"prediction": predictions, "condition": ["a", "a", "a", "b"]})
    answers = answers.assign(id="one", golds=[["Berta Holm"]] * 4)
    shares = errors.kinds(answers, {"one": PASSAGE})
    assert shares.loc["a"].tolist() == pytest.approx([100 / 3, 100 / 3, 100 / 3, 0])
    assert shares.loc["b"].tolist() == [100, 0, 0, 0]


def answers_with(wrong: int, right: int) -> pd.DataFrame:
    return pd.DataFrame({"em": [0.0] * wrong + [100.0] * right, "id": range(wrong + right)})


@pytest.mark.parametrize(
    "wrong, right, expected",
    [(40, 60, (4, 4)), (90, 10, (4, 4)), (2, 98, (2, 6)), (99, 1, (7, 1)), (0, 100, (0, 8))],
)
def test_drawn_answers_are_wrong_and_right_as_far_as_there_are_so_many(wrong, right, expected):
    found = errors.drawn(answers_with(wrong, right), 8, seed=0)
    assert ((found["em"] < 100).sum(), (found["em"] == 100).sum()) == expected
    assert found["id"].is_monotonic_increasing


def test_the_seed_decides_which_answers_are_drawn():
    answers = answers_with(50, 50)
    first, again, other = (errors.drawn(answers, 8, seed)["id"].tolist() for seed in (0, 0, 1))
    assert first == again and first != other


def test_few_answers_are_all_drawn():
    assert errors.drawn(answers_with(2, 1), 8, seed=0)["id"].tolist() == [0, 1, 2]
