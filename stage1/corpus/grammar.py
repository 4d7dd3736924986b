"""The almanac's grammar: templates, word lists and name stocks, read from `assets/almanac.yaml`."""

import bisect
import itertools
import random
import re
from functools import cache
from importlib import resources
from typing import NamedTuple

import yaml

HELD_OUT = 0.2  # share of each name stock that only names="unseen" may use


class Words(NamedTuple):
    """Words in order of frequency, drawn with Zipf-Mandelbrot weights 1 / (rank + 10): a long tail, no runaway head."""

    words: tuple[str, ...]
    cumulative: tuple[float, ...]

    @classmethod
    def of(cls, words) -> "Words":
        # Sums of quotients only: exact under IEEE 754, so the table is the same on every machine.
        return cls(
            tuple(words), tuple(itertools.accumulate(1 / (rank + 10) for rank in range(len(words))))
        )

    def draw(self, rng) -> str:
        return self.words[bisect.bisect(self.cumulative, rng() * self.cumulative[-1])]


class Statement(NamedTuple):
    """A sentence template cut at its two slots."""

    before: str
    between: str
    after: str
    subject_first: bool


class Relation(NamedTuple):
    make_answer: str
    argument: str
    statements: tuple[Statement, ...]
    questions: tuple[str, ...]
    reverse: tuple[str, ...]


class Grammar(NamedTuple):
    kinds: dict[str, tuple[Relation, ...]]
    lists: dict[str, tuple[Words, ...]]
    names: dict[str, Words]
    fillers: tuple[tuple[str, ...], ...]
    months: tuple[str, ...]


def name_stocks(rows_by_stock: dict, names: str) -> dict[str, Words]:
    """Every stock's `seen` or `unseen` words; no word stands in two stocks, so unseen words are new everywhere."""
    taken, stocks = set(), {}
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
    return Relation(
        maker, argument, statements, tuple(entry["questions"]), tuple(entry.get("reverse", ()))
    )


@cache
def grammar(names: str) -> Grammar:
    """The grammar with the `seen` or the `unseen` names. Raises ValueError on any other word."""
    if names not in ("seen", "unseen"):
        raise ValueError(f"names={names!r}: expected 'seen' or 'unseen'")
    raw = yaml.safe_load(
        resources.files("stage1").joinpath("assets/almanac.yaml").read_text("utf-8")
    )
    return Grammar(
        kinds={
            kind: tuple(map(read_relation, entries.values()))
            for kind, entries in raw["kinds"].items()
        },
        lists={name: tuple(map(Words.of, rows)) for name, rows in raw["lists"].items()},
        names=name_stocks(raw["names"], names),
        fillers=tuple(tuple(re.split(r"\{(\w+)\}", filler)) for filler in raw["fillers"]),
        months=tuple(raw["months"]),
    )
