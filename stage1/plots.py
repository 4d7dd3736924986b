"""DataFrame in, matplotlib figure out. One style, one colour per condition, units and direction on every axis."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

# Okabe & Ito's palette: distinct under the common colour deficiencies.
COLOURS = {
    "text": "#000000",
    "embeddings": "#0072B2",
    "train": "#0072B2",
    "selection": "#E69F00",
    "test": "#009E73",
    "token": "#0072B2",
    "vocabulary": "#D55E00",
}
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


def panels(count: int, width: float = 4.2, height: float = 3.2) -> tuple[Figure, Sequence[plt.Axes]]:
    """A row of panels in the style of the study. The figure belongs to no window: it shows where it is returned."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False)
    plt.close(figure)
    return figure, axes[0]


def token_statistics(lengths: pd.DataFrame, counts: np.ndarray, budget: int) -> Figure:
    """Left: prompt lengths (columns `split`, `tokens`) against the budget. Right: token counts [V] by rank."""
    figure, (left, right) = panels(2)
    bins = np.linspace(lengths["tokens"].min() - 0.5, max(lengths["tokens"].max(), budget) + 0.5, 40)
    for split, group in lengths.groupby("split", sort=False):
        left.hist(
            group["tokens"], bins, density=True, histtype="step", color=COLOURS[split], label=split, linewidth=1.5
        )
    left.axvline(budget, color="grey", linestyle=":", label="budget")
    left.set(title="Prompt length", xlabel="prompt length (tokens)", ylabel="share of prompts per token of length")
    left.legend()
    ranked = np.sort(counts[counts > 0])[::-1]
    right.loglog(np.arange(1, len(ranked) + 1), ranked, color=COLOURS["train"], linewidth=1.5)
    right.set(title="Token frequency", xlabel="rank of the token", ylabel="occurrences in training prompts")
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
    left.set(title="Spectrum", xlabel="principal component", ylabel="variance (embedding units squared)")
    right.set(title="Variance kept", xlabel="dimensions kept, K", ylabel="variance kept (percent, higher is better)")
    right.legend()
    return figure


def scores(summary: pd.DataFrame, metrics: Sequence[str] = ("f1", "em")) -> Figure:
    """One panel per metric: mean and interval (columns `<metric>`, `<metric>_low`, `<metric>_high`) per row."""
    figure, axes = panels(len(metrics), height=0.8 + 0.4 * len(summary))
    places = np.arange(len(summary))[::-1]
    for axis, metric in zip(axes, metrics, strict=True):
        for place, (_, row) in zip(places, summary.iterrows(), strict=True):
            colour, mean = COLOURS[row["condition"]], row[metric]
            whiskers = [[mean - row[f"{metric}_low"]], [row[f"{metric}_high"] - mean]]
            axis.errorbar(mean, place, xerr=whiskers, fmt="o", color=colour, capsize=3)
        axis.set_yticks(places, [f"{row['condition']}, {row['names']} names" for _, row in summary.iterrows()])
        axis.set_ylim(-0.5, len(summary) - 0.5)
        axis.set(xlabel=f"{metric.upper()} (percent, higher is better)")
    for axis in axes[1:]:
        axis.set_yticklabels([])
    return figure
