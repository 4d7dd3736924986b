"""Figures: what they show and in which colour; every axis says its unit and what is better."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from stage1.names import CONDITIONS, OBJECTIVES
from stage1.report import plots
from stage1.report.plots import F1, PERCENT, colour

NAMES = list(OBJECTIVES)


def drawn(figure: Figure) -> list[Axes]:
    """Return the panels; fail on a warning while drawing, such as one for a missing glyph."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    assert not plt.get_fignums(), "a window owns the figure, so a notebook would show it twice"
    for axis in figure.axes:
        assert axis.get_xlabel()
        assert not any(axis.spines[side].get_visible() for side in ("top", "right"))
    return figure.axes


def curves(axis: Axes) -> list:
    """Return the lines of more than two points: no guides and no ends of whiskers."""
    lines = [line for line in axis.lines if len(line.get_xdata()) > 2]
    return [line for line in lines if line.get_linestyle() != "None"]


def guides(axis: Axes) -> list[float]:
    """Return where dotted vertical lines stand."""
    lines = [line for line in axis.lines if line.get_linestyle() == ":"]
    return [line.get_xdata()[0] for line in lines if len(line.get_xdata()) == 2]


def legend(axis: Axes) -> list[str]:
    """Return the labels of the panel's legend, or of the figure's."""
    shown = axis.get_legend() or axis.figure.legends[0]
    return [text.get_text() for text in shown.get_texts()]


def tick_labels(axis: Axes) -> list[str]:
    return [label.get_text() for label in axis.get_yticklabels()]


def points(axis: Axes) -> list[tuple]:
    """Return colour of the edge, filled or not, and place of every point."""
    found = []
    for scatter in axis.collections:
        places = scatter.get_offsets().tolist()
        edges = itertools.cycle(scatter.get_edgecolor())
        filled = len(scatter.get_facecolor()) > 0
        found += [
            (to_hex(edge), filled, *place) for edge, place in zip(edges, places, strict=False)
        ]
    return found


def test_objectives_differ_in_colour_from_each_other_and_from_conditions():
    colours = [to_rgb(colour(name)) for name in OBJECTIVES]
    apart = [np.abs(np.subtract(*pair)).max() for pair in itertools.combinations(colours, 2)]
    assert min(apart) > 0.1
    assert not set(colours) & {to_rgb(colour(name)) for name in CONDITIONS}


def test_panels_stand_in_a_grid_in_the_style_of_the_study():
    before = dict(plt.rcParams)
    figure, axes = plots.panels(3, width=3.0, height=2.0, rows=2)
    assert len(axes) == len(figure.axes) == 6 and figure.get_size_inches().tolist() == [9.0, 4.0]
    assert figure.get_layout_engine() is not None and dict(plt.rcParams) == before


def test_token_statistics_show_every_split_the_budget_and_counts_by_rank():
    lengths = pd.DataFrame(
        {"split": ["train"] * 4 + ["test"] * 2, "tokens": [20, 30, 30, 50, 40, 60]}
    )
    left, right = drawn(plots.token_statistics(lengths, np.array([0, 5, 100, 0, 20]), budget=80))
    assert legend(left) == ["train", "test", "budget"] and guides(left) == [80]
    edges = [to_hex(patch.get_edgecolor()) for patch in left.patches]
    assert edges == [to_hex(colour(name)) for name in ("train", "test")]
    for patch in left.patches:
        x, y = patch.get_xy().T
        assert np.trapezoid(y, x) == pytest.approx(1), "shares add up to one"
    assert left.get_xlabel() == "prompt length (tokens)" and "share of prompts" in left.get_ylabel()
    (line,) = right.lines
    assert line.get_xydata().tolist() == [[1, 100], [2, 20], [3, 5]]
    assert right.get_xscale() == right.get_yscale() == "log"
    assert right.get_xlabel() == "rank of the token" and "occurrences" in right.get_ylabel()


def test_a_budget_below_the_longest_prompt_is_still_on_the_panel():
    lengths = pd.DataFrame({"split": "selection", "tokens": [20, 90]})
    left, _ = drawn(plots.token_statistics(lengths, np.array([1, 2]), budget=50))
    low, high = left.get_xlim()
    assert low < 20 and high > 90 and guides(left) == [50]


