"""The figures of the loss study and of the report: DataFrame in, figure out, and saved with the numbers behind them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from stage1 import store
from stage1.names import OBJECTIVES, TERMS
from stage1.report.plots import COLOURS, panels

F1 = "F1 (percent, higher is better)"
MARKERS = "osD^v<"


def save(figure: Figure, folder: Path, name: str, behind: pd.DataFrame) -> Figure:
    """Write `<name>.svg`, `.png` and `.csv`, the numbers behind it, and hand the figure back. The same figure gives the
    same files, byte for byte."""
    with plt.rc_context({"svg.hashsalt": name}):
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 150})):
            store.write_atomically(
                folder / f"{name}.{kind}",
                lambda path, k=kind, o=options: figure.savefig(path, format=k, **o),
            )
    store.write_atomically(
        folder / f"{name}.csv", lambda path: behind.to_csv(path, index=False, float_format="%.5g")
    )
    return figure


def answer(table: pd.DataFrame, runs: pd.DataFrame, lines: Mapping[str, float]) -> Figure:
    """F1 of every objective with its interval (columns `objective`, `f1`, `f1_low`, `f1_high`, best first), a point per
    run (`objective`, `f1`), and vertical lines to hold them against."""
    figure, (axis,) = panels(1, width=7.5, height=1.4 + 0.32 * len(table))
    for place, (_, row) in enumerate(table[::-1].iterrows()):
        colour = COLOURS[row["objective"]]
        seeds = runs.loc[runs["objective"] == row["objective"], "f1"]
        axis.scatter(seeds, [place - 0.22] * len(seeds), s=9, color=colour, alpha=0.5)
        whiskers = [[row["f1"] - row["f1_low"]], [row["f1_high"] - row["f1"]]]
        axis.errorbar(row["f1"], place, xerr=whiskers, fmt="o", color=colour, capsize=3)
        axis.annotate(
            f"{row['f1']:.1f}",
            (row["f1_high"], place),
            (5, -3),
            textcoords="offset points",
            fontsize=8,
        )
    for (label, value), style in zip(
        lines.items(), ("-", "--", "-.", ":", (0, (1, 4))), strict=False
    ):
        axis.axvline(
            value, color="black", linewidth=1, linestyle=style, label=f"{label} ({value:.1f})"
        )
    axis.set_yticks(range(len(table)), table["objective"][::-1])
    axis.set(xlabel=F1, xlim=(-2, 104), ylim=(-0.6, len(table) - 0.4))
    figure.legend(
        *axis.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3
    )
    return figure


def generation_against_reconstruction(runs: pd.DataFrame) -> Figure:
    """F1 against fvu of every run (columns `objective`, `initialisation`, `fvu`, `f1`): filled from the PCA inverse,
    open from a random start."""
    figure, (axis,) = panels(1, width=7.5, height=3.8)
    for objective in OBJECTIVES:
        for start, filled in (("pca_inverse", True), ("random", False)):
            group = runs[(runs["objective"] == objective) & (runs["initialisation"] == start)]
            face = COLOURS[objective] if filled else "none"
            label = objective if filled else None
            axis.scatter(
                group["fvu"],
                group["f1"],
                s=26,
                facecolor=face,
                edgecolor=COLOURS[objective],
                label=label,
            )
    axis.axvline(1, color="grey", linewidth=1, linestyle=":", label="constant mean (fvu 1)")
    axis.set(
        xscale="log",
        xlabel="fraction of variance unexplained (fvu, lower is better)",
        ylabel=F1,
        ylim=(-3, 103),
    )
    figure.legend(
        *axis.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4
    )
    return figure


def budgets(runs: pd.DataFrame, ceiling: float) -> Figure:
    """F1 against examples seen, one line per objective, left from the PCA inverse, right from a random start (columns
    `objective`, `initialisation`, `examples_seen`, `f1`); means over seeds with the range of them."""
    figure, axes = panels(2, width=4.6, height=3.8)
    for axis, start in zip(axes, ("pca_inverse", "random"), strict=True):
        here = runs[runs["initialisation"] == start]
        for objective in [name for name in OBJECTIVES if name in set(here["objective"])]:
            seeds = (
                here[here["objective"] == objective]
                .groupby("examples_seen")["f1"]
                .agg(["mean", "min", "max"])
            )
            whiskers = [seeds["mean"] - seeds["min"], seeds["max"] - seeds["mean"]]
            look = {"color": COLOURS[objective], "label": objective, "marker": "o", "capsize": 3}
            axis.errorbar(seeds.index, seeds["mean"], whiskers, linewidth=1.2, markersize=4, **look)
        axis.axhline(
            ceiling, color="black", linewidth=1, linestyle="--", label="original embeddings"
        )
        axis.set(
            xscale="log", xlabel="training examples seen (with repeats)", title=f"start: {start}"
        )
        axis.set(ylabel=F1, ylim=(-3, 103))
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, fontsize=8, loc="outside lower center", ncols=4)
    return figure


def readings(gradients: pd.DataFrame) -> Figure:
    """Over the steps, for each term: its value, the norm of its gradient at the adapter and at the embeddings, and its
    share of AdamW's step; the cosine between the two terms. One column per `setting`, means over seeds."""
    measures = {
        "value": "value of\nthe term",
        "gradient_norm": "gradient norm,\nadapter",
        "embedding_gradient_norm": "gradient norm,\nembeddings",
        "step_share": "share of\nthe step",
        "cosine": "cosine of\nthe terms",
    }
    settings = list(dict.fromkeys(gradients["setting"]))
    with plt.rc_context(
        {
            "font.size": 9,
            "figure.constrained_layout.use": True,
            "axes.grid": True,
            "grid.alpha": 0.25,
        }
    ):
        size = (3.1 * len(settings) + 0.6, 1.75 * len(measures))
        figure, axes = plt.subplots(
            len(measures), len(settings), figsize=size, sharex=True, sharey="row", squeeze=False
        )
    plt.close(figure)
    for column, setting in enumerate(settings):
        here = gradients[gradients["setting"] == setting]
        for row, (measure, label) in enumerate(measures.items()):
            axis = axes[row, column]
            for term, group in here.groupby("term", sort=False):
                if measure == "cosine" and term != "reconstruction":
                    continue  # the same from both sides
                mean = group.groupby("step")[measure].mean()
                colour = TERMS[term].colour if measure != "cosine" else "black"
                axis.plot(mean.index, mean, color=colour, label=term, linewidth=1.2)
            axis.set_yscale("log" if row < 3 else "linear")
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(setting, fontsize=9)
        axes[-1, column].set_xlabel("step")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9
    )
    return figure


