"""Keep training text apart from test questions: shared 13-grams of words, and equal questions.

A passage that shares 13 successive words with a test passage or question is left out, as in GPT-3's
decontamination (Brown et al., 2020, appendix C). Text without case, punctuation and white space is
compared. A test question of fewer words is compared as a whole.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt64

N = 13
WORD = re.compile(r"\w+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""An odd number (2^64 / golden ratio): the base of the polynomial hash, modulo 2^64."""


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def hashed(ids: UInt64[np.ndarray, " W"]) -> UInt64[np.ndarray, " G"]:
    """Return a hash of every N successive word ids, G = max(0, W - N + 1)."""
    grams = np.zeros(max(0, len(ids) - N + 1), dtype=np.uint64)
    for i in range(N):
        grams = grams * FACTOR + ids[i : i + len(grams)]
    return grams


class HeldOut:
    """The test texts by their 13-grams, and the test questions."""

    def __init__(self, rows: Iterable[dict]):
        """Read SQuAD rows with `context` and `question`."""
        rows = list(rows)
        texts = {row[field] for row in rows for field in ("context", "question")}
        sequences = [words(text) for text in sorted(texts)]
        # Words that no test text holds get id 0. No 13-gram with such a word can be shared.
        vocabulary = sorted({word for sequence in sequences for word in sequence})
        rng = np.random.default_rng(0)
        ids = rng.integers(1, 1 << 63, len(vocabulary), dtype=np.uint64)
        self.ids = dict(zip(vocabulary, ids.tolist(), strict=True))
        grams = [hashed(self.encode(sequence)) for sequence in sequences]
        self.grams = set(np.concatenate([*grams, hashed(self.encode([]))]).tolist())
        self.questions = {" ".join(words(row["question"])) for row in rows}

    def encode(self, sequence: Sequence[str]) -> UInt64[np.ndarray, " W"]:
        return np.array([self.ids.get(word, 0) for word in sequence], dtype=np.uint64)

    def shares_text(self, text: str) -> bool:
        """Return whether the text shares 13 successive words with a test passage or question."""
        if not self.grams:
            return False
        ids = self.encode(words(text))
        known = np.convolve(ids > 0, np.ones(N), "valid") == N if len(ids) >= N else []
        # Almost all passages end here, without a hash.
        return bool(np.any(known)) and not self.grams.isdisjoint(hashed(ids)[known].tolist())

    def shares_question(self, question: str) -> bool:
        """Return whether it is a test question, up to case and punctuation, or shares 13 words."""
        return " ".join(words(question)) in self.questions or self.shares_text(question)
