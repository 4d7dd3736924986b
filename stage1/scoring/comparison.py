"""Which differences are real: intervals over articles and seeds, equivalence, many comparisons.

Two adapters answer the same questions, so they are compared question by question. Questions share
articles and answers share seeds, and the two are crossed, so both are resampled independently: the
pigeonhole bootstrap (Owen, 2007, "The pigeonhole bootstrap"), which errs on the wide side. Five
seeds give only a rough estimate of the variance that seeds contribute.
"""

import enum
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from stage1.fields import require
from stage1.scoring.intervals import Interval

RESAMPLES = 5_000
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


def article_totals(
    scores: pd.DataFrame, metric: str
) -> tuple[Float[np.ndarray, "A S"], Float[np.ndarray, " A"]]:
    """Return sums of a score per article and seed, and the number of questions per article.

    Raises ValueError unless every question (`id`, of article `title`) has one score per `seed`.
    """
    table = scores.pivot(index=["title", "id"], columns="seed", values=metric)
    if table.isna().any(axis=None):
        raise ValueError(f"{metric}: not every question has a score for every seed")
    articles = table.groupby(level="title", observed=True)
    return articles.sum().to_numpy(float), articles.size().to_numpy(float)


def resample(
    scores: pd.DataFrame, metric: str, level: float = 0.95, seed: int = 0
) -> tuple[Interval, np.ndarray]:
    """Return the mean score with its percentile interval, and the resampled means.

    A single seed is not resampled. A single article gives an interval of nan and no means.
    """
    totals, sizes = article_totals(scores, metric)
    mean = float(totals.sum() / sizes.sum() / totals.shape[1])
    if len(sizes) < 2:
        return Interval(mean, float("nan"), float("nan")), np.array([])

    def over_both(articles, seeds, axis):
        drawn = totals[articles[..., :, None].astype(int), seeds[..., None, :].astype(int)]
        return drawn.sum((-1, -2)) / sizes[articles.astype(int)].sum(-1) / seeds.shape[-1]

    def over_articles(articles, axis):
        drawn = articles.astype(int)
        return totals[drawn].sum((-1, -2)) / sizes[drawn].sum(-1) / totals.shape[1]

    data = [np.arange(length) for length in totals.shape if length > 1]
    result = stats.bootstrap(
        data, over_both if len(data) == 2 else over_articles, vectorized=True, method="percentile",
        confidence_level=level, n_resamples=RESAMPLES, batch=500, rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = result.confidence_interval
    return Interval(mean, float(low), float(high)), result.bootstrap_distribution


def interval(scores: pd.DataFrame, metric: str = "f1") -> Interval:
    """Return the mean score with a 95 % interval over articles and seeds.

    Columns of `scores`: `id`, `title`, `seed` and the metric.
    """
    return resample(scores, metric)[0]


def difference(
    first: pd.DataFrame, second: pd.DataFrame, metric: str = "f1", margin: float = 2.0
) -> Difference:
    """Return first minus second, on the same questions and the seeds that both have.

    An equal seed means equal initial weights and order of examples. `p_margin` is that of two
    one-sided tests (Schuirmann, 1987). Raises ValueError if they share no seed, or if one has a
    question that the other lacks.
    """
    keys = ["id", "title", "seed"]
    shared = set(first["seed"]) & set(second["seed"])
    first, second = (side[side["seed"].isin(shared)] for side in (first, second))
    pair = first[[*keys, metric]].merge(
        second[[*keys, metric]], on=keys, how="outer", suffixes=("_first", "_second")
    )
    if not shared or len(pair) != len(first) or len(pair) != len(second):
        raise ValueError("the two were not scored on the same questions with a seed in common")
    pair[metric] = pair[f"{metric}_first"] - pair[f"{metric}_second"]
    estimate, means = resample(pair, metric)
    if not len(means):
        return Difference(*estimate, float("nan"), float("nan"))
    p = 2 * min(share_at_most(means, 0.0), share_at_most(-means, 0.0))
    p_margin = max(share_at_most(means, -margin), share_at_most(-means, -margin))
    return Difference(*estimate, min(1.0, p), p_margin)


def share_at_most(means: np.ndarray, bound: float) -> float:
    """Return the share of means at or below the bound, never 0 (Davison & Hinkley, 1997, 4.2)."""
    return float((1 + (means <= bound).sum()) / (1 + len(means)))


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
    groups = {level: scores[scores[by] == level] for level in levels}
    rows = []
    for first, second in combinations(levels, 2):
        pair = difference(groups[first], groups[second], metric, margin)
        if pair.mean < 0:  # on the seeds that both have, the order is reversed
            first, second = second, first
            pair = difference(groups[first], groups[second], metric, margin)
        rows.append({"first": first, "second": second} | pair._asdict())
    table = pd.DataFrame(rows)
    table["p"], table["p_margin"] = holm(table["p"].tolist()), holm(table["p_margin"].tolist())
    table["finding"] = list(map(Finding.of, table["p"], table["p_margin"]))
    return table


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
