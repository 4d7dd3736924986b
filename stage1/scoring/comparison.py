"""Which differences are real: intervals over articles and seeds, equivalence, many comparisons.

Two adapters answer the same questions, so they are compared question by question. Questions share
articles and answers share seeds; `crossed` says how both enter an interval. With a single seed the
interval is over articles alone: it holds for that one adapter, not for its objective.
"""

import enum
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from stage1.fields import require
from stage1.scoring.crossed import Estimate
from stage1.scoring.intervals import Interval

SIGNIFICANT = 0.05


class Finding(enum.Enum):
    """What can be said of a difference; its value is the wording."""

    DIFFERENT = "different"
    SLIGHTLY_DIFFERENT = "different, by less than the margin"
    EQUIVALENT = "equivalent within the margin"
    UNDECIDED = "undecided"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def of(cls, p: float, p_margin: float) -> "Finding":
        """Return the finding of two p values; if neither is small, nothing is known."""
        different, within_margin = p < SIGNIFICANT, p_margin < SIGNIFICANT
        if different:
            return cls.SLIGHTLY_DIFFERENT if within_margin else cls.DIFFERENT
        return cls.EQUIVALENT if within_margin else cls.UNDECIDED


class Difference(NamedTuple):
    """A mean difference in the unit of the scores, its interval, and p values of two hypotheses."""

    mean: float
    low: float
    high: float
    p: float
    """That the difference is zero (two-sided)."""
    p_margin: float
    """That it is at least the margin, in either direction; small if the two are equivalent."""

    def __str__(self) -> str:
        return str(Interval(*self[:3]))


