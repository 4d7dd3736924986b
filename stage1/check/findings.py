"""Findings of a preflight: a line per check, printed as a table."""

import enum
import html
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from stage1.training.microbatches import TrainingError


class Level(enum.StrEnum):
    OK = "OK"
    WARNING = "warning"
    STOP = "stop"


class Line(NamedTuple):
    """One finding."""

    level: Level
    what: str
    found: str


class PreflightError(RuntimeError):
    """A check found that the study cannot give a result."""


class StoppedError(Exception):
    """Ends the checks with a last line, because the others need what is missing."""

    def __init__(self, line: Line):
        super().__init__(line.found)
        self.line = line


@dataclass(frozen=True)
class Preflight:
    """The findings, in the order of the checks; printed as a table."""

    lines: list[Line]

    @property
    def stops(self) -> list[Line]:
        return [line for line in self.lines if line.level is Level.STOP]

    def __str__(self) -> str:
        indent = " " * 27
        rows = [f"{line.level:<9}{line.what:<18}{line.found}" for line in self.lines]
        return "\n".join(textwrap.fill(row, 100, subsequent_indent=indent) for row in rows)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


@contextmanager
def stopping(what: str) -> Iterator[None]:
    """Turn an error into a last line."""
    try:
        yield
    except (OSError, TypeError, ValueError, TrainingError, torch.OutOfMemoryError) as error:
        found = " ".join(str(error).split())
        raise StoppedError(Line(Level.STOP, what, found)) from error