def test_a_spectrum_shows_variance_and_the_share_kept_in_percent():
    token = {"weighting": "token", "variance": [4.0, 2.0, 1.0], "kept": [0.5, 0.8, 1.0]}
    vocabulary = {"weighting": "vocabulary", "variance": 3.0, "kept": 0.3}
    parts = [pd.DataFrame(part | {"component": [1, 2, 3]}) for part in (token, vocabulary)]
    left, right = drawn(plots.spectrum(pd.concat(parts), width=2))
    assert [line.get_ydata().tolist() for line in curves(left)] == [[4, 2, 1], [3, 3, 3]]
    assert [line.get_ydata().tolist() for line in curves(right)] == [[50, 80, 100], [30, 30, 30]]
    for axis in (left, right):
        lines = [line.get_color() for line in curves(axis)]
        assert lines == [colour("token"), colour("vocabulary")] and guides(axis) == [2]
    assert left.get_yscale() == "log" and "embedding units squared" in left.get_ylabel()
    assert right.get_ylabel() == f"variance kept {PERCENT}"
    assert right.get_xlabel() == "dimensions kept, K"
    assert legend(right) == ["token-weighted", "vocabulary-weighted", "K = 2"]


def summary(conditions: list[str], **columns) -> pd.DataFrame:
    """Return F1 of 10, 20, ... and half as much EM, with intervals."""
    f1 = 10.0 * np.arange(1, len(conditions) + 1)
    table = pd.DataFrame({"condition": conditions, "f1": f1, "f1_low": f1 - 2, "f1_high": f1 + 5})
    return table.assign(em=f1 / 2, em_low=f1 / 2 - 1, em_high=f1 / 2 + 3, **columns)


def test_scores_have_a_point_with_its_interval_per_condition_and_metric():
    table = summary(["text", *NAMES, "shuffled_context"])
    axes = drawn(plots.scores(table))
    assert [axis.get_xlabel() for axis in axes] == [f"F1 {PERCENT}", f"EM {PERCENT}"]
    for axis, metric in zip(axes, ("f1", "em"), strict=True):
        rows = table[::-1].to_dict("records")  # the first on top
        for y, (bar, row) in enumerate(zip(axis.containers, rows, strict=True)):
            point, _, (whiskers,) = bar.lines
            assert point.get_xydata().tolist() == [[row[metric], y]]
            (segment,) = whiskers.get_segments()
            assert segment[:, 0].tolist() == [row[f"{metric}_low"], row[f"{metric}_high"]]
            assert point.get_color() == colour(row["condition"])
        low, high = axis.get_ylim()
        assert low < 0 and high > len(table) - 1
    assert tick_labels(axes[0]) == table["condition"].tolist()[::-1]
    assert tick_labels(axes[1]) == [""] * len(table)


def test_scores_may_be_of_one_metric_and_say_which_names_were_asked_about():
    table = summary(["text", "text"], names=["seen", "unseen"])
    (axis,) = drawn(plots.scores(table, metrics=["em"]))
    assert tick_labels(axis) == ["text, unseen names", "text, seen names"]
    assert axis.get_xlabel() == f"EM {PERCENT}"


