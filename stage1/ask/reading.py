"""One question's answers under every condition, as a result to print or to show in a notebook."""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

WIDEST = 48
"""Characters of an answer that a printed table shows."""
FORMATS = dict.fromkeys(("probability", "per_token"), "{:.3f}".format)


class Answered(NamedTuple):
    """An answer under one condition."""

    text: str
    tokens: list[tuple[str, float]]
    """Generated tokens with their probabilities, the end token last if it was generated."""
    ended: bool
    """Whether the end token was generated within `max_new_tokens`."""
    loss: float
    """Sum of the tokens' negative log probabilities, in nats."""

    @property
    def probability(self) -> float:
        """Product of the probabilities that greedy decoding gave to the tokens."""
        return math.exp(-self.loss)

    @property
    def per_token(self) -> float:
        """Geometric mean of the tokens' probabilities."""
        return math.exp(-self.loss / len(self.tokens))


@dataclass(frozen=True)
class Reading:
    """The frozen model's answer to one question, and its answers under every condition."""

    question: str
    context: str
    """The part of the passage that the model read."""
    cut: int
    """Characters at the end of the passage that did not fit into `max_prompt_tokens`."""
    condition: str
    """The condition of `answer`: the first adapter that was given, or else `pca_inverse` if a ratio
    was, or else the original `embeddings`."""
    answers: Mapping[str, Answered]
    """By condition."""
    table: pd.DataFrame
    """One row per condition: `answer`, `probability`, `per_token`, the number of `tokens`, `ended`
    (see `Answered`), and K and the ratio D/K where embeddings were compressed."""

    @property
    def answer(self) -> str:
        return self.answers[self.condition].text

    @property
    def probability(self) -> float:
        """Probability of the answer and its end token; see `Answered`."""
        return self.answers[self.condition].probability

    @property
    def tokens(self) -> list[tuple[str, float]]:
        """The answer's tokens with their probabilities."""
        return self.answers[self.condition].tokens

    def heading(self) -> str:
        cut = f"; the passage's last {self.cut} characters were cut" if self.cut else ""
        return f"{self.answer!r} from {self.condition}, probability {self.probability:.3f}{cut}"

    def __str__(self) -> str:
        table = self.shown().to_string(index=False, formatters=FORMATS, max_colwidth=WIDEST)
        return f"{self.heading()}\n\n{table}"

    def _repr_html_(self) -> str:
        table = self.shown().to_html(index=False, formatters=FORMATS)
        return f"<p>{html.escape(self.heading())}</p>{table}"

    def shown(self) -> pd.DataFrame:
        """Return the table with blanks where nothing was compressed."""
        return self.table.astype({"K": object, "ratio": object}).fillna("")


def answer_table(
    answers: Mapping[str, Answered], widths: Mapping[str, int], D: int
) -> pd.DataFrame:
    """Return one row per condition; `widths` has K of those that read compressed embeddings."""
    rows = [
        {
            "condition": name,
            "answer": own.text,
            "probability": own.probability,
            "per_token": own.per_token,
            "tokens": len(own.tokens),
            "ended": own.ended,
            "K": widths.get(name),
            "ratio": round(D / widths[name], 1) if name in widths else None,
        }
        for name, own in answers.items()
    ]
    return pd.DataFrame(rows).astype({"K": "Int64", "ratio": "Float64"})
