"""What wrong answers are: another span of the passage, or text that the passage does not hold."""

import enum
from collections.abc import Mapping, Sequence

import pandas as pd

from stage1.scoring.squad import exact_match, normalize


class Kind(enum.StrEnum):
    RIGHT = "right"
    EMPTY = "empty"
    OTHER_SPAN = "another span of the passage"
    NOT_IN_PASSAGE = "not in the passage"


def kind(prediction: str, golds: Sequence[str], passage: str) -> Kind:
    """Return what an answer is. Texts are compared as SQuAD v1.1 normalises them."""
    if exact_match(prediction, golds):
        return Kind.RIGHT
    if not normalize(prediction):
        return Kind.EMPTY
    inside = f" {normalize(prediction)} " in f" {normalize(passage)} "
    return Kind.OTHER_SPAN if inside else Kind.NOT_IN_PASSAGE


def kinds(answers: pd.DataFrame, passages: Mapping[str, str]) -> pd.DataFrame:
    """Return the share of each kind in percent, one row per condition.

    Columns of `answers`: `condition`, `id`, `prediction`, `golds`; `passages` are texts by `id`.
    """
    rows = zip(answers["prediction"], answers["golds"], answers["id"], strict=True)
    found = [kind(text, list(golds), passages[name]) for text, golds, name in rows]
    shares = pd.crosstab(answers["condition"], pd.Categorical(found, list(Kind)), dropna=False)
    return (100 * shares.div(shares.sum(axis=1), axis=0)).rename_axis(columns=None)


def drawn(answers: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Draw answers by a seed, wrong and right in turn until one kind is used up, in their order.

    Columns of `answers`: `em` in percent, and any others; rows have an index without repetitions.
    """
    shuffled = answers.sample(frac=1, random_state=seed)
    turn = shuffled.groupby(shuffled["em"] < 100).cumcount()
    return answers.loc[sorted(turn.nsmallest(count).index)]
