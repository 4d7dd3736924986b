"""Tables of scores, worked by hand: summaries, retention, means over seeds, conditions."""

import math

import numpy as np
import pandas as pd
import pytest

from stage1.names import FLOORS
from stage1.scoring.comparison import interval
from stage1.scoring.tables import TEACHER_FORCED, condition_table, over_seeds, retention, summary

TITLES = {"a1": "A", "a2": "A", "b1": "B"}
"""Three examples on two articles."""


def scored(f1: list[float], **columns) -> pd.DataFrame:
    """Return the scores of the three examples by one condition and seed."""
    table = pd.DataFrame({"id": TITLES.keys(), "title": TITLES.values(), "f1": f1})
    table = table.assign(prediction="x", em=0.0, ended=[True, True, False], empty=False)
    return table.assign(tokens=[2, 3, 4], **dict.fromkeys(TEACHER_FORCED, 0.5)).assign(**columns)


# ---------------------------------------------------------------- summaries


def test_a_summary_has_a_row_per_group_with_means_and_intervals():
    text = pd.DataFrame(
        {
            "condition": "text",
            "title": ["a", "a", "b", "b"],
            "f1": [100.0, 100.0, 50.0, 50.0],
            "em": [100.0, 100.0, 0.0, 0.0],
            "ended": [True, True, True, False],
            "empty": [False, False, False, True],
            "tokens": [1, 2, 3, 4],
            "ce_first": [1.0, 2.0, 3.0, 6.0],
            "ce_later": [math.nan, 2.0, math.nan, 4.0],
            "right_first": [1.0, 1.0, 0.0, 1.0],
            "right_later": [math.nan, 0.5, math.nan, 1.0],
        }
    )
    other = text.assign(condition="other", f1=0.0, ce_later=math.nan, right_later=math.nan)
    first, second = summary(pd.concat([text, other]), ["condition"]).to_dict("records")
    assert first == {
        "condition": "text", "f1": 75, "f1_low": 50, "f1_high": 100, "em": 50, "em_low": 0,
        "em_high": 100, "ended": 0.75, "empty": 0.25, "tokens": 2.5, "ce_first": 3.0,
        "right_first": 0.75, "questions": 4, "articles": 2,
        "ce_later": 3.0, "right_later": 0.75,  # over the answers that have later tokens
    }  # fmt: skip
    assert (second["condition"], second["f1"]) == ("other", 0)
    assert math.isnan(second["ce_later"]) and math.isnan(second["right_later"])


# ---------------------------------------------------------------- retention


@pytest.mark.parametrize(
    "score, expected", [(90.0, 100), (10.0, 0), (50.0, 50), (98.0, 110), (2.0, -10)]
)
def test_retention_is_the_share_of_the_way_from_floor_to_ceiling(score, expected):
    assert retention(score, ceiling=90.0, floor=10.0) == pytest.approx(expected)


@pytest.mark.parametrize("ceiling", [10.0, 9.0])
def test_retention_is_undefined_unless_the_ceiling_is_above_the_floor(ceiling):
    assert math.isnan(retention(50.0, ceiling, floor=10.0))


# ---------------------------------------------------------------- means over seeds


def test_scores_are_averaged_over_seeds_example_by_example():
    answers = pd.concat(
        [
            scored([10.0, 20.0, 60.0], condition="distill", seed=0),
            scored([30.0, 20.0, 0.0], condition="distill", seed=1, ended=False),
            scored([5.0, 6.0, 7.0], condition="text"),
        ]
    )
    table = over_seeds(answers, ["condition"])
    assert table["condition"].tolist() == ["distill"] * 3 + ["text"] * 3
    assert table["id"].tolist() == list(TITLES) * 2
    assert table["title"].tolist() == list(TITLES.values()) * 2
    assert table["f1"].tolist() == [20.0, 20.0, 30.0, 5.0, 6.0, 7.0]
    assert table["ended"].tolist() == [0.5, 0.5, 0.0, 1.0, 1.0, 0.0]
    assert table["tokens"].tolist() == [2, 3, 4] * 2 and not {"seed", "prediction"} & set(table)


def test_the_order_of_the_rows_changes_no_mean():
    seeds = [scored([10.0, 20.0, 60.0], condition="distill", seed=seed) for seed in (0, 1)]
    answers = pd.concat(seeds)
    answers["f1"] += 5 * answers["seed"]
    mixed = over_seeds(answers.sample(frac=1, random_state=0), ["condition"])
    mixed = mixed.sort_values("id", ignore_index=True)
    pd.testing.assert_frame_equal(mixed, over_seeds(answers, ["condition"]))


# ---------------------------------------------------------------- conditions


def conditions(question_only: float, shuffled_context: float) -> pd.DataFrame:
    """Return scores with means: embeddings 80, an adapter 50 over two seeds, a worse one 0."""
    return pd.concat(
        [
            scored([80.0, 70.0, 90.0], condition="embeddings"),
            scored([question_only] * 3, condition="question_only"),
            scored([shuffled_context] * 3, condition="shuffled_context"),
            scored([10.0, 40.0, 70.0], condition="distill", seed=0),
            scored([50.0, 60.0, 70.0], condition="distill", seed=1),
            scored([0.0, 0.0, 0.0], condition="as_found", seed=0),
        ]
    )


@pytest.mark.parametrize("floors", [(10.0, 20.0), (20.0, 10.0)])
def test_retention_counts_from_the_higher_floor_to_the_original_embeddings(floors):
    table = condition_table(conditions(*floors), {}).set_index("condition")
    f1 = {"embeddings": 80, "distill": 50, "as_found": 0} | dict(zip(FLOORS, floors, strict=True))
    assert table["f1"].to_dict() == pytest.approx(f1)
    expected = {name: 100 * (score - 20) / (80 - 20) for name, score in f1.items()}
    assert table["retention"].to_dict() == pytest.approx(expected)


def test_seeds_do_not_count_as_more_questions():
    table = condition_table(conditions(10.0, 20.0), {}).set_index("condition")
    assert (table["questions"] == 3).all() and (table["articles"] == 2).all()


def test_conditions_that_were_never_trained_need_no_seed():
    answers = conditions(10.0, 20.0).query("seed.isna()")
    with_seed, without = (
        condition_table(each, {}) for each in (answers, answers.drop(columns="seed"))
    )
    pd.testing.assert_frame_equal(with_seed, without)


def test_intervals_of_several_seeds_are_over_seeds_too():
    answers = conditions(10.0, 20.0)
    table = condition_table(answers, {}).set_index("condition")
    distill = interval(answers[answers["condition"] == "distill"])
    assert tuple(table.loc["distill", ["f1", "f1_low", "f1_high"]]) == pytest.approx(distill)
    ceiling = table.loc["embeddings", ["f1_low", "f1_high"]]
    assert tuple(ceiling) == pytest.approx((75, 90))  # the mean of either article


def test_a_condition_table_has_the_reconstruction_of_what_is_rebuilt():
    rebuilt = {"embeddings": {"mse": 0.0, "fvu": 0.0}, "distill": {"mse": 2.0, "fvu": 0.25}}
    table = condition_table(conditions(10.0, 20.0), rebuilt)
    assert table["condition"].tolist() == ["embeddings", *FLOORS, "distill", "as_found"]
    nan = float("nan")
    np.testing.assert_equal(table["fvu"].tolist(), [0.0, nan, nan, 0.25, nan])
    np.testing.assert_equal(table["mse"].tolist(), [0.0, nan, nan, 2.0, nan])
    columns = "condition f1 f1_low f1_high em em_low em_high retention"
    assert list(table)[:8] == columns.split()
