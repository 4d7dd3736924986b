"""Config fields that carry their own rules: allowed values, owner, and what depends on them.

A field is declared once, with `option`. Sweeps, run folders, checkpoints and notebooks read what they need to know about
it from there, so a new field touches the config alone.
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
"""Owners of fields, in the order in which a study uses them."""
RANGES = {
    "zero or more": lambda value: 0 <= value < math.inf,
    "one or more": lambda value: value >= 1,
    "0 to 1": lambda value: 0 <= value <= 1,
    "a positive number, or None": lambda value: 0 < value < math.inf,
}
"""Allowed ranges of numbers, under the words that an error uses."""


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known about a field besides its type and its default."""

    group: str
    """Its owner, one of `GROUPS`."""
    allowed: str | None = None
    """A key of `RANGES`; None where the type says it all."""
    changes_results: bool = True
    """Whether results depend on it. Fields without effect identify neither run nor checkpoint."""
    in_run_name: bool = True
    """Whether runs that differ in it have folders of their own."""
    recorded: bool = False
    """Whether every sweep writes it as a column; a field that a sweep varies is always written."""
    searched: bool = False
    """Whether a learning rate is searched anew for each of its values."""


def option(default, group: str, allowed: str | None = None, **about) -> typing.Any:
    """A dataclass field with `Option` metadata."""
    return dataclasses.field(default=default, metadata={"option": Option(group, allowed, **about)})


def options(config) -> dict[str, Option]:
    """The `Option` of every field of a config or its class, by name."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(config)}


def names_where(config, **about) -> list[str]:
    """Names of the fields whose `Option` has these values, in their order: `names_where(c, group="data")`."""
    wanted = about.items()
    return [
        name
        for name, option in options(config).items()
        if all(getattr(option, key) == value for key, value in wanted)
    ]


def check(config) -> None:
    """Raise TypeError or ValueError for the first field whose value is of a wrong type or out of range."""
    hints = typing.get_type_hints(type(config))
    for name, option in options(config).items():
        value = getattr(config, name)
        check_type(name, value, hints[name])
        if option.allowed and not (value is None or isinstance(value, str)):
            require(RANGES[option.allowed](value), name, value, option.allowed)


def require(condition: bool, name: str, value, allowed: str) -> None:
    """Raise ValueError with the field, its value and what is allowed, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}={value!r}: expected {allowed}")


def check_type(name: str, value, expected, also: Sequence = ()) -> None:
    """Raise unless the value has the field's type; an int serves as a float.

    `also` holds further allowed values. Raises ValueError for a value outside a Literal, else TypeError.
    """
    if typing.get_origin(expected) in (typing.Union, types.UnionType):  # such as `float | None`
        expected, other = typing.get_args(expected)
        also = (None,) if other is types.NoneType else typing.get_args(other)
        return None if value in also else check_type(name, value, expected, also)
    if typing.get_origin(expected) is typing.Literal:
        choices = typing.get_args(expected)
        hint = nearest(value, choices) if isinstance(value, str) else ""
        return require(
            value in choices, name, value, f"one of {', '.join(map(repr, choices))}{hint}"
        )
    fits = isinstance(value, expected) or (expected is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and expected is not bool):
        hint = "".join(f" or {other!r}" for other in also if other is not None)
        if isinstance(value, str):
            hint += {
                bool: " (write True or False, capitalised)",
                float: " (write 1.0e-4, not 1e-4)",
            }.get(expected, "")
        found = type(value).__name__
        raise TypeError(f"{name}={value!r} is a {found}: expected {expected.__name__}{hint}")


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the only name that starts so, or the closest one; else ""."""
    names = list(names)
    started = [known for known in names if name and known.startswith(name)]
    close = started if len(started) == 1 else difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
