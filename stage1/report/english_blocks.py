"""Blocks of README and docs about real English; `documents` writes them."""

import pandas as pd

from stage1.report import english, scaling
from stage1.report import english_answer as words
from stage1.report.controls import Controls
from stage1.scoring.tables import markdown_table, paragraphs

RATIOS = (scaling.RECIPE, words.RECONSTRUCTION)
"""Objectives that were trained at other ratios."""
DIGITS = {"f1": 1, "f1_low": 1, "f1_high": 1, "em": 1, "retention": 1, "fvu": 2}


def english_answer(c: Controls) -> str:
    e = english.load()
    return paragraphs([words.summary(e, c.evidence), *words.answer(e, c.evidence)])


def english_beside(c: Controls) -> str:
    return markdown_table(words.beside(english.load(), c.evidence))


def english_adapters(_: Controls) -> str:
    """Return F1 of every objective and start, with the warm-up and without it."""
    e = english.load()
    parts = [e.table(is_warm).assign(warmup=is_warm) for is_warm in (True, False)]
    table = pd.concat(parts).round(DIGITS).rename(columns={"warmup": "warm-up"})
    return markdown_table(table)


def english_gains(_: Controls) -> str:
    return markdown_table(english.load().gains())


def english_ratios(_: Controls) -> str:
    return markdown_table(english.load().ratios(RATIOS).round({"variance kept": 2}))


def english_control(_: Controls) -> str:
    return markdown_table(english.load().control())


def readers(_: Controls) -> str:
    found = scaling.load()
    table = scaling.table(found).round({"variance kept": 2, "fvu after warm-up": 2})
    table = table.round({"floor": 1, "PCA inverse": 1})
    return f"{markdown_table(table)}\n\n{paragraphs([scaling.forecast(found)])}"


def orderings(_: Controls) -> str:
    return markdown_table(scaling.orderings(scaling.load()))


FUNCTIONS = (
    english_answer, english_beside, english_adapters, english_gains, english_ratios,
    english_control, readers, orderings,
)  # fmt: skip
BLOCKS = {function.__name__: function for function in FUNCTIONS}
