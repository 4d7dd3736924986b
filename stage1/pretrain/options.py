"""Config dataclasses as options of a command."""

import argparse
from dataclasses import fields
from typing import Any, get_args


def rules(default: Any, kind: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a field; `--no-x` turns a flag off."""
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(default, tuple):
        return {"nargs": "+"}
    return {"choices": get_args(kind)} if get_args(kind) else {"type": type(default)}


def add_options(parser: argparse.ArgumentParser, *configs: type) -> None:
    """Add every field as an option; a field that several configs share is added once.

    `--learning-rate` sets `learning_rate`; a tuple takes several values.
    """
    added = set()
    for field in [field for config in configs for field in fields(config)]:
        if field.name not in added:
            option = f"--{field.name.replace('_', '-')}"
            arguments = rules(field.default, field.type) | {"default": field.default}
            parser.add_argument(option, help=f"default {field.default}", **arguments)
            added.add(field.name)


def config_from(config: type, options: dict[str, Any]) -> Any:
    """Return the config of parsed options; other options are left alone."""
    chosen = {field.name: options[field.name] for field in fields(config)}
    return config(**{n: tuple(v) if isinstance(v, list) else v for n, v in chosen.items()})
