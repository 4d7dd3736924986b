"""Blocks of README and docs about real English; `documents` writes them."""

import pandas as pd

from stage1.report import english_answer as words
from stage1.report import scaling
from stage1.report.controls import Controls
from stage1.scoring.tables import markdown_table, paragraphs

DIGITS = {"f1": 1, "f1_low": 1, "f1_high": 1, "em": 1, "retention": 1, "fvu": 2}


def english_answer(c: Controls) -> str:
    return paragraphs(words.answer(scaling.load(), c.evidence))


def english_details(c: Controls) -> str:
    return paragraphs(words.details(scaling.load(), c.evidence))


def english_beside(c: Controls) -> str:
    return markdown_table(words.beside(scaling.load(), c.evidence))


def english_adapters(_: Controls) -> str:
    """Return F1 of every objective and start that was run, with the warm-up and without it."""
    table = pd.concat([e.cells_table() for e in scaling.load()])
    return markdown_table(table.round(DIGITS))


def english_trials(_: Controls) -> str:
    table = pd.concat([e.on_selection() for e in scaling.load()])
    return markdown_table(table.round({"selection F1": 1}))


def readers(_: Controls) -> str:
    found = scaling.load()
    table = scaling.table(found).round({"variance kept": 2, "fvu after warm-up": 2})
    table = table.round({"floor": 1, "PCA inverse": 1})
    return f"{markdown_table(table)}\n\n{paragraphs([scaling.forecast(found)])}"


def orderings(_: Controls) -> str:
    return markdown_table(scaling.orderings(scaling.load()))


FUNCTIONS = (
    english_answer, english_details, english_beside, english_adapters, english_trials, readers,
    orderings,
)  # fmt: skip
BLOCKS = {function.__name__: function for function in FUNCTIONS}
