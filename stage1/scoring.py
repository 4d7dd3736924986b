"""SQuAD v1.1 exact match and F1 per example, and intervals for their means.

Follows the official v1.1 script (Rajpurkar et al., 2016, evaluate-v1.1.py): lower case, punctuation and the articles
a, an, the removed, white space collapsed, the maximum over gold answers. Where two texts share no word the F1 is 0;
that includes two texts that both normalise to nothing, where the v2 script gives 1.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

PUNCTUATION = str.maketrans("", "", string.punctuation)
TEACHER_FORCED = ("ce_first", "ce_later", "right_first", "right_later")


class Interval(NamedTuple):
    """A mean and its confidence interval, in the unit of the scores."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def normalize(text: str) -> str:
    """The answer as the v1.1 script compares it."""
    text = text.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """100 if the normalised prediction equals a normalised gold answer, else 0."""
    return 100.0 * max(normalize(prediction) == normalize(gold) for gold in require_golds(golds))


def f1(prediction: str, golds: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall in percent, maximum over gold answers."""
    return 100.0 * max(bag_f1(normalize(prediction).split(), normalize(gold).split()) for gold in require_golds(golds))


def bag_f1(prediction: list[str], gold: list[str]) -> float:
    common = sum((Counter(prediction) & Counter(gold)).values())
    return 2 * common / (len(prediction) + len(gold)) if common else 0.0


def require_golds(golds: Sequence[str]) -> Sequence[str]:
    if isinstance(golds, str) or not golds:
        raise ValueError(f"golds={golds!r}: expected a list of at least one gold answer")
    return golds


def mean_interval(
    scores: Sequence[float], groups: Sequence[str], level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Interval:
    """Mean of the scores with a percentile bootstrap interval that resamples whole groups (articles), not examples.

    Questions on one article are not independent, so resampling them one by one would make the interval too narrow
    (Davison & Hinkley, 1997, section 3.8). With a single group the interval is (nan, nan): nothing can be said.
    """
    if len(scores) != len(groups) or not len(scores):
        raise ValueError(f"{len(scores)} scores and {len(groups)} groups: expected as many of each, at least one")
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


def retention(f1: float, ceiling: float, floor: float) -> float:
    """(F1 - floor) / (F1 of the original embeddings - floor) in percent; nan where the ceiling is no higher."""
    return 100 * (f1 - floor) / (ceiling - floor) if ceiling > floor else float("nan")


def summary(scored: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One row per group of scored examples: mean F1 and EM in percent with `_low` and `_high`; rates of answers that
    ended by themselves and of empty ones; mean answer length in tokens; teacher-forced cross-entropy (nats) and
    accuracy (0 to 1) at the first and at later answer tokens, averaged over examples; number of questions and articles.
    """
    rows = []
    for key, group in scored.groupby(by, sort=False):
        row = dict(zip(by, key, strict=True))
        for metric in ("f1", "em"):
            mean, low, high = mean_interval(group[metric].tolist(), group["title"].tolist())
            row |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
        row |= {name: float(group[name].mean()) for name in ("ended", "empty", "tokens", *TEACHER_FORCED)}
        row |= {"questions": len(group), "articles": group["title"].nunique()}
        rows.append(row)
    return pd.DataFrame(rows)
