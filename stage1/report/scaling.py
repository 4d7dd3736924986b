"""Readers of several widths: what 8x compression costs at each, and what can be said of wider ones.

A quantity is extrapolated only where the narrower widths predict the widest one within their own
interval: it is fitted without it first.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from stage1 import store
from stage1.report import english
from stage1.report.english import PCA_INVERSE, RECIPE, English, difference_of
from stage1.report.english_answer import gained
from stage1.report.evidence import AS_FOUND
from stage1.scoring.comparison import Difference, Finding
from stage1.scoring.intervals import Interval

TARGET_D = 4_096
"""Width of Llama-3.1-8B."""
PAIRS = {
    "warm-up over none, PCA inverse": ((PCA_INVERSE, True), (PCA_INVERSE, False)),
    "warm-up over none, adapter as found": ((AS_FOUND, True), (AS_FOUND, False)),
    "PCA inverse over as found, no warm-up": ((PCA_INVERSE, False), (AS_FOUND, False)),
    "PCA inverse over as found, warmed up": ((PCA_INVERSE, True), (AS_FOUND, True)),
}
"""Orderings, as pairs of cells: start, and whether it was warmed up."""


class Prediction(NamedTuple):
    """A prediction at a width, with its 95 % interval, and what was found there."""

    predicted: Interval
    found: float

    @property
    def holds(self) -> bool:
        return bool(self.predicted.low <= self.found <= self.predicted.high)


def load() -> list[English]:
    """Return all readers with records, the narrowest first."""
    folder = store.records_folder() / english.FOLDER
    wider = [path.parent.name for path in sorted(folder.glob("*/training.json"))]
    return sorted(map(english.load, [english.FOLDER, *wider]), key=lambda e: e.D)


def table(readers: Sequence[English]) -> pd.DataFrame:
    """Return one row per reader: its shape, ceiling and floor, and what 8x leaves of it."""
    rows = []
    for e in readers:
        shape, kept = e.training["shape"], e.retention(e.f1(RECIPE))
        pca = e.untrained_row("pca_inverse")
        rows.append(
            {
                "D": e.D,
                "K": e.K,
                "V/K": shape["vocabulary"] / e.K,
                "parameters": e.training["parameters"],
                "tokens read": e.training["tokens_read"],
                "ceiling": str(e.untrained_f1("embeddings")),
                "floor": e.floor,
                "variance kept": 1 - pca["fvu"],
                "PCA inverse": pca["f1"],
                "fvu after warm-up": warmup_fvu(e),
                "recipe": str(e.f1(RECIPE)),
                "retention": str(kept),
            }
        )
    return pd.DataFrame(rows)


def warmup_fvu(e: English) -> float:
    """Return the fraction of variance unexplained after the warm-up, from the PCA inverse."""
    return float(e.select(e.runs, RECIPE)["warmup_fvu"].mean())


def orderings(readers: Sequence[English]) -> pd.DataFrame:
    """Return one row per pair of cells: the F1 gained at every width, and what holds throughout."""
    rows = []
    for name, (one, other) in PAIRS.items():
        gains = {}
        for e in readers:
            objective = e.shared(one, other)
            if objective:
                gains[e.D] = difference_of(e, (objective, *one), (objective, *other))
        row = {"pair": name} | {f"D = {e.D}": gained(e, one, other) for e in readers}
        is_whole = len(gains) == len(readers)
        holds = throughout(list(gains.values())) if is_whole else "not measured"
        rows.append(row | {"at every width": holds})
    return pd.DataFrame(rows)


def throughout(gains: Sequence[Difference]) -> str:
    """Say whether the sign of a gain is the same, and certain, at every width."""
    signs = set()
    for gain in gains:
        finding = Finding.of(gain.p, gain.p_margin)
        real = finding in (Finding.DIFFERENT, Finding.SLIGHTLY_DIFFERENT)
        signs.add(("more" if gain.mean > 0 else "less") if real else "no difference shown")
    if len(signs) == 1:
        return signs.pop()
    return "flips" if {"more", "less"} <= signs else "not everywhere"


def logit(share: float) -> float:
    """Return the log odds of a share in percent, kept off 0 and 100."""
    odds = min(max(share, 0.5), 99.5) / 100
    return math.log(odds / (1 - odds))


def percent(log_odds: float) -> float:
    return 100 / (1 + math.exp(-log_odds))


def predicted(widths: Sequence[int], shares: Sequence[float], D: int) -> Interval:
    """Return a share in percent at width D with its 95 % prediction interval.

    A straight line of log odds over log2 D by least squares; the interval is that of one new
    reader, with a t factor (Draper & Smith, 1998, section 3.1). Raises ValueError below three
    widths, which leave no residual.
    """
    if len(widths) < 3:
        raise ValueError(f"{len(widths)} widths: expected three or more for a line with a residual")
    x, y = np.log2(widths), np.array(list(map(logit, shares)))
    line = stats.linregress(x, y)
    residual = y - line.intercept - line.slope * x
    free = len(x) - 2
    spread = math.sqrt((residual**2).sum() / free)
    at = math.log2(D)
    reach = math.sqrt(1 + 1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, free) * spread * reach
    centre = line.intercept + line.slope * at
    return Interval(*(percent(value) for value in (centre, centre - half, centre + half)))


def check(readers: Sequence[English]) -> Prediction | None:
    """Predict the widest reader's retention from the narrower ones; None where they are too few."""
    *narrower, widest = readers
    if len(narrower) < 3:
        return None
    shares = [e.retention(e.f1(RECIPE)).mean for e in readers]
    guess = predicted([e.D for e in narrower], shares[:-1], widest.D)
    return Prediction(guess, shares[-1])


def forecast(readers: Sequence[English]) -> str:
    """Say what may be expected at D = 4,096, or why nothing can be, and what would refute it."""
    widths, found = [e.D for e in readers], check(readers)
    listed = ", ".join(map(str, widths))
    refute = (
        f"One afternoon on a GPU refutes or supports any guess: the preset `llama32_1b` at "
        f"D = 2,048, warmed up and trained with {RECIPE}, three seeds."
    )
    if found is None:
        return (
            f"Readers of {len(widths)} widths ({listed}) leave no residual to judge a line by once "
            f"the widest is held out: no forecast for D = {TARGET_D:,}. {refute}"
        )
    said = (
        f"The narrower readers predict {found.predicted} % of the way from floor to ceiling for "
        f"D = {widths[-1]}; found: {found.found:.1f} %."
    )
    if not found.holds:
        return f"{said} The line does not hold: no forecast for D = {TARGET_D:,}. {refute}"
    shares = [e.retention(e.f1(RECIPE)).mean for e in readers]
    wide = predicted(widths, shares, TARGET_D)
    return f"{said} The line through all of them gives {wide} % at D = {TARGET_D:,}. {refute}"
