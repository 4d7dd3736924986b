"""Which differences are real: intervals over articles and seeds, many comparisons at once, equivalence, verdicts.

Two adapters answer the same questions, so they are compared question by question. Questions on one article belong
together and so do the answers of one seed; neither is the other's part, so both are resampled, independently: the
pigeonhole bootstrap for crossed effects (Owen, 2007, "The pigeonhole bootstrap"), which errs on the wide side.
With five seeds the part that seeds contribute is itself known roughly.
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
EMPTY = np.array([])


class Finding(enum.Enum):
    """What can be said of a difference; its value is how prose says it."""

    DIFFERENT = "different"
    SLIGHTLY_DIFFERENT = "different, by less than the margin"
    EQUIVALENT = "equivalent within the margin"
    UNDECIDED = "undecided"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def of(cls, p: float, p_margin: float) -> "Finding":
        """The finding of two p values. Neither being small is not equality: it is not knowing."""
        different, within_margin = p < SIGNIFICANT, p_margin < SIGNIFICANT
        if different:
            return cls.SLIGHTLY_DIFFERENT if within_margin else cls.DIFFERENT
        return cls.EQUIVALENT if within_margin else cls.UNDECIDED


class Difference(NamedTuple):
    """A mean difference with its interval, and what can be said about it, in the unit of the scores."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided, that the difference is none."""
    p_margin: float
    """That it is as large as the margin, either way: small where the two are equivalent."""

    def __str__(self) -> str:
        return str(Interval(*self[:3]))


def blocks(
    scores: pd.DataFrame, metric: str
) -> tuple[Float[np.ndarray, "A S"], Float[np.ndarray, " A"]]:
    """Sums of a score per article and seed, and the number of questions per article.

    Raises ValueError unless every question (`id`, of article `title`) has exactly one score per `seed`.
    """
    table = scores.pivot(index=["title", "id"], columns="seed", values=metric)
    if table.isna().any(axis=None):
        raise ValueError(f"{metric}: not every question has a score for every seed")
    articles = table.groupby(level="title", observed=True)
    return articles.sum().to_numpy(float), articles.size().to_numpy(float)


def resample(
    scores: pd.DataFrame, metric: str, level: float = 0.95, seed: int = 0
) -> tuple[Interval, np.ndarray]:
    """The mean score with its percentile interval, and the resampled means. Where there is a single article nothing can
    be said: the interval is nan and there are none. A single seed is taken as it is."""
    totals, sizes = blocks(scores, metric)
    mean = float(totals.sum() / sizes.sum() / totals.shape[1])
    if len(sizes) < 2:
        return Interval(mean, float("nan"), float("nan")), EMPTY

    def over_both(article, chosen, axis):
        picked = totals[article[..., :, None].astype(int), chosen[..., None, :].astype(int)]
        return picked.sum((-1, -2)) / sizes[article.astype(int)].sum(-1) / chosen.shape[-1]

    def over_articles(article, axis):
        return (
            totals[article.astype(int)].sum((-1, -2))
            / sizes[article.astype(int)].sum(-1)
            / totals.shape[1]
        )

    data = [np.arange(length) for length in totals.shape if length > 1]
    result = stats.bootstrap(
        data, over_both if len(data) == 2 else over_articles, vectorized=True, method="percentile",
        confidence_level=level, n_resamples=RESAMPLES, batch=500, rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = result.confidence_interval
    return Interval(mean, float(low), float(high)), result.bootstrap_distribution


def interval(scores: pd.DataFrame, metric: str = "f1") -> Interval:
    """Mean of a score (columns `id`, `title`, `seed` and the metric's) with a 95 % interval over articles and seeds."""
    return resample(scores, metric)[0]


def difference(
    first: pd.DataFrame, second: pd.DataFrame, metric: str = "f1", margin: float = 2.0
) -> Difference:
    """First minus second, on the same questions and the seeds that both have (an equal seed means equal initial weights
    and order of examples). `p_margin` is that of two one-sided tests (Schuirmann, 1987).

    Raises ValueError where they share no seed, or where one has a question that the other lacks.
    """
    on = ["id", "title", "seed"]
    shared = set(first["seed"]) & set(second["seed"])
    first, second = (side[side["seed"].isin(shared)] for side in (first, second))
    pair = first[[*on, metric]].merge(
        second[[*on, metric]], on=on, how="outer", suffixes=("_first", "_second")
    )
    if not shared or len(pair) != len(first) or len(pair) != len(second):
        raise ValueError("the two were not scored on the same questions with a seed in common")
    pair[metric] = pair[f"{metric}_first"] - pair[f"{metric}_second"]
    found, means = resample(pair, metric)
    if not len(means):
        return Difference(*found, float("nan"), float("nan"))
    below, above = at_most(means, 0.0), at_most(-means, 0.0)
    return Difference(
        *found,
        min(1.0, 2 * min(below, above)),
        max(at_most(means, -margin), at_most(-means, -margin)),
    )


def at_most(means: np.ndarray, bound: float) -> float:
    """Share of the resampled means at or below the bound, never zero (Davison & Hinkley, 1997, section 4.2)."""
    return float((1 + (means <= bound).sum()) / (1 + len(means)))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values that keep the chance of any false claim among them (Holm, 1979)."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(
        np.asarray(p, float)[order] * np.arange(len(order), 0, -1)
    ).clip(max=1.0)
    adjusted = np.empty(len(order))
    adjusted[order] = stepped
    return adjusted.tolist()


def pairs(scores: pd.DataFrame, by: str, metric: str = "f1", margin: float = 2.0) -> pd.DataFrame:
    """Every pair of levels of `by`, better one first: difference, interval, Holm-adjusted p that it is none and that
    it reaches the margin, and in words which of them can be excluded."""
    levels = (
        scores.groupby(by, sort=False, observed=True)[metric]
        .mean()
        .sort_values(ascending=False)
        .index
    )
    require(len(levels) > 1, by, list(levels), "at least two levels to compare")
    groups = {level: scores[scores[by] == level] for level in levels}
    rows = []
    for first, second in combinations(levels, 2):
        found = difference(groups[first], groups[second], metric, margin)
        if found.mean < 0:  # on the seeds that both have the order is the other one
            first, second, found = (
                second,
                first,
                difference(groups[second], groups[first], metric, margin),
            )
        rows.append({"first": first, "second": second} | found._asdict())
    table = pd.DataFrame(rows)
    table["p"], table["p_margin"] = holm(table["p"].tolist()), holm(table["p_margin"].tolist())
    table["finding"] = [
        Finding.of(p, p_margin) for p, p_margin in zip(table["p"], table["p_margin"], strict=True)
    ]
    return table


def contrast(
    scores: pd.DataFrame,
    factor: str,
    first: str,
    second: str,
    metric: str = "f1",
    margin: float = 2.0,
) -> Difference:
    """Mean difference in a score between two levels of a factor, on the same examples and seeds, everything else
    averaged over. Raises ValueError where one level has scores that the other lacks."""
    pair = scores[scores[factor].isin([first, second])]
    if pair.groupby([factor, "id"], observed=True)[metric].count().nunique() != 1:
        raise ValueError(
            f"{factor}: not every example has as many scores under {first!r} as under {second!r}"
        )
    means = (
        pair.groupby([factor, "id", "title", "seed"], observed=True)[metric].mean().reset_index()
    )
    try:
        return difference(
            *(means[means[factor] == level] for level in (first, second)), metric, margin
        )
    except ValueError as error:
        raise ValueError(f"{factor}: {first!r} and {second!r}: {error}") from error
