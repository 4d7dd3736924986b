"""Figures: what is on their axes, in which colour, and that every axis says its unit and which way is better."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from stage1.objectives import OBJECTIVES
from stage1.report import plots

PERCENT = "(percent, higher is better)"
NAMES = list(OBJECTIVES)


def drawn(figure: Figure) -> list[plt.Axes]:
    """The panels of a figure that can be drawn without a warning, such as one for a missing letter."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    assert not plt.get_fignums()  # it shows where it is returned, and nowhere else
    for axis in figure.axes:
        assert (
            axis.get_xlabel()
            and not axis.spines["top"].get_visible()
            and not axis.spines["right"].get_visible()
        )
    return figure.axes


def curves(axis: plt.Axes) -> list:
    """The lines of more than two points: no guides across the panel, and no ends of whiskers."""
    return [
        line for line in axis.lines if len(line.get_xdata()) > 2 and line.get_linestyle() != "None"
    ]


def guides(axis: plt.Axes) -> list[float]:
    """Where the vertical lines across the panel stand."""
    return [
        line.get_xdata()[0]
        for line in axis.lines
        if len(line.get_xdata()) == 2 and line.get_linestyle() == ":"
    ]


def legend(axis: plt.Axes) -> list[str]:
    """Labels of the panel's own legend, or of the figure's where it has one for all panels."""
    shown = axis.get_legend() or axis.figure.legends[0]
    return [text.get_text() for text in shown.get_texts()]


def points(axis: plt.Axes) -> list[tuple]:
    """Colour of the edge, filled or not, and places of every scatter that has points."""
    scatters = [scatter for scatter in axis.collections if len(scatter.get_offsets())]
    return [
        (
            to_hex(scatter.get_edgecolor()[0]),
            len(scatter.get_facecolor()) > 0,
            scatter.get_offsets().tolist(),
        )
        for scatter in scatters
    ]


# ---------------------------------------------------------------- colours


def test_every_objective_has_a_colour_of_its_own():
    colours = [to_rgb(plots.COLOURS[name]) for name in OBJECTIVES]
    assert len(colours) == 7 == len(set(colours))
    apart = [np.abs(np.subtract(*pair)).max() for pair in itertools.combinations(colours, 2)]
    assert min(apart) > 0.1


def test_no_objective_looks_like_a_condition_that_needs_no_training():
    tables = ["text", "embeddings", "codebook", "pca_inverse", "random_projection"]
    untrained = {
        to_hex(plots.COLOURS[name]) for name in (*tables, "question_only", "shuffled_context")
    }
    assert not untrained & {to_hex(plots.COLOURS[name]) for name in OBJECTIVES}


# ---------------------------------------------------------------- panels


@pytest.mark.parametrize("count", [1, 3])
def test_panels_stand_in_one_row_in_the_style_of_the_study(count):
    before = dict(plt.rcParams)
    figure, axes = plots.panels(count, width=3.0, height=2.0)
    assert len(axes) == len(figure.axes) == count and figure.get_size_inches().tolist() == [
        3.0 * count,
        2.0,
    ]
    assert figure.get_layout_engine() is not None and dict(plt.rcParams) == before


# ---------------------------------------------------------------- data


def test_token_statistics_show_every_split_the_budget_and_counts_by_rank():
    lengths = pd.DataFrame(
        {"split": ["train"] * 4 + ["test"] * 2, "tokens": [20, 30, 30, 50, 40, 60]}
    )
    left, right = drawn(plots.token_statistics(lengths, np.array([0, 5, 100, 0, 20]), budget=80))
    assert legend(left) == ["train", "test", "budget"] and guides(left) == [80]
    assert [to_hex(patch.get_edgecolor()) for patch in left.patches] == [
        to_hex(plots.COLOURS[name]) for name in ("train", "test")
    ]
    for patch in left.patches:  # the shares add up to one
        x, y = patch.get_xy().T
        assert np.trapezoid(y, x) == pytest.approx(1)
    assert left.get_xlabel() == "prompt length (tokens)" and "share of prompts" in left.get_ylabel()
    (line,) = right.lines
    assert line.get_xdata().tolist() == [1, 2, 3] and line.get_ydata().tolist() == [100, 20, 5]
    assert right.get_xscale() == right.get_yscale() == "log"
    assert right.get_xlabel() == "rank of the token" and "occurrences" in right.get_ylabel()


