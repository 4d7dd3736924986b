"""Figures of notebooks 04 and 05, and saving a figure with the numbers behind it."""

from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stage1 import names, store
from stage1.report import plots
from stage1.report.plots import F1, LINES, MARKERS, dots, legend_below, panels

LEVELS = (names.BLUE, names.ORANGE, names.GREEN, names.PURPLE)
"""Colours of lines that stand for no objective."""


def save(figure: Figure, folder: Path, name: str, numbers: pd.DataFrame) -> Figure:
    """Write `<name>.svg`, `<name>.png` and the numbers behind them as `<name>.csv`.

    Returns the figure. The same figure gives the same files, byte for byte.
    """

    def svg(path: Path) -> None:
        figure.savefig(path, format="svg", metadata={"Date": None})

    def png(path: Path) -> None:
        figure.savefig(path, format="png", dpi=150)

    def csv(path: Path) -> None:
        numbers.to_csv(path, index=False, float_format="%.5g")

    with plt.rc_context({"svg.hashsalt": name}):
        for write in (svg, png, csv):
            store.write_atomically(folder / f"{name}.{write.__name__}", write)
    return figure


def mean_with_range(axis: Axes, runs: pd.DataFrame, by: str, measure: str, **look) -> None:
    """Draw a measure against `by`: the mean over seeds with their range."""
    seeds = runs.groupby(by)[measure].agg(["mean", "min", "max"])
    whiskers = [seeds["mean"] - seeds["min"], seeds["max"] - seeds["mean"]]
    axis.errorbar(
        seeds.index, seeds["mean"], whiskers, linewidth=1.2, markersize=4, capsize=3, **look
    )


def answer(table: pd.DataFrame, runs: pd.DataFrame, lines: Mapping[str, float]) -> Figure:
    """Plot F1 of every objective with its interval, and vertical lines to compare it with.

    `table` has columns `objective`, `f1`, `f1_low`, `f1_high`, the best first; `runs` has
    `objective` and `f1`, one point per run.
    """
    figure, (axis,) = panels(1, width=7.5, height=1.4 + 0.32 * len(table))
    for y, (_, row) in enumerate(table[::-1].iterrows()):
        name = row["objective"]
        seeds = runs.loc[runs["objective"] == name, "f1"]
        axis.scatter(seeds, [y - 0.22] * len(seeds), s=9, color=plots.colour(name), alpha=0.5)
        plots.mean_with_interval(axis, row, "f1", y, name)
        # Left of high scores, where the ceiling's line stands on the right.
        end, shift, side = ("f1_low", -5, "right") if row["f1"] > 85 else ("f1_high", 5, "left")
        text, place = f"{row['f1']:.1f}", (row[end], y)
        axis.annotate(text, place, (shift, -3), textcoords="offset points", fontsize=8, ha=side)
    for (name, value), style in zip(lines.items(), cycle([*LINES, (0, (1, 4))]), strict=False):
        label = f"{name} ({value:.1f})"
        axis.axvline(value, color="black", linewidth=1, linestyle=style, label=label)
    axis.set_yticks(range(len(table)), table["objective"][::-1])
    axis.set(xlabel=F1, xlim=(-2, 104), ylim=(-0.6, len(table) - 0.4))
    legend_below(figure, [axis], columns=3)
    return figure


def generation_against_reconstruction(runs: pd.DataFrame) -> Figure:
    """Plot F1 against fvu of every run (columns `objective`, `initialisation`, `fvu`, `f1`).

    Filled from the PCA inverse, hollow from a random start.
    """
    figure, (axis,) = panels(1, width=7.5, height=3.8)
    for name in plots.in_order(runs["objective"]):
        for start, filled in (("pca_inverse", True), ("random", False)):
            here = runs[(runs["objective"] == name) & (runs["initialisation"] == start)]
            label = name if filled else None
            dots(axis, here["fvu"], here["f1"], plots.colour(name), filled, s=26, label=label)
    plots.guide(axis, 1, "constant mean (fvu 1)")
    axis.set(xscale="log", xlabel="fraction of variance unexplained (fvu, lower is better)")
    axis.set(ylabel=F1, ylim=(-3, 103))
    legend_below(figure, [axis], columns=4)
    return figure


