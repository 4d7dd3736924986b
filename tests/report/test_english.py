"""What is said of real English follows from its records, beside those of the almanac."""

from dataclasses import replace

import made_up
import numpy as np
import pandas as pd
import pytest

from stage1 import store
from stage1.config import load_preset
from stage1.report import english, scaling
from stage1.report import english_answer as words
from stage1.report.english import AS_FOUND, PCA_INVERSE, English

OPTION3, OPTION1 = "option3_teacher_forced", "option1_reconstruction"
F1 = {
    (OPTION3, *PCA_INVERSE, 5_000, 32): 30.0,
    (OPTION3, *AS_FOUND, 5_000, 32): 40.0,
    (OPTION3, *PCA_INVERSE, 0, 32): 20.0,
    (OPTION3, *AS_FOUND, 0, 32): 6.0,
    (OPTION1, *PCA_INVERSE, 5_000, 32): 17.0,
    (OPTION1, *PCA_INVERSE, 0, 32): 9.0,
}
"""Mean F1 of a cell: objective, start, steps of the warm-up, width K."""
CELL = ["objective", *english.START, "warmup_steps", "compressed_width"]


def scores(f1: dict = F1) -> pd.DataFrame:
    """Return the scores of 20 questions on 5 articles with 3 seeds, for each cell."""
    rng, rows = np.random.default_rng(0), []
    for cell, mean in f1.items():
        table = made_up.product(id=[f"q{i}" for i in range(20)], seed=range(3))
        table["title"] = "t" + (table["id"].str[1:].astype(int) % 5).astype(str)
        table["f1"] = mean + rng.standard_normal(len(table))
        rows.append(table.assign(**dict(zip(CELL, cell, strict=True))))
    return pd.concat(rows, ignore_index=True)


def runs(table: pd.DataFrame) -> pd.DataFrame:
    means = table.groupby([*CELL, "seed"])[["f1"]].mean()
    means = means.assign(em=20.0, fvu=0.6, warmup_fvu=0.7, selection_f1=means["f1"] + 3)
    return means.reset_index().assign(learning_rate=1.0e-3)


def untrained(ceiling: float = 45.0) -> pd.DataFrame:
    f1 = {
        "embeddings": ceiling,
        "codebook": ceiling,
        "pca_inverse": 0.3,
        "question_only": 5.0,
        "shuffled_context": 2.0,
    }
    rows = [
        {"condition": name, "f1": x, "f1_low": x - 1, "f1_high": x + 1, "compressed_width": 32}
        for name, x in f1.items()
    ]
    return pd.DataFrame(rows).assign(fvu=0.7)


def trials(*rates: float, best: float = 1.0e-3) -> pd.DataFrame:
    """Return trials of every cell at these rates, the best one at `best`."""
    table = runs(scores()).query("seed == 0").drop(columns="learning_rate")
    found = table.merge(pd.DataFrame({"learning_rate": rates}), how="cross")
    return found.assign(selection_f1=10.0 + (found["learning_rate"] == best))


GRID = (3.0e-4, 1.0e-3, 3.0e-3)


def evidence(f1: dict = F1, **tables) -> English:
    own, training = scores(F1 | f1), store.read_json(english.SHIPPED / "training.json")
    made = English(load_preset("squad"), training, runs(own), own, untrained(), trials(*GRID))
    return replace(made, **tables)


@pytest.fixture(scope="module")
def almanac():
    e = made_up.evidence()
    return replace(e, untrained=e.untrained.assign(fvu=0.5))


def test_the_committed_records_answer(almanac):
    readers = scaling.load()
    said = " ".join([*words.answer(readers, almanac), *words.details(readers, almanac)])
    assert [e.D for e in readers] == [256, 512] and "12.2M" in said and "40.5M" in said
    assert "nan" not in said and "not measured" not in said


def test_retention_lies_between_this_models_floor_and_its_ceiling():
    e = evidence()
    assert (e.ceiling, e.floor, e.D, e.K) == (45.0, 5.0, 256, 32)
    table = e.table().set_index(["objective", "start"])
    for start, f1 in ((PCA_INVERSE, 30.0), (AS_FOUND, 40.0)):
        row = table.loc[(OPTION3, ", ".join(start))]
        assert row["f1"] == pytest.approx(f1, abs=0.5) and row["seeds"] == 3
        assert row["retention"] == pytest.approx(100 * (row["f1"] - 5) / 40)


def test_cells_without_a_warm_up_have_a_table_of_their_own():
    e = evidence()
    assert len(e.table()) == 3 and len(e.table(is_warm=False)) == 3
    assert set(e.table()["objective"]) == {OPTION3, OPTION1}


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        (trials(*GRID), "0.001"),
        (trials(*GRID, best=3.0e-4), "0.001, at the edge"),
        (trials(*GRID).iloc[:0], "0.001, not searched"),
    ],
)
def test_the_answer_says_how_well_a_rate_was_searched(almanac, tried, said):
    e = evidence(trials=tried)
    assert e.rate(OPTION3) == said
    assert f"(3 seeds, learning rate {said})" in words.of_reader(e, almanac)


def test_the_summary_gives_what_every_model_keeps(almanac):
    summary = words.summary([evidence()], almanac)
    kept = evidence().retention(evidence().f1(OPTION3))
    assert f"keeps {kept} % at D = 256 of what" in summary


def test_gains_are_given_for_each_start_with_the_objective_where_it_is_another(almanac):
    e = evidence()
    warm, cold = (PCA_INVERSE, True), (PCA_INVERSE, False)
    assert words.gained(e, warm, cold).startswith(("+9.", "+10."))
    runs = e.runs[(e.runs["objective"] != OPTION3) | (e.runs["warmup_steps"] > 0)]
    other = replace(e, runs=runs)
    assert words.gained(other, warm, cold).endswith(f"({OPTION1})")
    assert words.gained(other, (AS_FOUND, True), (AS_FOUND, False)) == "–"
    said = words.answer([e], almanac)[1]
    assert "To the PCA inverse the warm-up adds, in points: +" in said
    assert "at D = 256, +" in said and "on the almanac. To the adapter as found" in said
    assert "on English 0 of 6 best ones lie at the edge" in said
    edge = evidence(trials=trials(*GRID, best=3.0e-3))
    assert "on English 6 of 6 best ones" in words.answer([edge], almanac)[1]


def test_the_best_trial_of_every_cell_is_shown_with_its_rate():
    table = evidence(trials=trials(*GRID, best=3.0e-3)).on_selection()
    assert len(table) == len(F1) and set(table["learning rate"]) == {"0.003, at the edge"}
    assert set(table["selection F1"]) == {11.0} and set(table["rates"]) == {3}


def test_reconstruction_alone_is_compared_on_the_selection_split():
    found = trials(*GRID)
    found["selection_f1"] += 20 * (found["objective"] == OPTION3)
    assert "F1 11.0 against 31.0 at D = 256." in words.alone([evidence(trials=found)])


def test_all_language_models_stand_side_by_side(almanac):
    table = words.beside([evidence()], almanac).set_index("quantity")
    assert list(table.columns) == ["English, D = 256", "almanac"] and len(table) == 9
    start = table.loc["as found over PCA inverse, warmed up", "English, D = 256"]
    assert start.startswith(("+9.", "+10."))
    models = words.models([evidence()], almanac)
    assert models["ceiling"].tolist() == [45.0, almanac.ceiling]
