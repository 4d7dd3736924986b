"""How often 95 % intervals over articles and seeds hold the true mean, and how wide they are.

    python benchmarks/interval_coverage.py

Scores are drawn with known variances: 170 articles with standard deviation 1, the interaction of
articles and seeds, and seeds whose standard deviation is a multiple of the standard error that
articles alone would leave. Skewness 0 is normal; 1 and 2 are gamma distributed. Methods:

- crossed: that of `stage1.scoring`;
- satterthwaite: the sum of the three variances with effective degrees of freedom;
- seeds: a t interval over the means of the seeds;
- bootstrap: percentiles of 400 means over resampled articles and seeds (the pigeonhole bootstrap).

Width is the mean width over that of a normal interval with the variances known.
"""

from itertools import product

import common
import numpy as np
import pandas as pd
from scipy.special import stdtrit

from stage1.scoring.crossed import squared_half_width, variances

METHODS = ("crossed", "satterthwaite", "seeds", "bootstrap")
ARTICLES, RESAMPLES = 170, 400
INTERACTIONS, SEEDS, OF_SEEDS, SKEWNESS = (0.3, 1.0, 5.0), (2, 3, 5), (0, 0.5, 1, 2, 5), (0, 1, 2)


def skewed(rng: np.random.Generator, skewness: float, shape: tuple[int, ...]) -> np.ndarray:
    """Draw with mean 0 and standard deviation 1."""
    if not skewness:
        return rng.normal(size=shape)
    gamma = 4 / skewness**2
    return (rng.gamma(gamma, size=shape) - gamma) / gamma**0.5


def satterthwaite(scores: np.ndarray) -> np.ndarray:
    """Return half-widths [R] with effective degrees of freedom (Satterthwaite, 1946)."""
    _, articles, seeds = scores.shape
    parts = variances(scores, np.ones(articles))
    total = np.maximum(parts.articles, parts.articles + parts.seeds - parts.interaction)
    degrees = (articles - 1, seeds - 1, (articles - 1) * (seeds - 1))
    spread = sum(part**2 / free for part, free in zip(parts, degrees, strict=True))
    return -stdtrit(total**2 / spread, 0.025) * np.sqrt(total)


def bootstrap(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the bounds [2, R] of percentile intervals; all tables share the draws."""
    of_articles, of_seeds = (
        rng.multinomial(length, np.full(length, 1 / length), RESAMPLES) / length
        for length in scores.shape[1:]
    )
    means = np.einsum("bi,ris,bs->rb", of_articles, scores, of_seeds, optimize=True)
    return np.percentile(means, [2.5, 97.5], axis=1)


def bounds(scores: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the bounds [2, R] of every method."""
    _, articles, seeds = scores.shape
    mean, parts = scores.mean((1, 2)), variances(scores, np.ones(articles))
    halves = {
        "crossed": np.sqrt(squared_half_width(parts, articles, seeds, 0.05)),
        "satterthwaite": satterthwaite(scores),
        "seeds": -stdtrit(seeds - 1, 0.025) * np.sqrt(parts.seeds),
    }
    found = {name: np.stack([mean - half, mean + half]) for name, half in halves.items()}
    return found | {"bootstrap": bootstrap(scores, rng)}


def measure(interaction: float, seeds: int, of_seeds: float, skewness: float, trials: int) -> dict:
    rng = np.random.default_rng(0)
    error = np.sqrt((1 + interaction**2 / seeds) / ARTICLES)
    scores = rng.normal(size=(trials, ARTICLES, 1))
    scores = scores + interaction * rng.normal(size=(trials, ARTICLES, seeds))
    scores += of_seeds * error * skewed(rng, skewness, (trials, 1, seeds))
    known = 2 * 1.96 * error * np.sqrt(1 + of_seeds**2 / seeds)
    row = {"seeds": seeds, "interaction": interaction, "seed sd": of_seeds, "skewness": skewness}
    for name, (low, high) in bounds(scores, rng).items():
        row[f"{name} coverage"] = np.mean((low <= 0) & (high >= 0))
        row[f"{name} width"] = np.mean(high - low) / known
    return row


def main() -> None:
    given = common.parser(__doc__, "interval_coverage.csv", trials=3_000).parse_args()
    settings = product(SEEDS, INTERACTIONS, OF_SEEDS, SKEWNESS)
    kept = [each for each in settings if each[2] or not each[3]]  # no seed variance, no skewness
    rows = [
        measure(interaction, seeds, of_seeds, skewness, given.trials)
        for seeds, interaction, of_seeds, skewness in kept
    ]
    table = pd.DataFrame(rows)
    table.to_csv(given.out, index=False, float_format="%.3f")
    print(table.groupby(["seeds", "skewness"])[[f"{name} coverage" for name in METHODS]].min())
    print(table.groupby(["seeds", "seed sd"])[[f"{name} width" for name in METHODS]].mean())


if __name__ == "__main__":
    main()
