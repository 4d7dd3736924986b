"""The error of a mean over articles and seeds: every seed answers every question.

The mean errs for two reasons that are independent of each other, and both count:

- the articles. Their variance is that of the articles' means over seeds, less what is due to the
  interaction of articles and seeds (Cameron, Gelbach & Miller, 2011, "Robust inference with
  multiway clustering", section 2);
- the seeds. Their variance is that of the seeds' means, which holds the interaction. With S seeds
  it has S - 1 degrees of freedom.

The half-widths of the two t intervals are added in quadrature. If both parts are normal, this
covers the mean at least as often as the level says, however large either is (Banerjee, 1960,
"Approximate confidence interval for linear functions of means of k populations when the population
variances are not equal"). The price is width: with two seeds, t is 12.7. No method makes up for
seeds that are very skewed, such as one collapse among three.

The pigeonhole bootstrap (Owen, 2007) and effective degrees of freedom (Satterthwaite, 1946) give
narrower intervals, which cover too rarely with few seeds (`benchmarks/interval_coverage.py`).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import stdtrit

from stage1.scoring.intervals import Interval

SMALLEST_P = 1e-15
"""P values below this are not told apart."""
Values = float | Float[np.ndarray, "..."]
"""One value, or one for each of many tables at once."""


class Variances(NamedTuple):
    """Estimates of the variance of a mean, by source, in squared units of the scores."""

    articles: Values
    """That of the articles' means over these seeds; holds the interaction."""
    seeds: Values
    """That of the seeds' means over these articles; holds the interaction; 0 for one seed."""
    interaction: Values
    """That of what neither explains; 0 for one seed."""


def variances(totals: Float[np.ndarray, "... A S"], sizes: Float[np.ndarray, " A"]) -> Variances:
    """Return the parts of the variance of the mean over all questions and seeds.

    `totals` are sums of scores per article and seed, `sizes` the questions of each article. At
    least two articles.
    """
    count, seeds = totals.shape[-2:]
    means = totals.sum(-2) / sizes.sum()
    off = totals - sizes[:, None] * means[..., None, :]  # sums to zero over the articles
    of_articles = off.mean(-1)
    rest = off - of_articles[..., None]
    scale = count / (count - 1) / sizes.sum() ** 2
    articles = scale * (of_articles**2).sum(-1)
    if seeds == 1:
        return Variances(articles, np.zeros_like(articles), np.zeros_like(articles))
    interaction = scale * (rest**2).sum((-1, -2)) / (seeds * (seeds - 1))
    return Variances(articles, means.var(-1, ddof=1) / seeds, interaction)


def squared_half_width(parts: Variances, articles: int, seeds: int, p: float) -> Values:
    """Return the square of half the interval's width at level 1 - p.

    It is never narrower than the interval over articles alone, which is that of a single seed.
    """
    t = stdtrit(articles - 1, p / 2)
    alone = t * t * parts.articles
    if seeds == 1:
        return alone
    t_seeds = stdtrit(seeds - 1, p / 2)
    without_seeds = np.maximum(parts.articles - parts.interaction, 0.0)
    return np.maximum(alone, t * t * without_seeds + t_seeds * t_seeds * parts.seeds)


class Estimate(NamedTuple):
    """A mean score, and what its error is made of; a single article says nothing of its error."""

    mean: float
    parts: Variances | None
    articles: int
    seeds: int

    @classmethod
    def of(cls, totals: Float[np.ndarray, "A S"], sizes: Float[np.ndarray, " A"]) -> "Estimate":
        """Return the estimate from sums of scores per article and seed."""
        mean = float(totals.sum() / sizes.sum() / totals.shape[1])
        parts = variances(totals, sizes) if len(sizes) > 1 else None
        return cls(mean, parts, *totals.shape)

    def half_width(self, p: float = 0.05) -> float:
        """Return half the width of the interval at level 1 - p; nan for a single article."""
        if self.parts is None:
            return math.nan
        return math.sqrt(squared_half_width(self.parts, self.articles, self.seeds, p))

    def interval(self, level: float = 0.95) -> Interval:
        half = self.half_width(1 - level)
        return Interval(self.mean, self.mean - half, self.mean + half)

    def p(self, distance: float) -> float:
        """Return the two-sided p value of a distance from the mean; nan for a single article.

        It is 1 minus the level whose interval just reaches that far, so it is below 0.05 exactly
        where the 95 % interval does not.
        """
        if self.parts is None:
            return math.nan
        if distance == 0:
            return 1.0
        if self.half_width(SMALLEST_P) <= abs(distance):
            return SMALLEST_P

        def excess(log_p: float) -> float:
            return self.half_width(math.exp(log_p)) - abs(distance)

        return math.exp(brentq(excess, math.log(SMALLEST_P), 0.0))

    def p_beyond(self, distance: float) -> float:
        """Return the one-sided p value that the true mean lies this far from the mean, or farther.

        At least one half where the distance is not positive.
        """
        tail = self.p(distance) / 2
        return tail if distance > 0 else 1 - tail