def weight_grid(
    runs: pd.DataFrame, levels: Sequence[str], lines: Mapping[str, Mapping[str, float]]
) -> Figure:
    """F1, fvu and teacher-forced cross-entropy of the first answer token against the weight of the reconstruction term
    (columns `level`, `weight`, `f1`, `fvu`, `ce_first`); means over seeds with their range, and horizontal lines."""
    measures = {
        "f1": F1,
        "fvu": "fvu (lower is better)",
        "ce_first": "first-token cross-entropy\n(nats, lower is better)",
    }
    figure, axes = panels(3, width=4.0, height=3.9)
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
    for axis, (measure, label) in zip(axes, measures.items(), strict=True):
        for level, colour, marker in zip(levels, colours, MARKERS, strict=False):
            seeds = (
                runs[runs["level"] == level].groupby("weight")[measure].agg(["mean", "min", "max"])
            )
            whiskers = [seeds["mean"] - seeds["min"], seeds["max"] - seeds["mean"]]
            look = {
                "color": colour,
                "label": level,
                "marker": marker,
                "capsize": 2,
                "markersize": 4,
                "linewidth": 1.2,
            }
            axis.errorbar(seeds.index, seeds["mean"], whiskers, **look)
        for (name, values), style in zip(lines.items(), ("--", ":"), strict=False):
            axis.axhline(
                values[measure],
                color=COLOURS[name],
                linestyle=style,
                linewidth=1,
                label=f"{name} alone",
            )
        axis.set(xscale="log", xlabel="weight of the reconstruction term, as mse", ylabel=label)
        axis.set_yscale("linear" if measure == "f1" else "log")
    figure.legend(
        *axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3
    )
    return figure