def test_a_budget_below_the_longest_prompt_is_still_on_the_panel():
    lengths = pd.DataFrame({"split": "selection", "tokens": [20, 90]})
    left, _ = drawn(plots.token_statistics(lengths, np.array([1, 2]), budget=50))
    low, high = left.get_xlim()
    assert low < 20 and high > 90 and guides(left) == [50]


def test_a_spectrum_shows_variance_and_what_is_kept_in_percent():
    parts = [
        pd.DataFrame(
            {"weighting": name, "component": [1, 2, 3], "variance": variance, "kept": kept}
        )
        for name, variance, kept in [
            ("token", [4.0, 2.0, 1.0], [0.5, 0.8, 1.0]),
            ("vocabulary", [3, 3, 3], [0.3] * 3),
        ]
    ]
    left, right = drawn(plots.spectrum(pd.concat(parts), width=2))
    assert [line.get_ydata().tolist() for line in curves(left)] == [[4, 2, 1], [3, 3, 3]]
    assert [line.get_ydata().tolist() for line in curves(right)] == [[50, 80, 100], [30, 30, 30]]
    for axis in (left, right):
        assert [line.get_color() for line in curves(axis)] == [
            plots.COLOURS["token"],
            plots.COLOURS["vocabulary"],
        ]
        assert guides(axis) == [2]
    assert left.get_yscale() == "log" and "embedding units squared" in left.get_ylabel()
    assert (
        PERCENT in right.get_ylabel().replace("variance kept ", "")
        and right.get_xlabel() == "dimensions kept, K"
    )
    assert legend(right) == ["token-weighted", "vocabulary-weighted", "K = 2"]


# ---------------------------------------------------------------- conditions


def summary(conditions: list[str], **columns) -> pd.DataFrame:
    means = 10.0 * np.arange(1, len(conditions) + 1)
    table = pd.DataFrame(
        {"condition": conditions, "f1": means, "f1_low": means - 2, "f1_high": means + 5}
    )
    return table.assign(em=means / 2, em_low=means / 2 - 1, em_high=means / 2 + 3, **columns)


def test_scores_have_a_point_with_its_interval_per_condition_and_metric():
    conditions = ["text", *NAMES, "shuffled_context"]
    table = summary(conditions)
    axes = drawn(plots.scores(table))
    assert [axis.get_xlabel() for axis in axes] == [f"F1 {PERCENT}", f"EM {PERCENT}"]
    for axis, metric in zip(axes, ("f1", "em"), strict=True):
        assert len(axis.containers) == len(conditions)
        for place, (bar, row) in enumerate(
            zip(axis.containers, table.to_dict("records"), strict=True)
        ):
            point, _, (whiskers,) = bar.lines
            height = len(conditions) - 1 - place  # the first on top
            assert (point.get_xdata().item(), point.get_ydata().item()) == (row[metric], height)
            (segment,) = whiskers.get_segments()
            assert segment[:, 0].tolist() == [row[f"{metric}_low"], row[f"{metric}_high"]]
            assert point.get_color() == plots.COLOURS[row["condition"]]
        low, high = axis.get_ylim()
        assert low < 0 and high > len(conditions) - 1
    assert [label.get_text() for label in axes[0].get_yticklabels()] == conditions
    assert [label.get_text() for label in axes[1].get_yticklabels()] == [""] * len(conditions)


