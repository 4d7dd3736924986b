"""Figures about a single prompt: DataFrame in, matplotlib figure out."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stage1 import names
from stage1.report import plots

KNOWN = {*names.OBJECTIVES, *names.CONDITIONS}
SEQUENCE = (names.BLUE, names.ORANGE, names.GREEN, names.VERMILION, names.PURPLE, names.BROWN)


def colour(condition: str) -> str:
    """Return the colour of a condition or of an adapter's objective, by `full/distill-seed0`."""
    objective = condition.rpartition("/")[2].rpartition("-seed")[0]
    known = next((name for name in (condition, objective) if name in KNOWN), "pca_inverse")
    return plots.colour(known)


def against_ratio(first: pd.DataFrame, summary: pd.DataFrame, readings: pd.DataFrame) -> Figure:
    """Plot the first token's distribution and the wrong tokens against the compression ratio.

    `first` has one row per ratio and one column per token, in probabilities. `summary` has columns
    `ratio` and `wrong_percent` of the PCA inverse, `readings` of every condition at its own ratio,
    with `condition`.
    """
    figure, (left, right) = plots.panels(2, width=5.2)
    looks = zip(first.columns, SEQUENCE * 4, plots.MARKERS * 4, strict=False)
    for token, ink, marker in looks:
        left.plot(first.index, first[token], color=ink, marker=marker, label=repr(token))
    left.set(title="First token of the answer", ylabel="probability", ylim=(-0.03, 1.03))
    x, y = summary["ratio"], summary["wrong_percent"]
    right.plot(x, y, color=colour("pca_inverse"), marker="o", label="PCA inverse")
    for _, row in readings[readings["condition"].str.contains("/")].iterrows():
        ink, label = colour(row["condition"]), short(row["condition"])
        plots.dots(right, row["ratio"], row["wrong_percent"], ink, True, label=label, zorder=3)
    right.set(title="Prompt tokens", ylabel="nearest entry wrong (percent,\nlower is better)")
    for axis in (left, right):
        ratio_axis(axis, list(first.index))
        axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def ratio_axis(axis: Axes, ratios: Sequence[float]) -> None:
    axis.set_xscale("log", base=2)
    labelled = [ratio for ratio in ratios if math.log2(ratio).is_integer()]
    axis.set_xticks(labelled, [f"{ratio:g}x" for ratio in labelled])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("compression ratio D/K")


def moved(tokens: pd.DataFrame, readings: pd.DataFrame) -> Figure:
    """Plot how far each prompt token is from its original, and whether the answer survives.

    `tokens` has columns `condition`, `cosine` and `right`; `readings` has `condition` and `agrees`.
    """
    rows = list(dict.fromkeys(readings["condition"]))[::-1]
    height = 0.35 * len(rows) + 1.2
    figure, (left, right) = plots.panels(2, width=4.8, height=height, sharey=True)
    for (condition, is_right), group in tokens.groupby(["condition", "right"]):
        places = [rows.index(str(condition))] * len(group)
        look = {"s": 16, "alpha": 0.6, "zorder": 3}
        plots.dots(left, group["cosine"], places, colour(str(condition)), bool(is_right), **look)
    by_name = readings.set_index("condition")["agrees"]
    right.barh(range(len(rows)), by_name[rows], color=[colour(name) for name in rows])
    left.set_yticks(range(len(rows)), [short(name) for name in rows])
    left.set(title="Prompt tokens: ● nearest entry right, ○ wrong")
    left.set(xlabel="cosine to the original embedding (higher is better)")
    right.set(title="Answer", xlabel="probability of the original first token", xlim=(0, 1))
    return figure


def short(condition: str) -> str:
    """Return an adapter's name without its preset."""
    return condition.rpartition("/")[2]
