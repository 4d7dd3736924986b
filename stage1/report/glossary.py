"""What every page takes for granted: the pipeline as a picture, its letters and its names."""

import re
from itertools import pairwise

import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stage1 import names
from stage1.report.plots import panels

LETTERS = {
    "B": "questions in a batch",
    "T": "tokens of a prompt",
    "D": "numbers per token in the language model's embeddings",
    "K": "numbers per token after compression; D/K is the ratio",
    "V": "entries of the vocabulary",
}
SPLITS = {
    "train": "questions that adapters are trained on",
    "selection": "questions that settings are chosen on, such as learning rates",
    "test": "questions that only report: nothing is chosen on them",
}
"""They share no article."""
BOXES = [
    ("passage and", "question", names.LIGHT),
    ("tokens", "[B, T], of V", names.LIGHT),
    ("embeddings", "[B, T, D]", names.SKY),
    ("PCA", "[B, T, K]", names.ORANGE),
    ("adapter", "[B, T, D], trained", names.GREEN),
    ("language model", "frozen", names.SKY),
    ("answer", "token by token", names.LIGHT),
]
"""The pipeline: what a box holds, its shape or state, its colour. Four stand above three."""
BOX = 0.76, 0.62
"""Width and height of a box, where neighbours are one apart."""


def pipeline() -> Figure:
    """Draw the way from a question to its answer: forth in the upper row, back in the lower."""
    figure, (axis,) = panels(1, width=7.5, height=2.2)
    places = [(float(x), 1.0) for x in range(4)] + [(float(x), 0.0) for x in (3, 2, 1)]
    for (title, state, colour), place in zip(BOXES, places, strict=True):
        draw_box(axis, place, f"{title}\n{state}", colour)
    for (x, y), (to_x, to_y) in pairwise(places):
        step_x, step_y = BOX[0] / 2 * (to_x - x), BOX[1] / 2 * (to_y - y)
        ends = (to_x - step_x, to_y - step_y), (x + step_x, y + step_y)
        axis.annotate("", *ends, arrowprops={"arrowstyle": "-|>", "color": "black"})
    axis.set(xlim=(-0.45, 3.45), ylim=(-0.4, 1.4))
    axis.set_axis_off()
    return figure


def draw_box(axis: Axes, place: tuple[float, float], text: str, colour: str) -> None:
    (x, y), (width, height) = place, BOX
    corner = (x - width / 2, y - height / 2)
    axis.add_patch(
        Rectangle(corner, width, height, facecolor=colour, alpha=0.35, edgecolor="black")
    )
    axis.text(x, y, text, ha="center", va="center", fontsize=9)


def two_columns(entries: dict[str, str], first: str, second: str) -> pd.DataFrame:
    return pd.DataFrame(list(entries.items()), columns=[first, second])


def tables() -> list[pd.DataFrame]:
    """Return letters, splits, objectives and conditions, each with what it means."""
    objectives = {name: entry.sentence for name, entry in names.OBJECTIVES.items()}
    conditions = {name: entry.sentence for name, entry in names.CONDITIONS.items()}
    return [
        two_columns(LETTERS, "letter", "what it counts"),
        two_columns(SPLITS, "split", "what it is for"),
        two_columns(objectives, "objective", "what an adapter is trained on"),
        two_columns(conditions, "condition", "what the frozen model reads"),
    ]


def shown() -> HTML:
    """Return the tables one below the other."""
    html = "\n".join(table.to_html(index=False, border=0) for table in tables())
    return HTML(re.sub(r"`([^`]+)`", r"<code>\1</code>", html))
