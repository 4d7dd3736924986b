"""Figures of the study, and the parts that all figures share: DataFrame in, matplotlib figure out.

One style, one colour per name, and on every axis its unit and which direction is better.
"""

from collections.abc import Iterable, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stage1 import names

COLOURS = {
    "train": names.BLUE,
    "selection": names.ORANGE,
    "test": names.GREEN,
    "token": names.BLUE,
    "vocabulary": names.VERMILION,
}
"""Of splits and weightings."""
PERCENT = "(percent, higher is better)"
F1 = f"F1 {PERCENT}"
MARKERS = "osD^v<"
LINES = ("-", "--", "-.", ":")
STYLE: dict = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "font.size": 10,
}


def colour(name: str) -> str:
    """Return the colour of an objective, a condition, a split or a weighting."""
    entry = names.OBJECTIVES.get(name) or names.CONDITIONS.get(name)
    return entry.colour if entry else COLOURS[name]


def in_order(objectives: Iterable[str]) -> list[str]:
    """Return the objectives that occur, each once, in the order of `names.OBJECTIVES`."""
    return [name for name in names.OBJECTIVES if name in set(objectives)]


def panels(
    columns: int, width: float = 4.2, height: float = 3.2, rows: int = 1, **sharing
) -> tuple[Figure, list[Axes]]:
    """Return a figure in the style of the study and its panels, row by row.

    `width` and `height` are of one panel, in inches. No window owns the figure: it shows where it
    is returned.
    """
    size = (width * columns, height * rows)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **sharing)
    plt.close(figure)
    return figure, list(axes.flat)


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """Add one legend below the panels, with every label once."""
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles[label] = handle
    figure.legend(
        list(handles.values()), list(handles), fontsize=8, loc="outside lower center", ncols=columns
    )


def guide(axis: Axes, x: int, label: str) -> None:
    """Draw a dotted vertical line."""
    axis.axvline(x, color="grey", linestyle=":", label=label)


def ceiling_line(axis: Axes, f1: float) -> None:
    """Draw the F1 of the original embeddings as a dashed horizontal line."""
    axis.axhline(f1, color="black", linestyle="--", linewidth=1, label="original embeddings")


def dots(axis: Axes, x, y, edge: str, filled: bool, **look) -> None:
    """Scatter points, filled or hollow."""
    axis.scatter(x, y, facecolor=edge if filled else "none", edgecolor=edge, **look)


def mean_with_interval(axis: Axes, row: pd.Series, metric: str, y: int, name: str) -> None:
    """Draw a mean with its interval (`<metric>`, `<metric>_low`, `<metric>_high`) at height `y`."""
    mean = row[metric]
    whiskers = [[mean - row[f"{metric}_low"]], [row[f"{metric}_high"] - mean]]
    axis.errorbar(mean, y, xerr=whiskers, fmt="o", color=colour(name), capsize=3)


def token_statistics(lengths: pd.DataFrame, counts: np.ndarray, budget: int) -> Figure:
    """Plot prompt lengths (columns `split`, `tokens`) and token counts [V] by rank."""
    figure, (left, right) = panels(2)
    longest = max(lengths["tokens"].max(), budget)
    bins = np.linspace(lengths["tokens"].min() - 0.5, longest + 0.5, 40).tolist()
    for split, group in lengths.groupby("split", sort=False):
        line = {"color": colour(split), "label": split}
        left.hist(group["tokens"], bins, density=True, histtype="step", linewidth=1.5, **line)
    guide(left, budget, "budget")
    left.set(title="Prompt length", xlabel="prompt length (tokens)")
    left.set(ylabel="share of prompts per token of length")
    left.legend()
    ranked = np.sort(counts[counts > 0])[::-1]
    right.loglog(np.arange(1, len(ranked) + 1), ranked, color=colour("train"), linewidth=1.5)
    right.set(title="Token frequency", xlabel="rank of the token")
    right.set(ylabel="occurrences in training prompts")
    return figure


def spectrum(variances: pd.DataFrame, width: int) -> Figure:
    """Plot the variance of each principal component and the share that the first K keep.

    Columns `weighting`, `component`, `variance`, `kept`; a line marks K = `width`.
    """
    figure, (left, right) = panels(2)
    for weighting, group in variances.groupby("weighting", sort=False):
        left.semilogy(group["component"], group["variance"], color=colour(weighting), linewidth=1.5)
        label, kept = f"{weighting}-weighted", 100 * group["kept"]
        right.plot(group["component"], kept, color=colour(weighting), label=label, linewidth=1.5)
    for axis in (left, right):
        guide(axis, width, f"K = {width}")
    left.set(title="Spectrum", xlabel="principal component")
    left.set(ylabel="variance (embedding units squared)")
    right.set(title="Variance kept", xlabel="dimensions kept, K")
    right.set(ylabel=f"variance kept {PERCENT}")
    right.legend()
    return figure


