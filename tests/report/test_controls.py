"""Comparisons around the headline, on made-up records."""

from dataclasses import replace

import made_up
import pytest

from stage1 import store
from stage1.report import controls, decision, results
from stage1.report.evidence import AS_FOUND

OPTION3, OPTION1 = "option3_teacher_forced", "option1_reconstruction"
BOTH = ("answer_ce", OPTION3)


@pytest.fixture(scope="module")
def c() -> controls.Controls:
    return made_up.controls()


def test_lengths_of_the_warm_up_stand_side_by_side(c):
    table = c.lengths().set_index("objective")
    assert list(table) == [
        f"{adapter}: {steps} steps"
        for adapter in ("pca_inverse, calibrated", ", ".join(AS_FOUND))
        for steps in ("0", "471", "5,000")
    ]
    one = [table.loc[OPTION3, f"pca_inverse, calibrated: {x} steps"] for x in ("0", "471", "5,000")]
    assert one == ["73.2 ± 0.2", "87.2 ± 0.2", "88.2 ± 0.2"]


def test_every_language_model_has_both_starts_and_its_own_ceiling(c):
    table = c.language_models()
    assert table["language model"].tolist() == ["shipped", "shipped", "other", "other"]
    assert table.loc[2, "F1"].startswith("83.2 [") and (table["seeds"] == 3).all()
    assert table.loc[0, "retention"].startswith(f"{100 * (88.2 - 3) / (99 - 3):.1f} [")


def test_every_baseline_is_compared_with_the_recipe_and_the_ceiling(c):
    table = c.baselines().set_index(["trained", "objective"])
    kinds = ["adapter, no warm-up", controls.RECIPE, *controls.BASELINES]
    assert sorted(table.index) == sorted((kind, name) for kind in kinds for name in BOTH)
    rows = {kind: table.loc[(kind, OPTION3)] for kind in kinds}
    assert rows[controls.RECIPE]["F1"].startswith("88.2 [")
    assert rows[controls.RECIPE]["over the recipe"] == "–"
    assert rows[controls.RECIPE]["over the ceiling"].startswith("-10.8 [-11.3, -10.3")
    assert rows["adapter, no warm-up"]["over the recipe"].startswith("-15.0 [")
    assert rows["affine map, warm-up"]["over the recipe"].startswith("-48.0 [")
    assert rows[controls.PROJECTION]["over the recipe"].startswith("+10.0 [")
    assert rows[controls.CONTROL]["over the ceiling"].startswith("+0.1 [")
    assert (table["seeds"] == 3).all()


def test_ratios_have_intervals_and_the_recipe_at_its_own_width(c):
    table = c.ratios().set_index(["ratio", "condition"])
    assert table.index.levels[0].tolist() == [2, 4, 8, 16, 32]
    assert (table["K"] * table.index.get_level_values("ratio") == controls.D).all()
    option3, option1 = (table.xs(name, level="condition") for name in (OPTION3, OPTION1))
    assert option3["f1"].tolist() == pytest.approx([96.2, 48.2, 88.2, 12.2, 6.2])
    assert option1["f1"].tolist() == pytest.approx([93.2, 45.2, 65.2, 9.2, 3.2])
    for trained in (option3, option1):
        assert (trained["f1_low"] < trained["f1"]).all() and (trained["seeds"] == 3).all()
        assert (trained["f1_high"] > trained["f1"]).all()
    lookup = table.xs("codebook", level="condition")
    assert (lookup["f1"] == 99).all() and (lookup["seeds"] == 0).all()


def test_words_follow_from_the_tables(c):
    models, projection, control, ratios = decision.beyond(c)
    assert "of the way from floor to ceiling, with 3 seeds each" in models
    assert projection.startswith("Most of what is missing is lost by PCA: a projection that is ")
    assert "reaches F1 98.2 [" in projection and "10.0 [10.0, 10.0] more" in projection
    assert control.startswith("Where nothing is compressed, training gains 0.1 [")
    assert "of the 1.0 points that are left" in control
    assert "96.2 [" in ratios and "] at 2x, 48.2 [" in ratios
    assert ratios.endswith(" At 16x the best learning rate is at the edge of its grid.")
    inside = c.trials.assign(selection_f1=(c.trials["learning_rate"] == 1.0e-3).astype(float))
    assert decision.by_ratio(replace(c, trials=inside)).endswith("] at 32x.")


def test_the_recipe_has_its_name_where_the_records_recommend_another(c):
    assert decision.recipe_name(c) == "the recipe"
    other = made_up.controls(f1={"option1_reconstruction": 80.0})
    assert decision.recipe_name(other).startswith("option 3 (reconstruction and")
    assert decision.by_ratio(other).startswith("By compression ratio, option 3 (")


def with_baselines(c: controls.Controls, **f1: float) -> controls.Controls:
    return replace(c, baseline_scores=made_up.baseline_scores(c.evidence.warm_runs, **f1))


@pytest.mark.parametrize(
    "f1, words",
    [
        (93.9, "Most of what is missing is lost by PCA"),
        (93.0, "A part of what is missing is lost by PCA"),
        (88.0, "That PCA loses what is missing is not shown"),
        (80.0, "That PCA loses what is missing is not shown"),
    ],
)
def test_pca_loses_most_only_if_the_projection_passes_the_middle_of_recipe_and_ceiling(
    c, f1, words
):
    """The recipe has F1 88.2 and the ceiling 99; a seed is worth 0.2."""
    assert decision.lost_by_pca(with_baselines(c, projection=f1)).startswith(words)


@pytest.mark.parametrize(
    "f1, words",
    [
        (98.5, "it hardly teaches the task"),
        (99.0, "whether the objective also teaches the task is open"),
        (99.7, "the objective also teaches the task"),
    ],
)
def test_the_control_says_whether_the_objective_teaches_the_task(c, f1, words):
    assert decision.taught(with_baselines(c, control=f1)).endswith(f"{words}.")


@pytest.mark.parametrize("name", ["runs_ratios", "runs_baselines"])
def test_rows_and_scores_of_a_committed_table_agree(name):
    rows, scores = (results.committed("full", f"{name}.{kind}") for kind in ("csv", "parquet"))
    by = [*controls.FIELDS, *results.ADAPTER, "seed"]
    means = scores.groupby(by, observed=True)["f1"].mean()
    assert means.to_dict() == pytest.approx(rows.set_index(by)["f1"].to_dict(), abs=1e-4)
    shared = store.read_json(store.records_folder() / f"full/{name}.json")
    assert shared["runs"] == len(rows)
