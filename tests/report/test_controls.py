"""Comparisons around the headline, on made-up records."""

import made_up
import pytest

from stage1.report import controls, decision
from stage1.report.evidence import AS_FOUND

OPTION3 = "option3_teacher_forced"


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


def test_baselines_and_ratios_take_the_best_learning_rate(c):
    baselines = c.baselines()
    assert (
        set(baselines["trained"]) == set(controls.BASELINES)
        and (baselines["rate"] == "0.003").all()
    )
    ratios = c.ratios()
    assert ratios["ratio"].tolist() == [2, 4, 8, 16, 32]
    assert ratios[OPTION3].tolist() == [25.5, 13.5, 7.5, 4.5, 3.0]
    assert (ratios["codebook"] == 99).all()


def test_words_follow_from_the_tables(c):
    models, projection, ratios = decision.beyond(c)
    assert "of the way from floor to ceiling, with 3 seeds each" in models
    assert "from 7.5 to 27.5 (one seed)" in projection
    assert "25.5 at 2x, 13.5 at 4x" in ratios
