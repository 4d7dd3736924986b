"""DataFrame in, matplotlib figure out. One style, one colour per condition, units and direction on every axis."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from stage1 import names
from stage1.names import OBJECTIVES

COLOURS = names.COLOURS | {
    "train": names.BLUE,
    "selection": names.ORANGE,
    "test": names.GREEN,
    "token": names.BLUE,
    "vocabulary": names.VERMILION,
}
"""Of objectives, conditions, splits and weightings."""
STYLE = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "font.size": 10,
}


def panels(
    count: int, width: float = 4.2, height: float = 3.2
) -> tuple[Figure, Sequence[plt.Axes]]:
    """A row of panels in the style of the study. The figure belongs to no window: it shows where it is returned."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False)
    plt.close(figure)
    return figure, list(axes[0])


def token_statistics(lengths: pd.DataFrame, counts: np.ndarray, budget: int) -> Figure:
    """Left: prompt lengths (columns `split`, `tokens`) against the budget. Right: token counts [V] by rank."""
    figure, (left, right) = panels(2)
    bins = np.linspace(
        lengths["tokens"].min() - 0.5, max(lengths["tokens"].max(), budget) + 0.5, 40
    )
    for split, group in lengths.groupby("split", sort=False):
        left.hist(
            group["tokens"],
            bins,
            density=True,
            histtype="step",
            color=COLOURS[split],
            label=split,
            linewidth=1.5,
        )
    left.axvline(budget, color="grey", linestyle=":", label="budget")
    left.set(
        title="Prompt length",
        xlabel="prompt length (tokens)",
        ylabel="share of prompts per token of length",
    )
    left.legend()
    ranked = np.sort(counts[counts > 0])[::-1]
    right.loglog(np.arange(1, len(ranked) + 1), ranked, color=COLOURS["train"], linewidth=1.5)
    right.set(
        title="Token frequency",
        xlabel="rank of the token",
        ylabel="occurrences in training prompts",
    )
    return figure


def spectrum(variances: pd.DataFrame, width: int) -> Figure:
    """Left: variance of each principal component. Right: share kept by the first K (columns `weighting`, `component`,
    `variance`, `kept`), with a line at K = `width`."""
    figure, (left, right) = panels(2)
    for weighting, group in variances.groupby("weighting", sort=False):
        look = {"color": COLOURS[weighting], "label": f"{weighting}-weighted", "linewidth": 1.5}
        left.semilogy(group["component"], group["variance"], **look)
        right.plot(group["component"], 100 * group["kept"], **look)
    for axis in (left, right):
        axis.axvline(width, color="grey", linestyle=":", label=f"K = {width}")
    left.set(
        title="Spectrum", xlabel="principal component", ylabel="variance (embedding units squared)"
    )
    right.set(
        title="Variance kept",
        xlabel="dimensions kept, K",
        ylabel="variance kept (percent, higher is better)",
    )
    right.legend()
    return figure


def scores(summary: pd.DataFrame, metrics: Sequence[str] = ("f1", "em")) -> Figure:
    """One panel per metric: mean and interval (columns `<metric>`, `<metric>_low`, `<metric>_high`) per row, labelled
    by its `condition`, and by `names` where there is such a column."""
    figure, axes = panels(len(metrics), height=0.8 + 0.3 * len(summary))
    places = np.arange(len(summary))[::-1]
    for axis, metric in zip(axes, metrics, strict=True):
        for place, (_, row) in zip(places, summary.iterrows(), strict=True):
            colour, mean = COLOURS[row["condition"]], row[metric]
            whiskers = [[mean - row[f"{metric}_low"]], [row[f"{metric}_high"] - mean]]
            axis.errorbar(mean, place, xerr=whiskers, fmt="o", color=colour, capsize=3)
        named = [
            f", {row['names']} names" if "names" in row else "" for _, row in summary.iterrows()
        ]
        axis.set_yticks(
            places,
            [condition + name for condition, name in zip(summary["condition"], named, strict=True)],
        )
        axis.set_ylim(-0.5, len(summary) - 0.5)
        axis.set(xlabel=f"{metric.upper()} (percent, higher is better)")
    for axis in axes[1:]:
        axis.set_yticklabels([])
    return figure


