"""What is said of real English follows from its records, beside those of the almanac."""

from dataclasses import replace

import made_up
import numpy as np
import pandas as pd
import pytest

from stage1.config import StudyConfig
from stage1.report import english
from stage1.report.english import AS_FOUND, PCA_INVERSE, English

OPTION3, OPTION1 = "option3_teacher_forced", "option1_reconstruction"
F1 = {PCA_INVERSE: 30.0, AS_FOUND: 40.0}
"""Mean F1 of a start."""


def scores(f1: dict = F1) -> pd.DataFrame:
    """Return the scores of 20 questions on 5 articles with 3 seeds, for each start."""
    rng, rows = np.random.default_rng(0), []
    for (initialisation, scaling), mean in f1.items():
        table = made_up.product(id=[f"q{i}" for i in range(20)], seed=range(3))
        table["title"] = "t" + (table["id"].str[1:].astype(int) % 5).astype(str)
        table["f1"] = mean + rng.standard_normal(len(table))
        table["initialisation"], table["output_scaling"] = initialisation, scaling
        rows.append(table.assign(objective=OPTION3))
    return pd.concat(rows, ignore_index=True)


def runs(table: pd.DataFrame) -> pd.DataFrame:
    columns = ["objective", *english.START, "seed"]
    means = table.groupby(columns)[["f1"]].mean()
    means = means.assign(em=20.0, fvu=0.6, selection_f1=means["f1"] + 3)
    return means.reset_index().assign(learning_rate=1.0e-3, warmup_steps=5_000)


def untrained(ceiling: float = 45.0) -> pd.DataFrame:
    f1 = {
        "embeddings": ceiling,
        "codebook": ceiling,
        "pca_inverse": 0.3,
        "question_only": 5.0,
        "shuffled_context": 2.0,
    }
    rows = [
        {"condition": name, "f1": x, "f1_low": x - 1, "f1_high": x + 1} for name, x in f1.items()
    ]
    return pd.DataFrame(rows).assign(fvu=0.7)


def trials() -> pd.DataFrame:
    rows = {
        "objective": OPTION1,
        "initialisation": "random",
        "output_scaling": "unit_rms",
        "warmup_steps": 5_000,
        "learning_rate": [3.0e-4, 1.0e-3],
        "selection_f1": [15.0, 17.0],
    }
    return pd.DataFrame(rows)


def evidence(f1: dict = F1, **tables) -> English:
    own = scores(f1)
    made = English(StudyConfig(), runs(own), own, untrained(), trials())
    return replace(made, **tables)


@pytest.fixture(scope="module")
def almanac():
    e = made_up.evidence()
    return replace(e, untrained=e.untrained.assign(fvu=0.5))


def test_the_committed_records_answer(almanac):
    said = english.answer(english.load(), almanac)
    assert f"{english.TRAINING['parameters'] / 1e6:.1f}M parameters" in said[0]
    assert "nan" not in " ".join(said)


def test_retention_lies_between_this_models_floor_and_its_ceiling(almanac):
    e = evidence()
    assert (e.ceiling, e.floor) == (45.0, 5.0)
    table = e.table().set_index("start")
    for start, f1 in F1.items():
        row = table.loc[", ".join(start)]
        assert row["f1"] == pytest.approx(f1, abs=0.5) and row["seeds"] == 3
        assert row["retention"] == pytest.approx(100 * (row["f1"] - 5) / 40)


def test_the_answer_names_an_unsearched_rate_until_it_was_searched(almanac):
    assert "learning rate 0.001, which was not searched" in english.answer(evidence(), almanac)[0]
    searched = trials().assign(objective=OPTION3)
    both = pd.concat([trials(), searched])
    assert "not searched" not in english.answer(evidence(trials=both), almanac)[0]


@pytest.mark.parametrize(
    ("more", "costs"),
    [(-10.0, "costs more."), (10.0, "costs less."), (0.0, "within the interval.")],
)
def test_what_8x_costs_is_compared_with_the_almanac(almanac, more, costs):
    w = almanac.warmed
    level = w.retention(w.f1(w.recommended).mean)
    f1 = 5 + 0.4 * level + more  # that keeps as much as the almanac, and more
    said = english.answer(evidence({PCA_INVERSE: f1, AS_FOUND: f1}), almanac)[0]
    assert said.endswith(costs)


def test_the_selection_table_has_the_best_trial_or_else_the_mean_of_the_runs():
    table = evidence().on_selection().set_index(["objective", "initialisation"])
    assert table.loc[(OPTION1, "random"), ["selection_f1", "rates", "seeds"]].tolist() == [17, 2, 1]
    assert table.loc[(OPTION3, "pca_inverse"), ["rates", "seeds"]].tolist() == [1, 3]


def test_both_language_models_stand_side_by_side(almanac):
    table = english.beside(evidence(), almanac)
    assert list(table.columns[1:]) == ["English", "almanac"]
    gained = table.iloc[-1]
    assert (
        gained["English"].startswith(("+9.", "+10.")) and "instead of PCA inverse" in gained.iloc[0]
    )
    assert english.models(evidence(), almanac)["ceiling"].tolist() == [45.0, almanac.ceiling]


def test_an_objective_that_was_not_run_on_english_is_replaced_by_the_best_that_was(almanac):
    other = made_up.evidence(f1={OPTION1: 95.0})
    assert (almanac.warmed.recommended, other.warmed.recommended) == (OPTION3, OPTION1)
    assert evidence().objective(almanac) == evidence().objective(other) == OPTION3
