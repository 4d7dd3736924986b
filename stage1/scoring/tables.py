"""Tables of scored answers, with intervals and retention, and how tables and prose are written."""

import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd

from stage1.names import FLOORS
from stage1.scoring.comparison import interval
from stage1.scoring.intervals import mean_interval

WIDTH = 110
"""Characters of a line of prose that is written into a document."""
TEACHER_FORCED = ("ce_first", "ce_later", "right_first", "right_later")
"""Teacher-forced measures on the gold answer, at its first token and at later ones."""


def retention(f1: float, ceiling: float, floor: float) -> float:
    """Return (F1 - floor) / (ceiling - floor) in percent; nan unless the ceiling is higher.

    The ceiling is the F1 of the original embeddings.
    """
    return 100 * (f1 - floor) / (ceiling - floor) if ceiling > floor else float("nan")


def summary(scored: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return one row per group of scored examples.

    Columns: mean F1 and EM in percent with `_low` and `_high`; rates of answers that ended by
    themselves and of empty ones; mean answer length in tokens; teacher-forced cross-entropy (nats)
    and accuracy (0 to 1), averaged over examples; number of questions and articles.
    """
    rows = []
    for key, group in scored.groupby(by, sort=False):
        row = dict(zip(by, key, strict=True))
        for metric in ("f1", "em"):
            mean, low, high = mean_interval(group[metric].tolist(), group["title"].tolist())
            row |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
        for name in ("ended", "empty", "tokens", *TEACHER_FORCED):
            row[name] = float(group[name].mean())
        row |= {"questions": len(group), "articles": group["title"].nunique()}
        rows.append(row)
    return pd.DataFrame(rows)


def over_seeds(answers: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return one row per example and group `by`, averaged over all else that varies (seeds)."""
    numbers = answers.select_dtypes(["number", "bool"]).columns.difference([*by, "seed"])
    groups = answers.groupby([*by, "id", "title"], sort=False, observed=True)
    return groups[list(numbers)].mean().reset_index()


def condition_table(
    answers: pd.DataFrame, rebuilt: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """Return one row per condition, averaged over seeds.

    Columns: those of `summary`, retention in percent against the higher of the floors, and the
    reconstruction of the prompt's tokens (`rebuilt`, by condition). Intervals of a condition with
    several seeds are over articles and seeds, those of all others over articles.
    """
    table = summary(over_seeds(answers, ["condition"]), ["condition"]).set_index("condition")
    for condition, group in answers.groupby("condition"):
        if "seed" in group and group["seed"].nunique() > 1:
            for metric in ("f1", "em"):
                bounds = [f"{metric}_low", f"{metric}_high"]
                table.loc[condition, bounds] = interval(group, metric)[1:]
    floor, ceiling = table.loc[FLOORS, "f1"].max(), table.loc["embeddings", "f1"]
    table.insert(6, "retention", [retention(f1, ceiling, floor) for f1 in table["f1"]])
    return table.join(pd.DataFrame(rebuilt).T).rename_axis("condition").reset_index()


def paragraphs(texts: Sequence[str]) -> str:
    """Return texts as paragraphs of lines that stay below `WIDTH` characters."""
    fill = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False).fill
    return "\n\n".join(map(fill, texts))


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table in Markdown, its cells as `str` writes them."""
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
