"""What is said of real English follows from its records, beside those of the almanac."""

from dataclasses import replace

import made_up
import numpy as np
import pandas as pd
import pytest

from stage1 import store
from stage1.config import load_preset
from stage1.report import english
from stage1.report import english_answer as words
from stage1.report.english import AS_FOUND, PCA_INVERSE, English

OPTION3, OPTION1 = "option3_teacher_forced", "option1_reconstruction"
F1 = {
    (OPTION3, *PCA_INVERSE, 5_000, 32): 30.0,
    (OPTION3, *AS_FOUND, 5_000, 32): 40.0,
    (OPTION3, *PCA_INVERSE, 0, 32): 20.0,
    (OPTION3, *AS_FOUND, 0, 32): 6.0,
    (OPTION1, *PCA_INVERSE, 5_000, 32): 17.0,
    (OPTION3, *PCA_INVERSE, 5_000, 16): 10.0,
    (OPTION3, *PCA_INVERSE, 0, 256): 47.0,
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


def untrained(ceiling: float = 45.0, widths: tuple = (32, 16)) -> pd.DataFrame:
    f1 = {
        "embeddings": ceiling,
        "codebook": ceiling,
        "pca_inverse": 0.3,
        "question_only": 5.0,
        "shuffled_context": 2.0,
    }
    rows = [
        {"condition": name, "f1": x, "f1_low": x - 1, "f1_high": x + 1, "compressed_width": K}
        for name, x in f1.items()
        for K in widths
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
    said = words.answer(english.load(), almanac)
    assert "12.2M parameters" in said[0] and "nan" not in " ".join(said)


def test_retention_lies_between_this_models_floor_and_its_ceiling():
    e = evidence()
    assert (e.ceiling, e.floor, e.D, e.K) == (45.0, 5.0, 256, 32)
    table = e.table().set_index(["objective", "start"])
    for start, f1 in ((PCA_INVERSE, 30.0), (AS_FOUND, 40.0)):
        row = table.loc[(OPTION3, ", ".join(start))]
        assert row["f1"] == pytest.approx(f1, abs=0.5) and row["seeds"] == 3
        assert row["retention"] == pytest.approx(100 * (row["f1"] - 5) / 40)


def test_cells_of_other_ratios_and_without_a_warm_up_stay_out_of_the_table():
    e = evidence()
    assert len(e.table()) == 3 and len(e.table(is_warm=False)) == 2
    assert set(e.table(is_warm=False)["objective"]) == {OPTION3}


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
    assert f"(3 seeds, learning rate {said})" in words.answer(e, almanac)[0]


@pytest.mark.parametrize(
    ("more", "costs"),
    [(-10.0, "costs more."), (10.0, "costs less."), (0.0, "within the interval.")],
)
def test_what_8x_costs_is_compared_with_the_almanac(almanac, more, costs):
    w = almanac.warmed
    level = w.retention(w.f1(w.recommended).mean)
    f1 = 5 + 0.4 * level + more  # that keeps as much as the almanac, and more
    both = {(OPTION3, *start, 5_000, 32): f1 for start in english.STARTS}
    assert words.answer(evidence(both), almanac)[0].endswith(costs)


def test_the_gain_of_the_warm_up_is_given_for_each_start():
    table = evidence().gains()
    assert list(table["start"]) == [", ".join(start) for start in english.STARTS]
    gains = [float(gain.split()[0]) for gain in table["gain"]]
    assert gains == pytest.approx([10, 34], abs=1)


def test_ratios_show_what_was_measured_and_a_dash_for_the_rest():
    table = evidence().ratios([OPTION3, OPTION1]).set_index("K")
    assert list(table["ratio"]) == ["8x", "16x"]
    assert table.loc[16, OPTION3].startswith(("9.", "10.")) and table.loc[16, OPTION1] == "–"


def test_the_control_is_compared_with_the_ceiling():
    row = evidence().control().iloc[0]
    assert row["objective"] == OPTION3 and row["above the ceiling"].startswith(("+1.", "+2."))


def test_both_language_models_stand_side_by_side(almanac):
    table = words.beside(evidence(), almanac).set_index("after the warm-up unless untrained")
    assert list(table.columns) == ["English", "almanac"]
    start = table.loc["adapter as found instead of PCA inverse: F1 gained", "English"]
    assert start.startswith(("+9.", "+10."))
    warm = table.loc["warm-up instead of none, adapter as found: F1 gained", "English"]
    assert warm.startswith(("+33.", "+34."))
    models = words.models(evidence(), almanac)
    assert models["ceiling"].tolist() == [45.0, almanac.ceiling]


def test_an_objective_that_was_not_run_on_english_is_replaced_by_the_best_that_was(almanac):
    other = made_up.evidence(f1={OPTION1: 95.0})
    assert (almanac.warmed.recommended, other.warmed.recommended) == (OPTION3, OPTION1)
    assert evidence().objective(almanac) == evidence().objective(other) == OPTION3
