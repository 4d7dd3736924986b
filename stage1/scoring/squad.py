"""SQuAD v1.1 exact match and F1 of an answer.

Follows the official v1.1 script (Rajpurkar et al., 2016, evaluate-v1.1.py): lower case, punctuation
and the articles a, an, the removed, white space collapsed, the maximum over gold answers. Two texts
without a common word have F1 0, even where both normalise to nothing; there the v2 script gives 1.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return the answer as the v1.1 script compares it."""
    text = text.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """Return 100 if the normalised prediction equals a normalised gold answer, else 0."""
    return 100.0 * max(normalize(prediction) == normalize(gold) for gold in require_golds(golds))


def f1(prediction: str, golds: Sequence[str]) -> float:
    """Return the harmonic mean of word precision and recall (percent), best over gold answers."""
    words = normalize(prediction).split()
    return 100.0 * max(word_f1(words, normalize(gold).split()) for gold in require_golds(golds))


def word_f1(prediction: list[str], gold: list[str]) -> float:
    common = sum((Counter(prediction) & Counter(gold)).values())
    return 2 * common / (len(prediction) + len(gold)) if common else 0.0


def require_golds(golds: Sequence[str]) -> Sequence[str]:
    if isinstance(golds, str) or not golds:
        raise ValueError(f"golds={golds!r}: expected a list of at least one gold answer")
    return golds
