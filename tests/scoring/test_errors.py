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
