"""The almanac's grammar: templates, word lists and name stocks, read from `assets/almanac.yaml`."""

import bisect
import itertools
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import yaml

from stage1.fields import require

HELD_OUT = 0.2
"""Share of each name stock that only names="unseen" may use."""


class Words(NamedTuple):
    """Words in order of frequency, with Zipf-Mandelbrot weights 1 / (rank + 10): a long tail."""

    words: tuple[str, ...]
    cumulative: tuple[float, ...]

    @classmethod
    def of(cls, words: Sequence[str]) -> "Words":
        # Sums of quotients only: exact under IEEE 754, so equal on every machine.
        weights = (1 / (rank + 10) for rank in range(len(words)))
        return cls(tuple(words), tuple(itertools.accumulate(weights)))

    def draw(self, rng: Callable[[], float]) -> str:
        return self.words[bisect.bisect(self.cumulative, rng() * self.cumulative[-1])]


class Statement(NamedTuple):
    """A sentence template cut at its two slots."""

    before: str
    between: str
    after: str
    subject_first: bool


class Relation(NamedTuple):
    """What a statement says of its subject; `make_answer` names a method of `writer.Writer`."""

    make_answer: str
    argument: str
    statements: tuple[Statement, ...]
    questions: tuple[str, ...]
    reverse: tuple[str, ...]
    """Questions that give the answer and ask for the subject."""


class Grammar(NamedTuple):
    kinds: dict[str, tuple[Relation, ...]]
    lists: dict[str, tuple[Words, ...]]
    names: dict[str, Words]
    fillers: tuple[tuple[str, ...], ...]
    """Text and slot names, alternating."""
    quotes: dict[int, tuple[str, ...]]
    """What a question for a long answer ends with, by the sentences that it asks for."""
    months: tuple[str, ...]


def name_stocks(rows_by_stock: dict, names: str) -> dict[str, Words]:
    """Return the `seen` or `unseen` words of every stock; no word belongs to two stocks."""
    taken: set[str] = set()
    stocks = {}
    for stock, rows in rows_by_stock.items():
        words = [word for word in map("".join, itertools.product(*rows)) if word not in taken]
        words = list(dict.fromkeys(words))
        taken.update(words)
        rng = random.Random(f"names of {stock}").random
        words.sort(key=lambda _: rng())
        held_out = int(HELD_OUT * len(words))
        stocks[stock] = Words.of(words[:held_out] if names == "unseen" else words[held_out:])
    return stocks


def read_statement(template: str) -> Statement:
    before, first, between, _, after = re.split(r"(\{[sa]\})", template)
    return Statement(before, between, after, first == "{s}")


def read_relation(entry: dict) -> Relation:
    maker, _, argument = entry["answer"].partition(":")
    statements = tuple(map(read_statement, entry["statements"]))
    questions, reverse = tuple(entry["questions"]), tuple(entry.get("reverse", ()))
    return Relation(maker, argument, statements, questions, reverse)


@cache
def grammar(names: str) -> Grammar:
    """Return the grammar with the `seen` or the `unseen` names; other names raise ValueError."""
    require(names in ("seen", "unseen"), "names", names, "'seen' or 'unseen'")
    asset = resources.files("stage1").joinpath("assets/almanac.yaml")
    raw = yaml.safe_load(asset.read_text("utf-8"))
    kinds = raw["kinds"].items()
    return Grammar(
        kinds={kind: tuple(map(read_relation, entries.values())) for kind, entries in kinds},
        lists={name: tuple(map(Words.of, rows)) for name, rows in raw["lists"].items()},
        names=name_stocks(raw["names"], names),
        fillers=tuple(tuple(re.split(r"\{(\w+)\}", filler)) for filler in raw["fillers"]),
        quotes={count: tuple(wordings) for count, wordings in raw["quotes"].items()},
        months=tuple(raw["months"]),
    )
