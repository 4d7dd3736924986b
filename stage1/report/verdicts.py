"""Verdicts on claims: what the records say, with the numbers, and how rules are registered."""

import enum
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stage1.report.evidence import Evidence

Truth = bool | np.bool_


class Verdict(enum.StrEnum):
    """What the records say of a claim."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    DEPENDS = "depends"
    OPEN = "open"


class Judgement(NamedTuple):
    verdict: Verdict
    evidence: str
    """The numbers behind the verdict."""
    on: str = ""
    """What the verdict depends on, where two readings of the claim disagree."""

    def __str__(self) -> str:
        return f"depends on {self.on}" if self.verdict is Verdict.DEPENDS else str(self.verdict)


Rule = Callable[[Evidence], Judgement]


class Claim(NamedTuple):
    statement: str
    rule: Rule
    with_warmup: bool
    """Whether the rule also applies to the runs with a reconstruction warm-up."""


CLAIMS: dict[str, Claim] = {}
"""Every claim, by its letter."""


def claim(letter: str, statement: str, with_warmup: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule under the claim that it judges."""

    def register(rule: Rule) -> Rule:
        CLAIMS[letter] = Claim(statement, rule, with_warmup)
        return rule

    return register


def decided(confirmed: Truth, refuted: Truth) -> Verdict:
    """Return the verdict of one number; open, if its interval settles neither side."""
    if confirmed:
        return Verdict.CONFIRMED
    return Verdict.REFUTED if refuted else Verdict.OPEN


def agreed(first: Truth, second: Truth) -> Verdict:
    """Return the verdict that two readings agree on."""
    if first == second:
        return Verdict.CONFIRMED if first else Verdict.REFUTED
    return Verdict.DEPENDS


def signed(interval: tuple[float, ...]) -> str:
    """Return the first three numbers, mean, low and high, with their signs."""
    mean, low, high = interval[:3]
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def adapter_name(adapter: tuple[str, str]) -> str:
    return ", ".join(adapter)
