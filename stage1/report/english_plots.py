"""Figures of notebook 07: how the English language model was trained, and how its adapters do."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from stage1 import names
from stage1.names import OBJECTIVES
from stage1.report import plots
from stage1.report.english import English
from stage1.report.plots import F1, legend_below, panels


def pretraining(curve: pd.DataFrame) -> Figure:
    """Plot cross-entropy per token, and how often an answer token is right, over the steps.

    Columns `step`, `cross_entropy` and `answer_cross_entropy` (nats) and `answer_accuracy` (0 to
    1), all on training rows.
    """
    figure, (loss, right) = panels(2, width=4.6, height=3.2)
    loss.plot(curve["step"], curve["cross_entropy"], color=names.BLUE, label="all tokens")
    loss.plot(curve["step"], curve["answer_cross_entropy"], color=names.VERMILION, label="answers")
    loss.set(xlabel="step", ylabel="cross-entropy (nats per token)", ylim=(0, 8))
    right.plot(curve["step"], 100 * curve["answer_accuracy"], color=names.VERMILION)
    right.set(xlabel="step", ylabel="answer tokens right (percent)", ylim=(0, 102))
    legend_below(figure, [loss], columns=2)
    return figure


def adapters(readers: Sequence[English]) -> Figure:
    """Plot F1 of every objective and start with its interval, one panel per language model."""
    tables = [e.cells_table() for e in readers]
    height = 1.4 + 0.3 * max(map(len, tables))
    figure, axes = panels(1, width=7.5, height=height, rows=len(readers))
    for axis, e, table in zip(axes, readers, tables, strict=True):
        for y, (_, row) in enumerate(table[::-1].iterrows()):
            plots.mean_with_interval(axis, row, "f1", y, row["objective"])
            place, text = (row["f1_high"], y), f"{row['f1']:.1f}"
            axis.annotate(text, place, (5, -3), textcoords="offset points", fontsize=8)
        lines = {"ceiling": e.ceiling, "floor": e.floor}
        lines["PCA inverse"] = e.untrained_f1("pca_inverse").mean
        for (name, f1), style in zip(lines.items(), plots.LINES, strict=False):
            axis.axvline(f1, color="black", linewidth=1, linestyle=style, label=name)
        axis.set_yticks(range(len(table)), list(map(label, table[::-1].to_dict("records"))))
        axis.set(title=f"D = {e.D}, K = {e.K}", xlabel=F1, xlim=(-1, 52))
        axis.set(ylim=(-0.6, len(table) - 0.4))
    legend_below(figure, axes, columns=3)
    return figure


def label(row: dict) -> str:
    """Name a cell: its objective, its start, and whether it was warmed up."""
    warm = "warmed up" if row["warm-up"] else "no warm-up"
    return f"{OBJECTIVES[row['objective']].label.split(' (')[0]}, {row['start']}, {warm}"