def test_scores_may_be_of_one_metric_and_say_which_names_were_asked_about():
    (axis,) = drawn(
        plots.scores(summary(["text", "text"], names=["seen", "unseen"]), metrics=["em"])
    )
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "text, seen names",
        "text, unseen names",
    ]
    assert axis.get_xlabel() == f"EM {PERCENT}"


def test_widths_have_a_line_per_condition_the_ceiling_and_the_width_of_the_study():
    parts = [summary([name] * 3, K=[12, 24, 48]) for name in ("pca_inverse", "codebook")]
    (axis,) = drawn(plots.widths(pd.concat(parts), ceiling=90.0, width=24))
    assert [line.get_color() for line in curves(axis)] == [
        plots.COLOURS["pca_inverse"],
        plots.COLOURS["codebook"],
    ]
    assert all(line.get_xdata().tolist() == [12, 24, 48] for line in curves(axis))
    assert all(line.get_ydata().tolist() == [10, 20, 30] for line in curves(axis))
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [90]
    assert guides(axis) == [24] and [tick.get_text() for tick in axis.get_xticklabels()] == [
        "12",
        "24",
        "48",
    ]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("dimensions kept, K", f"F1 {PERCENT}")
    assert set(legend(axis)) == {"pca_inverse", "codebook", "original embeddings", "K = 24"}
    assert axis.get_ylim()[0] < 0 and axis.get_ylim()[1] > 100


# ---------------------------------------------------------------- training


def curve(*terms: str) -> pd.DataFrame:
    table = pd.DataFrame(
        {"step": range(4), "gradient_norm": [3.0, 2.0, 1.0, 0.5], "loss": [9.0, 8.0, 7.0, 6.0]}
    )
    for place, term in enumerate(terms):
        values = np.array([8.0, 4.0, 2.0, 1.0]) + place
        table = table.assign(**{term: values, f"{term}_weighted": 3 * values, f"{term}_tokens": 10})
    return table


SELECTION = pd.DataFrame(
    {"step": [0, 2, 4], "f1": [1.0, 20.0, 40.0], "right_first": [0.1, 0.5, 0.9]}
)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_shows_terms_gradient_norm_and_selection_in_the_objectives_colour(objective):
    left, middle, right = drawn(
        plots.training(curve("reconstruction", "cross_entropy"), SELECTION, objective)
    )
    assert [line.get_ydata().tolist() for line in left.lines] == [
        [8, 4, 2, 1],
        [9, 5, 3, 2],
    ]  # unweighted
    assert len({line.get_linestyle() for line in left.lines}) == 2
    assert legend(left) == [
        "reconstruction (squared error per dimension)",
        "cross_entropy (nats per token)",
    ]
    assert [line.get_ydata().tolist() for line in middle.lines] == [[3, 2, 1, 0.5]]
    free, forced = right.lines
    assert free.get_ydata().tolist() == [
        1,
        20,
        40,
    ] and forced.get_ydata().tolist() == pytest.approx([10, 50, 90])
    assert legend(right) == ["F1, free-running", "first token right, teacher-forced"]
    assert {line.get_color() for line in (*left.lines, *middle.lines, free)} == {
        plots.COLOURS[objective]
    }
    assert forced.get_color() == "grey"
    assert (
        left.get_ylabel() == "value (lower is better)"
        and right.get_ylabel() == "percent (higher is better)"
    )
    assert (
        "norm" in middle.get_ylabel()
        and [axis.get_xlabel() for axis in (left, middle, right)] == ["step"] * 3
    )


@pytest.mark.parametrize(
    "term, unit", [("kl", "nats per token"), ("reconstruction", "squared error per dimension")]
)
def test_a_single_term_is_a_single_line_with_its_unit(term, unit):
    left, _, _ = drawn(plots.training(curve(term), SELECTION, "distill"))
    assert len(left.lines) == 1 and legend(left) == [f"{term} ({unit})"]


def test_training_without_a_selection_split_leaves_its_panel_empty():
    _, middle, right = drawn(plots.training(curve("kl"), pd.DataFrame({"step": [0, 4]}), "distill"))
    assert len(middle.lines) == 1 and not right.lines and right.get_legend() is None