def test_widths_have_a_line_per_condition_the_ceiling_and_the_width_of_the_study():
    parts = [summary([name] * 3, K=[12, 24, 48]) for name in ("pca_inverse", "codebook")]
    (axis,) = drawn(plots.widths(pd.concat(parts), ceiling=90.0, width=24))
    lines = curves(axis)
    assert [line.get_color() for line in lines] == [colour("pca_inverse"), colour("codebook")]
    assert all(line.get_xydata().tolist() == [[12, 10], [24, 20], [48, 30]] for line in lines)
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [90]
    assert guides(axis) == [24]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["12", "24", "48"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("dimensions kept, K", F1)
    assert set(legend(axis)) == {"pca_inverse", "codebook", "original embeddings", "K = 24"}
    assert axis.get_ylim()[0] < 0 and axis.get_ylim()[1] > 100


def curve(*terms: str) -> pd.DataFrame:
    table = pd.DataFrame({"step": range(4), "gradient_norm": [3.0, 2.0, 1.0, 0.5], "loss": 9.0})
    for place, term in enumerate(terms):
        values = np.array([8.0, 4.0, 2.0, 1.0]) + place
        table = table.assign(**{term: values, f"{term}_weighted": 3 * values, f"{term}_tokens": 10})
    return table


SELECTION = pd.DataFrame(
    {"step": [0, 2, 4], "f1": [1.0, 20.0, 40.0], "right_first": [0.1, 0.5, 0.9]}
)
SELECTED = ["F1, free-running", "first token right, teacher-forced"]
UNITS = {
    "reconstruction": "reconstruction (squared error per dimension)",
    "cross_entropy": "cross_entropy (nats per token)",
    "kl": "kl (nats per token)",
}


def test_training_shows_terms_gradient_norm_and_selection_in_the_objectives_colour():
    terms = ("reconstruction", "cross_entropy")
    left, middle, right = drawn(plots.training(curve(*terms), SELECTION, "distill"))
    unweighted = [line.get_ydata().tolist() for line in left.lines]
    assert unweighted == [[8, 4, 2, 1], [9, 5, 3, 2]]
    assert len({line.get_linestyle() for line in left.lines}) == 2
    assert legend(left) == [*(UNITS[term] for term in terms), *SELECTED]
    assert not any(axis.get_legend() for axis in (left, middle, right)), "it would hide a curve"
    assert [line.get_ydata().tolist() for line in middle.lines] == [[3, 2, 1, 0.5]]
    free, forced = right.lines
    assert free.get_ydata().tolist() == [1, 20, 40]
    assert forced.get_ydata().tolist() == pytest.approx([10, 50, 90])
    coloured = {line.get_color() for line in (*left.lines, *middle.lines, free)}
    assert coloured == {colour("distill")} and forced.get_color() == "grey"
    assert left.get_ylabel() == "value (lower is better)" and "norm" in middle.get_ylabel()
    assert right.get_ylabel() == "percent (higher is better)"
    assert [axis.get_xlabel() for axis in (left, middle, right)] == ["step"] * 3


@pytest.mark.parametrize("terms", [("kl",), ("reconstruction",), tuple(UNITS)])
def test_every_term_is_a_line_with_its_unit(terms):
    left, _, _ = drawn(plots.training(curve(*terms), SELECTION, "distill"))
    assert len(left.lines) == len(terms)
    assert legend(left) == [*(UNITS[term] for term in terms), *SELECTED]


def test_training_without_a_selection_split_leaves_its_panel_empty():
    _, middle, right = drawn(plots.training(curve("kl"), pd.DataFrame({"step": [0, 4]}), "distill"))
    assert len(middle.lines) == 1 and not right.lines and legend(right) == [UNITS["kl"]]


def test_mismatch_has_one_point_per_objective_and_two_for_teacher_forcing():
    n = np.arange(len(NAMES))
    table = pd.DataFrame({"condition": NAMES, "loss_ratio": 0.1 * n, "f1": 10.0 * n, "em": 9.0 * n})
    left, right = drawn(plots.mismatch(table.assign(right_first=0.05 * n, right_later=0.12 * n)))
    edges, filled, x, y = zip(*points(left), strict=True)
    assert list(edges) == [to_hex(colour(name)) for name in NAMES] and all(filled)
    assert legend(left) == NAMES
    np.testing.assert_allclose([x, y], [0.1 * n, 10 * n])
    both = points(right)
    for found, first, percent in ((both[::2], True, 5 * n), (both[1::2], False, 12 * n)):
        edges, filled, x, y = zip(*found, strict=True)
        assert list(edges) == [to_hex(colour(name)) for name in NAMES] and set(filled) == {first}
        np.testing.assert_allclose([x, y], [percent, 9 * n])
    (diagonal,) = right.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [100, 100]]
    assert left.get_xlabel() == "last loss / first loss (lower is better)"
    assert left.get_ylabel() == f"F1, free-running {PERCENT}"
    assert right.get_ylabel() == f"EM, free-running {PERCENT}"
    assert "teacher-forced (percent): ● first, □ later" in right.get_xlabel()


LEVELS = [f"{start}, {scaling}" for start in ("random", "pca") for scaling in ("rms", "calibrated")]


def factor_runs(objectives: list[str]) -> pd.DataFrame:
    """Return runs with F1 of 20 per level and 5 per seed."""
    factors = itertools.product(objectives, enumerate(LEVELS), range(3))
    rows = [(name, level, seed, 20.0 * n + 5 * seed) for name, (n, level), seed in factors]
    return pd.DataFrame(rows, columns=["objective", "level", "seed", "f1"])


def test_factors_have_a_point_per_run_in_the_row_of_its_objective():
    runs = factor_runs(NAMES)
    (axis,) = drawn(plots.factors(runs, LEVELS))
    assert tick_labels(axis) == NAMES[::-1], "the first on top"
    for edge, _, _, y in points(axis):
        assert edge == to_hex(colour(tick_labels(axis)[round(y)]))
    assert sorted(x for _, _, x, _ in points(axis)) == sorted(runs["f1"])
    assert axis.get_xlabel() == F1


def test_levels_of_a_factor_differ_in_marker_and_height_and_the_first_is_filled():
    (axis,) = drawn(plots.factors(factor_runs(["distill"]), LEVELS))
    by_level = [points(axis)[3 * place] for place in range(4)]
    assert [filled for _, filled, _, _ in by_level] == [True, False, False, False]
    heights = [y for *_, y in by_level]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == 4
    assert max(map(abs, heights)) < 0.5
    shapes = {tuple(map(tuple, scatter.get_paths()[0].vertices)) for scatter in axis.collections}
    assert len(shapes) == 4 and legend(axis) == LEVELS


def test_factors_leave_out_objectives_without_runs():
    (axis,) = drawn(plots.factors(factor_runs(["distill", "as_found"]), LEVELS))
    assert tick_labels(axis) == ["distill", "as_found"] and len(points(axis)) == 2 * 4 * 3