def budgets(runs: pd.DataFrame, ceiling: float) -> Figure:
    """Plot F1 against examples seen, one line per objective and one panel per start.

    Columns `objective`, `initialisation`, `examples_seen`, `f1`; means with the range of seeds.
    """
    figure, axes = panels(2, width=4.6, height=3.8)
    for axis, start in zip(axes, ("pca_inverse", "random"), strict=True):
        here = runs[runs["initialisation"] == start]
        for name in plots.in_order(here["objective"]):
            group = here[here["objective"] == name]
            look = {"color": plots.colour(name), "label": name, "marker": "o"}
            mean_with_range(axis, group, "examples_seen", "f1", **look)
        plots.ceiling_line(axis, ceiling)
        axis.set(xscale="log", xlabel="training examples seen (with repeats)")
        axis.set(title=f"start: {start}", ylabel=F1, ylim=(-3, 103))
    legend_below(figure, axes, columns=4)
    return figure


def ratios(table: pd.DataFrame, ceiling: float) -> Figure:
    """Plot F1 with its interval against the compression ratio D/K, one line per `condition`.

    Columns `ratio`, `condition`, `f1`, `f1_low`, `f1_high`. Dotted where nothing is trained.
    """
    figure, (axis,) = panels(1, width=7.5, height=3.6)
    for name, own in table.groupby("condition", sort=False):
        style = "-" if name in names.OBJECTIVES else ":"
        look: dict = {"color": plots.colour(name), "linestyle": style, "label": name}
        look |= {"marker": "o", "linewidth": 1.2, "markersize": 4, "capsize": 3}
        whiskers = [own["f1"] - own["f1_low"], own["f1_high"] - own["f1"]]
        axis.errorbar(own["ratio"], own["f1"], whiskers, **look)
    plots.ceiling_line(axis, ceiling)
    axis.set(xscale="log", xlabel="compression ratio D/K", ylabel=F1, ylim=(-3, 103))
    ticks = table["ratio"].unique()
    axis.set_xticks(ticks, [f"{ratio}x" for ratio in ticks])
    axis.minorticks_off()
    legend_below(figure, [axis], columns=3)
    return figure


def readings(gradients: pd.DataFrame) -> Figure:
    """Plot the readings of each loss term over training, one column per `setting`.

    Rows: value, gradient norm at the adapter and at the embeddings, share of AdamW's step, and the
    cosine between the two terms' gradients. Means over seeds.
    """
    measures = {
        "value": "value of\nthe term",
        "gradient_norm": "gradient norm,\nadapter",
        "embedding_gradient_norm": "gradient norm,\nembeddings",
        "step_share": "share of\nthe step",
        "cosine": "cosine of\nthe terms",
    }
    settings = list(gradients["setting"].unique())
    share = {"sharex": True, "sharey": "row"}
    figure, axes = panels(len(settings), width=3.25, height=1.75, rows=len(measures), **share)
    for (measure, setting), axis in zip(product(measures, settings), axes, strict=True):
        for term, group in gradients[gradients["setting"] == setting].groupby("term", sort=False):
            if measure == "cosine" and term != "reconstruction":
                continue  # both terms have the same cosine
            colour = "black" if measure == "cosine" else names.TERMS[term].colour
            mean = group.groupby("step")[measure].mean()
            axis.plot(mean.index, mean, color=colour, label=term, linewidth=1.2)
        axis.set_yscale("linear" if measure in ("step_share", "cosine") else "log")
        axis.set_ylabel(measures[measure] if setting == settings[0] else "")
        axis.set_title(setting if measure == "value" else "", fontsize=9)
        axis.set_xlabel("step" if measure == "cosine" else "")
    legend_below(figure, axes[:1], columns=2)
    return figure


def weight_grid(
    runs: pd.DataFrame, levels: Sequence[str], lines: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Plot F1, fvu and first-token cross-entropy against the weight of the reconstruction term.

    Columns `level`, `weight`, `f1`, `fvu`, `ce_first`; means with the range of seeds. `lines` holds
    the values of single terms, by objective.
    """
    measures = {
        "f1": F1,
        "fvu": "fvu (lower is better)",
        "ce_first": "first-token cross-entropy\n(nats, lower is better)",
    }
    figure, axes = panels(len(measures), width=4.0, height=3.9)
    for axis, (measure, label) in zip(axes, measures.items(), strict=True):
        looks = zip(levels, cycle(LEVELS), cycle(MARKERS), strict=False)
        for level, colour, marker in looks:
            look = {"color": colour, "label": level, "marker": marker}
            mean_with_range(axis, runs[runs["level"] == level], "weight", measure, **look)
        for (name, values), style in zip(lines.items(), cycle(LINES[1:]), strict=False):
            line = axis.axhline(values[measure], linestyle=style, linewidth=1)
            line.set(color=plots.colour(name), label=f"{name} alone")
        axis.set(xscale="log", xlabel="weight of the reconstruction term, as mse", ylabel=label)
        axis.set_yscale("linear" if measure == "f1" else "log")
    legend_below(figure, axes[:1], columns=3)
    return figure