def by_question(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a row per article and question, and a column per seed; nan where there is no score.

    Raises ValueError if a question has two scores with one seed.
    """
    table = scores.set_index(["title", "id", "seed"])[metric].astype(float)
    if not table.index.is_unique:
        raise ValueError(f"{metric}: a question has more than one score with the same seed")
    return table.unstack("seed").sort_index()


def article_totals(
    table: pd.DataFrame,
) -> tuple[Float[np.ndarray, "A S"], Float[np.ndarray, " A"]]:
    """Return sums of scores per article and seed, and the number of questions per article."""
    articles, index = np.unique(table.index.get_level_values("title"), return_inverse=True)
    totals = np.zeros((len(articles), table.shape[1]))
    np.add.at(totals, index, table.to_numpy())
    return totals, np.bincount(index).astype(float)


def interval(scores: pd.DataFrame, metric: str = "f1", level: float = 0.95) -> Interval:
    """Return the mean of a score in percent with its interval, cut off at 0 and 100.

    Columns of `scores`: `id`, `title`, `seed` and the metric. With one seed the interval is over
    articles alone. A single article gives bounds of nan. Raises ValueError unless every question
    has one score per seed.
    """
    table = by_question(scores, metric)
    if table.isna().any(axis=None):
        raise ValueError(f"{metric}: not every question has a score for every seed")
    estimate = Estimate.of(*article_totals(table))
    mean, low, high = estimate.interval(level)
    return Interval(mean, max(low, min(mean, 0.0)), min(high, max(mean, 100.0)))


def difference(
    first: pd.DataFrame, second: pd.DataFrame, metric: str = "f1", margin: float = 2.0
) -> Difference:
    """Return first minus second, on the same questions and the seeds that both have.

    An equal seed means equal initial weights and order of examples. `p` is below 0.05 exactly where
    the 95 % interval excludes 0. `p_margin` is that of two one-sided tests (Schuirmann, 1987); the
    p values are nan for a single article. Raises ValueError if the two share no seed, if one has a
    question that the other lacks, or if a question has two scores with one seed.
    """
    return paired(by_question(first, metric), by_question(second, metric), margin)


def paired(first: pd.DataFrame, second: pd.DataFrame, margin: float) -> Difference:
    """Return the difference of two tables of `by_question`."""
    seeds = first.columns.intersection(second.columns)
    first, second = (side[seeds].dropna(how="all") for side in (first, second))
    unlike = seeds.empty or not first.index.equals(second.index)
    if unlike or first.isna().any(axis=None) or second.isna().any(axis=None):
        raise ValueError("the two were not scored on the same questions with a seed in common")
    estimate = Estimate.of(*article_totals(first - second))
    p, p_margin = estimate.p(estimate.mean), estimate.p_beyond(margin - abs(estimate.mean))
    return Difference(*estimate.interval(), p, p_margin)


def holm(p: Sequence[float]) -> list[float]:
    """Return adjusted p values that bound the chance of any false claim among them (Holm, 1979)."""
    order = np.argsort(p)
    steps = np.asarray(p, float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(steps).clip(max=1.0)
    return adjusted.tolist()


def pairs(scores: pd.DataFrame, by: str, metric: str = "f1", margin: float = 2.0) -> pd.DataFrame:
    """Compare every pair of levels of `by`, the better one first.

    Columns: `first`, `second`, the fields of `Difference` with p values adjusted by Holm's method,
    and `finding`.
    """
    means = scores.groupby(by, sort=False, observed=True)[metric].mean()
    levels = means.sort_values(ascending=False).index
    require(len(levels) > 1, by, list(levels), "at least two levels to compare")
    tables = {level: by_question(scores[scores[by] == level], metric) for level in levels}
    rows = []
    for first, second in combinations(levels, 2):
        pair = paired(tables[first], tables[second], margin)
        if pair.mean < 0:  # on the seeds that both have, the order is reversed
            first, second = second, first
            pair = paired(tables[first], tables[second], margin)
        rows.append({"first": first, "second": second} | pair._asdict())
    table = pd.DataFrame(rows)
    table["p"], table["p_margin"] = holm(table["p"].tolist()), holm(table["p_margin"].tolist())
    table["finding"] = list(map(Finding.of, table["p"], table["p_margin"]))
    return table


MARKS = {
    Finding.DIFFERENT: "≠",
    Finding.SLIGHTLY_DIFFERENT: "≈",
    Finding.EQUIVALENT: "=",
    Finding.UNDECIDED: "?",
}
"""A sign for each finding, where there is no room for its words."""


def matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Return `pairs` as a square of what the row gains over the column, with the finding's mark.

    Rows and columns go from the best to the worst. `MARKS` explains the marks.
    """
    order = list(dict.fromkeys([*table["first"], *table["second"]]))
    square = pd.DataFrame("", index=order, columns=order)
    for _, pair in table.iterrows():
        mark = MARKS[pair["finding"]]
        square.loc[pair["first"], pair["second"]] = f"{pair['mean']:+.1f} {mark}"
        square.loc[pair["second"], pair["first"]] = f"{-pair['mean']:+.1f} {mark}"
    return square


def leaders(scores: pd.DataFrame, by: str, metric: str = "f1", margin: float = 2.0) -> list[str]:
    """Return the level of `by` with the highest score, and after it all that may be as good.

    Those are the levels not found to be different from it. With one seed nothing can be told
    apart, since seeds differ too: all levels are returned, the highest first.
    """
    means = scores.groupby(by, sort=False, observed=True)[metric].mean()
    ordered = list(means.sort_values(ascending=False).index)
    if scores["seed"].nunique() < 2 or len(ordered) < 2:
        return ordered
    table = pairs(scores, by, metric, margin)
    of_top = table[table["first"] == ordered[0]].set_index("second")["finding"]
    return ordered[:1] + [name for name in ordered[1:] if of_top.get(name) is not Finding.DIFFERENT]


def contrast(
    scores: pd.DataFrame,
    factor: str,
    first: str,
    second: str,
    metric: str = "f1",
    margin: float = 2.0,
) -> Difference:
    """Return the mean difference between two levels of a factor, averaged over everything else.

    Both are taken on the same examples and seeds. Raises ValueError if one level has scores that
    the other lacks.
    """
    pair = scores[scores[factor].isin([first, second])]
    if pair.groupby([factor, "id"], observed=True)[metric].count().nunique() != 1:
        raise ValueError(
            f"{factor}: not every example has as many scores under {first!r} as under {second!r}"
        )
    groups = pair.groupby([factor, "id", "title", "seed"], observed=True)
    means = groups[metric].mean().reset_index()
    of_first, of_second = means[means[factor] == first], means[means[factor] == second]
    try:
        return difference(of_first, of_second, metric, margin)
    except ValueError as error:
        raise ValueError(f"{factor}: {first!r} and {second!r}: {error}") from error