def widths(summary: pd.DataFrame, ceiling: float, width: int) -> Figure:
    """F1 against K per condition with intervals (columns `condition`, `K`, `f1`, `f1_low`, `f1_high`), the ceiling, and
    a line at K = `width`."""
    figure, (axis,) = panels(1, width=5.5)
    for condition, group in summary.groupby("condition", sort=False):
        whiskers = [group["f1"] - group["f1_low"], group["f1_high"] - group["f1"]]
        axis.errorbar(
            group["K"],
            group["f1"],
            whiskers,
            color=COLOURS[condition],
            label=condition,
            marker="o",
            capsize=3,
        )
    axis.axhline(ceiling, color="black", linestyle="--", linewidth=1, label="original embeddings")
    axis.axvline(width, color="grey", linestyle=":", label=f"K = {width}")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(set(summary["K"])), [str(k) for k in sorted(set(summary["K"]))])
    axis.set(xlabel="dimensions kept, K", ylabel="F1 (percent, higher is better)", ylim=(-3, 103))
    axis.legend()
    return figure


def training(curve: pd.DataFrame, selection: pd.DataFrame, objective: str) -> Figure:
    """Left: each term of the loss over the steps. Middle: gradient norm before clipping. Right: F1 and teacher-forced
    accuracy of the first answer token on the selection split (columns `step`, `f1`, `right_first`)."""
    figure, (left, middle, right) = panels(3)
    colour = COLOURS[objective]
    terms = [name.removesuffix("_weighted") for name in curve.columns if name.endswith("_weighted")]
    units = {term: names.TERMS[term].unit for term in terms if term in names.TERMS}
    for term, line in zip(terms, ("-", "--"), strict=False):
        left.semilogy(
            curve["step"],
            curve[term],
            line,
            color=colour,
            linewidth=1,
            label=f"{term} ({units.get(term, 'no unit')})",
        )
    left.set(title="Terms of the loss, unweighted", xlabel="step", ylabel="value (lower is better)")
    left.legend()
    middle.semilogy(curve["step"], curve["gradient_norm"], color=colour, linewidth=1)
    middle.set(
        title="Gradient norm before clipping", xlabel="step", ylabel="norm over all parameters"
    )
    if "f1" in selection:
        right.plot(selection["step"], selection["f1"], "o-", color=colour, label="F1, free-running")
        first = 100 * selection["right_first"]
        right.plot(
            selection["step"], first, "s--", color="grey", label="first token right, teacher-forced"
        )
        right.legend()
    right.set(
        title="Selection split", xlabel="step", ylabel="percent (higher is better)", ylim=(-3, 103)
    )
    return figure


def mismatch(table: pd.DataFrame) -> Figure:
    """Does the training loss, or teacher forcing, tell how the model answers? One point per objective (columns
    `condition`, `loss_ratio`, `f1`, `right_first`, `right_later`, `em`)."""
    figure, (left, right) = panels(2, width=4.8, height=3.8)
    for _, row in table.iterrows():
        colour = COLOURS[row["condition"]]
        left.scatter(row["loss_ratio"], row["f1"], color=colour, label=row["condition"])
        right.scatter(100 * row["right_first"], row["em"], color=colour, marker="o")
        right.scatter(
            100 * row["right_later"], row["em"], color=colour, marker="s", facecolor="none"
        )
    left.set(title="Own training loss", xlabel="last loss / first loss (lower is better)")
    left.set(ylabel="F1, free-running (percent, higher is better)")
    figure.legend(
        *left.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4
    )
    right.plot([0, 100], [0, 100], color="grey", linestyle=":", linewidth=1)
    right.set(
        title="Teacher-forced accuracy",
        xlabel="gold tokens right, teacher-forced (percent): ● first, □ later",
    )
    right.set(ylabel="EM, free-running (percent, higher is better)")
    return figure


def factors(runs: pd.DataFrame, levels: Sequence[str]) -> Figure:
    """F1 of every run (columns `objective`, `level`, `seed`, `f1`): one row per objective, one marker per level, a
    point per seed."""
    figure, (axis,) = panels(1, width=7.5, height=3.6)
    objectives = [name for name in OBJECTIVES if name in set(runs["objective"])][::-1]
    markers = dict(zip(levels, "osD^v<", strict=False))
    for (objective, level), group in runs.groupby(["objective", "level"]):
        filled = (
            {"color": COLOURS[objective]} if levels.index(level) == 0 else {"facecolor": "none"}
        )
        place = [objectives.index(objective) + 0.13 * (1.5 - levels.index(level))] * len(group)
        axis.scatter(
            group["f1"], place, marker=markers[level], edgecolor=COLOURS[objective], **filled
        )
    for level in levels:
        filled = {"color": "grey"} if levels.index(level) == 0 else {"facecolor": "none"}
        axis.scatter([], [], marker=markers[level], edgecolor="grey", label=level, **filled)
    axis.set_yticks(range(len(objectives)), objectives)
    axis.set(xlabel="F1 (percent, higher is better)", xlim=(-2, 102))
    figure.legend(
        *axis.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=len(levels)
    )
    return figure
