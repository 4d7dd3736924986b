"""Figures of notebooks 04 and 05: what is drawn, in which colour, and what is saved beside them."""

import made_up
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from stage1 import names
from stage1.report import plots, report_plots
from stage1.report.plots import F1

LINES = {"answer_ce": {"f1": 70.0, "fvu": 0.5, "ce_first": 1.0}}


def test_a_saved_figure_has_its_numbers_beside_it_and_the_same_bytes_again(e, tmp_path):
    for folder in ("one", "two"):
        figure = report_plots.answer(e.table, e.select(e.runs), {"ceiling": 99.0})
        assert report_plots.save(figure, tmp_path / folder, "answer", e.table) is figure
    written = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert written == ["answer.csv", "answer.png", "answer.svg"]
    for name in written:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    f1 = pd.read_csv(tmp_path / "one" / "answer.csv")["f1"]
    assert f1.tolist() == pytest.approx(e.table["f1"].tolist(), rel=1e-4)


def test_the_answer_has_every_objective_in_its_colour_best_on_top(e):
    (axis,) = report_plots.answer(e.table, e.select(e.runs), {"ceiling": 99.0, "floor": 3.0}).axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == e.table["objective"].tolist()[::-1] and axis.get_xlabel() == F1
    means = [line for line in axis.lines if line.get_marker() == "o"]
    for y, (name, line) in enumerate(zip(labels, means, strict=True)):
        f1 = e.table.set_index("objective").loc[name, "f1"]
        assert line.get_xydata().tolist() == [[pytest.approx(f1), y]]
        assert to_hex(line.get_color()) == to_hex(plots.colour(name))


def test_every_run_is_a_point_of_generation_against_reconstruction(e):
    (axis,) = report_plots.generation_against_reconstruction(e.runs).axes
    points = [point for scatter in axis.collections for point in scatter.get_offsets().tolist()]
    assert sorted(points) == sorted(e.runs[["fvu", "f1"]].to_numpy().tolist())
    assert axis.get_xscale() == "log" and "lower is better" in axis.get_xlabel()
    assert axis.get_ylabel() == F1


def test_budgets_stand_at_the_examples_seen(e):
    axes = report_plots.budgets(pd.concat([e.runs, e.sizes]), 99.0).axes
    assert [axis.get_title() for axis in axes] == ["start: pca_inverse", "start: random"]
    budgets = {tuple(line.get_xdata()) for line in axes[0].lines if len(line.get_xdata()) == 4}
    assert budgets == {(1_280, 7_500, 30_000, 120_000)}


def test_ratios_have_intervals_and_dots_where_nothing_is_trained():
    rows = [
        (2, "distill", 99.0),
        (2, "codebook", 99.0),
        (8, "distill", 90.0),
        (8, "codebook", 99.0),
    ]
    table = pd.DataFrame(rows, columns=["ratio", "condition", "f1"])
    table = table.assign(f1_low=table["f1"] - 1, f1_high=table["f1"] + 0.5)
    (axis,) = report_plots.ratios(table, 99.3).axes
    drawn = {bars.get_label(): bars.lines for bars in axis.containers}
    (line, _, (whiskers,)), (lookup, *_) = drawn["distill"], drawn["codebook"]
    assert line.get_xydata().tolist() == [[2, 99.0], [8, 90.0]]
    ends = [segment.tolist() for segment in whiskers.get_segments()]
    assert ends == [[[2, 98.0], [2, 99.5]], [[8, 89.0], [8, 90.5]]]
    assert (line.get_linestyle(), lookup.get_linestyle()) == ("-", ":")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["2x", "8x"]


def test_readings_have_a_column_per_setting_and_both_terms(e):
    figure = report_plots.readings(e.gradients.assign(setting=e.gradients["objective"]))
    assert len(figure.axes) == 5 * 2
    shares = figure.axes[3 * 2].lines
    assert sorted(line.get_ydata()[0] for line in shares) == pytest.approx([0.05, 0.95])
    assert len(figure.axes[4 * 2].lines) == 1, "both terms have the same cosine"


def test_a_weight_grid_has_a_line_per_level_and_measure(e):
    levels = list(e.grid["level"].unique())
    axes = report_plots.weight_grid(e.grid, levels, LINES).axes
    labels = [axis.get_ylabel().replace("\n", " ").split(" (")[0] for axis in axes]
    assert labels == ["F1", "fvu", "first-token cross-entropy"]
    for axis in axes:
        assert axis.get_xscale() == "log" and "weight" in axis.get_xlabel()
        lines = [line for line in axis.lines if len(line.get_xdata()) == 3]
        assert len([line for line in lines if line.get_linestyle() == "-"]) == len(levels)


def test_an_eighth_objective_appears_in_every_figure(monkeypatch):
    new = names.Objective("an eighth one", "#123456", "Not an objective of the study.")
    monkeypatch.setitem(names.OBJECTIVES, "eighth", new)
    e = made_up.evidence()
    levels = e.runs.assign(level=e.runs["initialisation"] + ", " + e.runs["output_scaling"])
    table = e.table.rename(columns={"objective": "condition"}).assign(loss_ratio=1, em_low=0)
    table = table.assign(right_first=0.5, right_later=0.5, em_high=100)
    curve = pd.DataFrame({"step": [0, 1], "kl": 1.0, "kl_weighted": 1.0, "gradient_norm": 1.0})
    figures = [
        report_plots.answer(e.table, e.select(e.runs), {}),
        report_plots.generation_against_reconstruction(e.runs),
        report_plots.budgets(pd.concat([e.runs, e.sizes]), 99.0),
        report_plots.weight_grid(e.grid, ["x"], LINES | {"eighth": LINES["answer_ce"]}),
        plots.factors(levels, list(levels["level"].unique())),
        plots.scores(table),
        plots.mismatch(table),
        plots.training(curve, pd.DataFrame({"step": [0]}), "eighth"),
        plots.widths(table.assign(K=24), 99.0, 24),
    ]
    for figure in figures:
        artists = [a for axis in figure.axes for a in (*axis.lines, *axis.collections)]
        colours = [a.get_color() if hasattr(a, "get_color") else a.get_edgecolor() for a in artists]
        shown = {to_hex(c) for each in colours for c in ([each] if isinstance(each, str) else each)}
        assert "#123456" in shown