def scores(summary: pd.DataFrame, metrics: Sequence[str] = ("f1", "em")) -> Figure:
    """Plot one panel per metric, with a mean and its interval per row.

    Rows are labelled by `condition`, and by `names` where there is such a column.
    """
    figure, axes = panels(len(metrics), height=0.8 + 0.3 * len(summary))
    rows = summary[::-1]  # the first on top
    labels = rows["condition"]
    if "names" in rows:
        labels = labels + ", " + rows["names"] + " names"
    for axis, metric in zip(axes, metrics, strict=True):
        for y, (_, row) in enumerate(rows.iterrows()):
            mean_with_interval(axis, row, metric, y, row["condition"])
        axis.set_yticks(range(len(rows)), labels if axis is axes[0] else [""] * len(rows))
        axis.set(xlabel=f"{metric.upper()} {PERCENT}", ylim=(-0.5, len(rows) - 0.5))
    return figure


def widths(summary: pd.DataFrame, ceiling: float, width: int) -> Figure:
    """Plot F1 against K per condition, with intervals, the ceiling and a line at K = `width`.

    Columns `condition`, `K`, `f1`, `f1_low`, `f1_high`.
    """
    figure, (axis,) = panels(1, width=5.5)
    for condition, group in summary.groupby("condition", sort=False):
        whiskers = [group["f1"] - group["f1_low"], group["f1_high"] - group["f1"]]
        line = {"color": colour(condition), "label": condition}
        axis.errorbar(group["K"], group["f1"], whiskers, marker="o", capsize=3, **line)
    ceiling_line(axis, ceiling)
    guide(axis, width, f"K = {width}")
    axis.set_xscale("log", base=2)
    ticks = sorted(set(summary["K"]))
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.set(xlabel="dimensions kept, K", ylabel=F1, ylim=(-3, 103))
    axis.legend()
    return figure


def training(curve: pd.DataFrame, selection: pd.DataFrame, objective: str) -> Figure:
    """Plot the terms of the loss, the gradient norm before clipping, and the selection split.

    `selection` has columns `step`, `f1`, `right_first`, or `step` alone where none was read.
    """
    figure, (left, middle, right) = panels(3)
    own = colour(objective)
    terms = [name.removesuffix("_weighted") for name in curve if name.endswith("_weighted")]
    for term, line in zip(terms, cycle(LINES), strict=False):
        unit = names.TERMS[term].unit if term in names.TERMS else "no unit"
        label = f"{term} ({unit})"
        left.semilogy(curve["step"], curve[term], line, color=own, linewidth=1, label=label)
    left.set(title="Terms of the loss, unweighted", xlabel="step", ylabel="value (lower is better)")
    middle.semilogy(curve["step"], curve["gradient_norm"], color=own, linewidth=1)
    middle.set(title="Gradient norm before clipping", xlabel="step")
    middle.set(ylabel="norm over all parameters")
    if "f1" in selection:
        steps, first = selection["step"], 100 * selection["right_first"]
        right.plot(steps, selection["f1"], "o-", color=own, label="F1, free-running")
        right.plot(steps, first, "s--", color="grey", label="first token right, teacher-forced")
    right.set(title="Selection split", xlabel="step", ylim=(-3, 103))
    right.set(ylabel="percent (higher is better)")
    legend_below(figure, [left, right], columns=4)
    return figure


def mismatch(table: pd.DataFrame) -> Figure:
    """Plot F1 against the training loss, and exact match against teacher-forced accuracy.

    One point per objective: columns `condition`, `loss_ratio`, `f1`, `right_first`, `right_later`,
    `em`.
    """
    figure, (left, right) = panels(2, width=4.8, height=3.8)
    for _, row in table.iterrows():
        name = row["condition"]
        dots(left, row["loss_ratio"], row["f1"], colour(name), True, label=name)
        dots(right, 100 * row["right_first"], row["em"], colour(name), True)
        dots(right, 100 * row["right_later"], row["em"], colour(name), False, marker="s")
    left.set(title="Own training loss", xlabel="last loss / first loss (lower is better)")
    left.set(ylabel=f"F1, free-running {PERCENT}")
    legend_below(figure, [left], columns=4)
    right.plot([0, 100], [0, 100], color="grey", linestyle=":", linewidth=1)
    right.set(title="Teacher-forced accuracy", ylabel=f"EM, free-running {PERCENT}")
    right.set(xlabel="gold tokens right, teacher-forced (percent): ● first, □ later")
    return figure


def factors(runs: pd.DataFrame, levels: Sequence[str]) -> Figure:
    """Plot F1 of every run (columns `objective`, `level`, `seed`, `f1`).

    One row per objective, one marker per level (the first filled), one point per seed.
    """
    objectives = in_order(runs["objective"])[::-1]
    figure, (axis,) = panels(1, width=7.5, height=1.15 + 0.35 * len(objectives))
    for place, (level, marker) in enumerate(zip(levels, cycle(MARKERS), strict=False)):
        here = runs[runs["level"] == level]
        heights = [objectives.index(name) + 0.13 * (1.5 - place) for name in here["objective"]]
        edges = [colour(name) for name in here["objective"]]
        face = edges if place == 0 else "none"
        axis.scatter(here["f1"], heights, marker=marker, edgecolor=edges, facecolor=face)
        dots(axis, [], [], "grey", place == 0, marker=marker, label=level)
    axis.set_yticks(range(len(objectives)), objectives)
    axis.set(xlabel=F1, xlim=(-2, 102))
    legend_below(figure, [axis], columns=len(levels))
    return figure
