"""Figures of the loss study and the report: what is drawn, in which colour, and what is written beside them."""

import made_up
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from stage1.config import StudyConfig
from stage1.report import evidence, plots, report_plots

F1 = "F1 (percent, higher is better)"


@pytest.fixture(scope="module")
def e(tmp_path_factory) -> evidence.Evidence:
    folder = made_up.write(tmp_path_factory.mktemp("records"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGE1_RECORDS", str(folder))
        return evidence.load(StudyConfig(), weights="full", benchmarks=folder / "full")


def test_a_saved_figure_has_its_numbers_beside_it_and_is_the_same_again(e, tmp_path):
    for folder in ("one", "two"):
        figure = report_plots.answer(e.table, e.on(e.runs), {"ceiling": 99.0})
        assert report_plots.save(figure, tmp_path / folder, "answer", e.table) is figure
    written = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert written == ["answer.csv", "answer.png", "answer.svg"]
    for name in written:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert pd.read_csv(tmp_path / "one/answer.csv")["f1"].tolist() == pytest.approx(
        e.table["f1"].tolist(), rel=1e-4
    )


def test_the_answer_has_every_objective_in_its_colour_best_on_top(e):
    (axis,) = report_plots.answer(e.table, e.on(e.runs), {"ceiling": 99.0, "floor": 3.0}).axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == e.table["objective"].tolist()[::-1] and axis.get_xlabel() == F1
    means = {
        line.get_ydata()[0]: (line.get_xdata()[0], to_hex(line.get_color()))
        for line in axis.lines
        if line.get_marker() == "o"
    }
    for place, name in enumerate(names):
        expected = e.table.set_index("objective").loc[name, "f1"]
        assert means[place] == (pytest.approx(expected), to_hex(plots.COLOURS[name]))


def test_every_run_is_a_point_of_generation_against_reconstruction(e):
    (axis,) = report_plots.generation_against_reconstruction(e.runs).axes
    drawn = sorted(
        tuple(point) for scatter in axis.collections for point in scatter.get_offsets().tolist()
    )
    assert drawn == sorted(zip(e.runs["fvu"], e.runs["f1"], strict=True))
    assert (
        axis.get_xscale() == "log"
        and "lower is better" in axis.get_xlabel()
        and axis.get_ylabel() == F1
    )


def test_budgets_stand_at_the_examples_seen(e):
    every = pd.concat([e.runs, e.sizes])
    left, right = report_plots.budgets(every, 99.0).axes
    assert [axis.get_title() for axis in (left, right)] == ["start: pca_inverse", "start: random"]
    places = {tuple(line.get_xdata()) for line in left.lines if len(line.get_xdata()) == 4}
    assert places == {(1_280, 7_500, 30_000, 120_000)}


def test_readings_have_a_column_per_setting_and_both_terms(e):
    table = e.gradients.assign(setting=e.gradients["objective"])
    figure = report_plots.readings(table)
    assert len(figure.axes) == 5 * 2
    shares = figure.axes[3 * 2].lines
    assert sorted(line.get_ydata()[0] for line in shares) == pytest.approx([0.05, 0.95])
    assert len(figure.axes[4 * 2].lines) == 1, "the cosine is the same from both sides"


def test_a_weight_grid_has_a_line_per_level_and_measure(e):
    levels = list(dict.fromkeys(e.grid["level"]))[:4]
    lines = {"answer_ce": {"f1": 70.0, "fvu": 0.5, "ce_first": 1.0}}
    axes = report_plots.weight_grid(e.grid, levels, lines).axes
    assert [axis.get_ylabel().replace("\n", " ").split(" (")[0] for axis in axes] == [
        "F1",
        "fvu",
        "first-token cross-entropy",
    ]
    for axis in axes:
        assert axis.get_xscale() == "log" and "weight" in axis.get_xlabel()
        assert len(
            [
                line
                for line in axis.lines
                if len(line.get_xdata()) == 3 and line.get_linestyle() == "-"
            ]
        ) == len(levels)
