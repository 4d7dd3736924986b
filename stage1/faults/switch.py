"""Switch faults on: replace one public function of the package by a faulty one, for a while.

The product's own code has no branch for a fault. A fault registers replacements with `@replaces`;
`switched_on` puts them wherever the package has imported the original, and takes them out again.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib import import_module
from typing import Any

from stage1 import gallery

Maker = Callable[[Any], Any]
REPLACEMENTS: dict[str, list[tuple[str, Maker]]] = {name: [] for name in gallery.FAULTS}
"""For every fault, places as `package.module:name` and makers of a faulty from the original."""
_state = {"faults": gallery.NONE}


class FaultError(RuntimeError):
    """A run would carry the faults of another."""


def replaces(name: str, place: str) -> Callable[[Maker], Maker]:
    """Register the decorated maker: it takes what is at `place` and returns its faulty version."""

    def register(maker: Maker) -> Maker:
        REPLACEMENTS[name].append((place, maker))
        return maker

    return register


def current() -> str:
    """Return the faults that are switched on, in the form of the config's field."""
    return _state["faults"]


@contextmanager
def switched_on(faults: str) -> Iterator[None]:
    """Switch on exactly these faults in the block; blocks of the same faults may be nested.

    Raises FaultError within a block of other faults: a sound run can never carry one.
    """
    if current() == faults:
        yield
        return
    if current() != gallery.NONE:
        raise FaultError(f"faults={faults!r}: {current()!r} is switched on; expected the same")
    with ExitStack() as replaced:
        replaced.enter_context(replacement("stage1.store:write_record", only_its_own))
        for name in gallery.names(faults):
            for place, maker in REPLACEMENTS[name]:
                replaced.enter_context(replacement(place, maker))
        _state["faults"] = faults
        replaced.callback(_state.update, faults=gallery.NONE)
        yield


def only_its_own(original: Callable) -> Callable:
    """Return a `write_record` that refuses the record of a run without the faults that are on."""

    def write_record(path, config, results):
        if config.faults != current():
            raise FaultError(f"{path}: faults={config.faults!r}, but {current()!r} is switched on")
        return original(path, config, results)

    return write_record


@contextmanager
def replacement(place: str, maker: Maker) -> Iterator[None]:
    """Replace what is at `place`, and all imports of it within the package, in the block."""
    module, path = place.split(":")
    *parents, name = path.split(".")
    owner: Any = import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    original = vars(owner)[name]
    faulty = maker(original)
    setattr(owner, name, faulty)
    swap(original, faulty)
    try:
        yield
    finally:
        setattr(owner, name, original)
        swap(faulty, original)  # also where it was imported within the block


def swap(old: Any, new: Any) -> None:
    """Put `new` wherever a module of the package has `old` as a global name."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "stage1" and not name.startswith("stage1.faults"):
            for key, value in list(vars(module).items()):
                if value is old:
                    setattr(module, key, new)


def carries_faults(function: Callable) -> Callable:
    """Run a function of a config, or of a study first, with that config's faults switched on."""

    @wraps(function)
    def run(first, *arguments, **options):
        config = getattr(first, "config", first)
        with switched_on(config.faults):
            return function(first, *arguments, **options)

    return run
