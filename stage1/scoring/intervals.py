"""Confidence intervals of mean scores over groups of questions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean and its confidence interval, in the unit of the scores."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def mean_interval(
    scores: Sequence[float],
    groups: Sequence[str],
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Return the mean with a percentile bootstrap interval that resamples groups (articles).

    Questions on one article are not independent, so resampling single questions would make the
    interval too narrow (Davison & Hinkley, 1997, section 3.8). A single group has no interval: its
    bounds are nan. Raises ValueError unless every score has a group and there is at least one.
    """
    if len(scores) != len(groups) or not len(scores):
        raise ValueError(
            f"{len(scores)} scores and {len(groups)} groups: expected as many of each, at least one"
        )
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    totals, sizes = np.bincount(group, weights=scores), np.bincount(group)
    mean = float(np.mean(scores))
    if len(sizes) < 2:
        return Interval(mean, float("nan"), float("nan"))

    def ratio(totals, sizes, axis):
        return totals.sum(axis) / sizes.sum(axis)

    result = stats.bootstrap(
        (totals, sizes), ratio, paired=True, vectorized=True, method="percentile",
        confidence_level=level, n_resamples=resamples, rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = result.confidence_interval
    return Interval(mean, float(low), float(high))