def test_mismatch_has_one_point_per_objective_and_two_for_teacher_forcing():
    n = np.arange(7)
    table = pd.DataFrame({"condition": NAMES, "loss_ratio": 0.1 * n, "f1": 10.0 * n, "em": 9.0 * n})
    table = table.assign(right_first=0.05 * n, right_later=0.12 * n)
    left, right = drawn(plots.mismatch(table))
    colours = [to_hex(plots.COLOURS[name]) for name in NAMES]
    assert [colour for colour, _, _ in points(left)] == colours and legend(left) == NAMES
    np.testing.assert_allclose(
        [place for _, _, (place,) in points(left)], table[["loss_ratio", "f1"]]
    )
    first, later = points(right)[::2], points(right)[1::2]
    assert [colour for colour, _, _ in first] == [colour for colour, _, _ in later] == colours
    assert all(filled for _, filled, _ in first) and not any(filled for _, filled, _ in later)
    np.testing.assert_allclose([place for _, _, (place,) in first], np.stack([5 * n, 9 * n], 1))
    np.testing.assert_allclose([place for _, _, (place,) in later], np.stack([12 * n, 9 * n], 1))
    (diagonal,) = right.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [100, 100]]
    assert left.get_xlabel() == "last loss / first loss (lower is better)"
    assert (
        left.get_ylabel() == f"F1, free-running {PERCENT}"
        and right.get_ylabel() == f"EM, free-running {PERCENT}"
    )
    assert "teacher-forced (percent): ● first, □ later" in right.get_xlabel()


# ---------------------------------------------------------------- factors


LEVELS = [
    "random, unit_rms",
    "random, calibrated",
    "pca_inverse, unit_rms",
    "pca_inverse, calibrated",
]


def factor_runs(objectives: list[str]) -> pd.DataFrame:
    rows = [
        {
            "objective": name,
            "level": level,
            "seed": seed,
            "f1": 20.0 * LEVELS.index(level) + 5 * seed,
        }
        for name in objectives
        for level in LEVELS
        for seed in (0, 1, 2)
    ]
    return pd.DataFrame(rows)


def test_factors_have_a_point_per_run_in_the_row_of_its_objective():
    (axis,) = drawn(plots.factors(factor_runs(NAMES), LEVELS))
    found = points(axis)
    assert len(found) == 7 * 4 and all(len(places) == 3 for _, _, places in found)
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert rows == NAMES[::-1]  # the first on top
    for colour, _, places in found:
        (row,) = {round(y) for _, y in places}
        assert colour == to_hex(plots.COLOURS[rows[row]])
    assert sorted(x for _, _, places in found for x, _ in places) == sorted(
        factor_runs(NAMES)["f1"]
    )
    assert axis.get_xlabel() == f"F1 {PERCENT}"


def test_levels_of_a_factor_differ_in_marker_and_height_and_the_first_is_filled():
    (axis,) = drawn(plots.factors(factor_runs(["distill"]), LEVELS))
    by_f1 = sorted(points(axis), key=lambda found: found[2][0][0])  # in the order of the levels
    assert [filled for _, filled, _ in by_f1] == [True, False, False, False]
    heights = [places[0][1] for _, _, places in by_f1]
    assert (
        heights == sorted(heights, reverse=True)
        and len(set(heights)) == 4
        and max(map(abs, heights)) < 0.5
    )
    shapes = {tuple(map(tuple, scatter.get_paths()[0].vertices)) for scatter in axis.collections}
    assert len(shapes) == 4 and legend(axis) == LEVELS


def test_factors_leave_out_objectives_without_runs():
    (axis,) = drawn(plots.factors(factor_runs(["distill", "as_found"]), LEVELS))
    assert [label.get_text() for label in axis.get_yticklabels()] == ["distill", "as_found"]
    assert len(points(axis)) == 2 * 4
