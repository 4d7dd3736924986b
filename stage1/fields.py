"""Config fields that carry their own rules: allowed values, group, and what depends on them.

A field is declared once, with `option`. Sweeps, run folders, checkpoints and notebooks read its
rules from there, so a new field touches the config alone.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Sequence

GROUPS = (
    "run", "data", "language model", "compression", "adapter", "training", "evaluation", "criteria",
)  # fmt: skip
"""Groups of fields, in the order in which a study uses them."""


def is_positive(value) -> bool:
    return 0 < value < math.inf


RANGES = {
    "zero or more": lambda value: 0 <= value < math.inf,
    "one or more": lambda value: value >= 1,
    "0 to 1": lambda value: 0 <= value <= 1,
    "a positive number": is_positive,
    "a positive number, or None": is_positive,
}
"""Checks of numbers, under the words that an error uses; None passes where the type allows it."""


@dataclasses.dataclass(frozen=True)
class Option:
    """The rules of a field, besides its type and its default."""

    group: str
    """One of `GROUPS`."""
    allowed: str | None = None
    """A key of `RANGES`; None where the type says it all."""
    changes_results: bool = True
    """Whether results depend on it. Other fields identify neither a run nor a checkpoint."""
    in_run_name: bool = True
    """Whether runs that differ in it have separate folders."""
    own: bool = False
    """Whether adapters that differ in it may share passes of the language model."""
    recorded: bool = False
    """Whether every sweep writes it as a column; a field that a sweep varies is always written."""
    searched: bool = False
    """Whether the learning rate is searched separately for each of its values."""


def option(default, group: str, allowed: str | None = None, **rules) -> typing.Any:
    """Return a dataclass field with `Option` metadata."""
    return dataclasses.field(default=default, metadata={"option": Option(group, allowed, **rules)})


def options(config) -> dict[str, Option]:
    """Return the `Option` of every field of a config or its class, by name."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(config)}


def names_where(config, **rules) -> list[str]:
    """Return the fields whose `Option` has these values: `names_where(config, group="data")`."""
    return [
        name
        for name, option in options(config).items()
        if all(getattr(option, rule) == value for rule, value in rules.items())
    ]


def check(config) -> None:
    """Raise TypeError or ValueError for the first field of a wrong type or out of range."""
    hints = typing.get_type_hints(type(config))
    for name, option in options(config).items():
        value = getattr(config, name)
        check_type(name, value, hints[name])
        if option.allowed and not (value is None or isinstance(value, str)):
            require(RANGES[option.allowed](value), name, value, option.allowed)


def require(condition: bool, name: str, value, allowed: str) -> None:
    """Raise ValueError with field, value and what is allowed, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}={value!r}: expected {allowed}")


def check_type(name: str, value, expected, also: Sequence = ()) -> None:
    """Raise unless the value has the field's type or is one of `also`; an int serves as a float.

    Raises ValueError for a value outside a Literal, else TypeError.
    """
    if typing.get_origin(expected) in (typing.Union, types.UnionType):  # such as `float | None`
        expected, other = typing.get_args(expected)
        also = (None,) if other is types.NoneType else typing.get_args(other)
        return None if value in also else check_type(name, value, expected, also)
    if typing.get_origin(expected) is typing.Literal:
        choices = typing.get_args(expected)
        allowed = f"one of {', '.join(map(repr, choices))}"
        allowed += nearest(value, choices) if isinstance(value, str) else ""
        return require(value in choices, name, value, allowed)
    fits = isinstance(value, expected) or (expected is float and isinstance(value, int))
    if fits and not (isinstance(value, bool) and expected is not bool):
        return None
    hint = "".join(f" or {other!r}" for other in also if other is not None)
    if isinstance(value, str) and expected is bool:
        hint += " (write True or False, capitalised)"
    if isinstance(value, str) and expected is float:
        hint += " (write 1.0e-4, not 1e-4)"
    raise TypeError(
        f"{name}={value!r} is a {type(value).__name__}: expected {expected.__name__}{hint}"
    )


def nearest(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the only name with this prefix or the closest; else ""."""
    names = list(names)
    matches = [candidate for candidate in names if name and candidate.startswith(name)]
    if len(matches) != 1:
        matches = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
