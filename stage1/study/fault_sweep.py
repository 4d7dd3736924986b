"""Which faults explain a zero, which hide each other, which flatter: sweeps over the gallery.

    python -m stage1.study.fault_sweep ladder records/faults/ladder.csv
    python -m stage1.study.fault_sweep added records/faults/added.csv
    python -m stage1.study.fault_sweep removed records/faults/removed.csv
    python -m stage1.study.fault_sweep removed OUT.csv --without slice_of_generated_ids
    python -m stage1.study.fault_sweep added OUT.csv --also pad_is_end --only mask_of_ones

`added` trains the preset `recipe`, and it with each fault alone; `removed` the preset `original`,
and it with each of its faults alone taken out; `ladder` goes from `original` to `recipe`, one
repaired fault a step. `--only` keeps some of these faults. Each setting has several seeds, and a
sweep leaves what `stage1.study.sweep` leaves.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from stage1 import gallery
from stage1.config import StudyConfig, load_preset
from stage1.fields import require
from stage1.study.sweep import sweep

REPAIRED = (
    "slice_of_generated_ids", "first_gold_only", "f1_on_sets", "right_truncation",
    "space_before_answer", "gap_before_answer", "labels_on_padding", "labels_on_prompt",
    "begin_token_in_answer", "no_end_token", "pad_is_end", "pca_on_few_tokens",
    "dropout_in_training", "bfloat16_weights", "unit_rms_output", "xavier_start",
)  # fmt: skip
"""Faults of the original in the order of the ladder: what is seen first comes first."""
CHANGED = {
    "learning rate": ("learning_rate", "warmup"),
    "start": ("initialisation",),
    "reconstruction warm-up": ("warmup_steps",),
}
"""Fields that the last steps of the ladder take from the recipe."""
SIZES = ("train_examples", "selection_examples", "test_examples", "epochs", "batch_size")
READ_PADDING = gallery.canonical(
    ["no_end_token", "labels_on_padding", "gap_before_answer", "mask_of_ones",
     "right_padded_generation"]
)  # fmt: skip
"""Faults that read or label padding, or the end token that may pad: no other depends on it."""
TOGETHER = 5
"""Adapters that share passes on a GPU: the seeds of one fault."""


class Sweep(NamedTuple):
    """What `main` is told besides the table."""

    kind: Literal["ladder", "added", "removed"]
    without: str = gallery.NONE
    """Faults that no run carries."""
    also: str = gallery.NONE
    """Faults that all runs carry."""
    only: str = gallery.NONE
    """Faults that are added or removed; none named: all."""


TABLES = {
    "ladder": Sweep("ladder"),
    "added": Sweep("added"),
    "removed": Sweep("removed"),
    "unsliced": Sweep("removed", without="slice_of_generated_ids"),
    "added_pad_is_end": Sweep("added", also="pad_is_end", only=READ_PADDING),
}
"""The sweeps whose tables are in `records/faults/`, by the table's name."""


def planned(table: str, rehearse: bool = False) -> dict[str, StudyConfig]:
    """Return the configs of a table of `records/faults/`, one seed each, by setting."""
    kind, repaired, also, only = TABLES[table]
    original, recipe = presets(also, repaired, rehearse)
    return plan(kind, original, recipe, only)


def command(table: str) -> str:
    """Return the command that makes a table of `records/faults/`."""
    kind, repaired, also, only = TABLES[table]
    given = {"without": repaired, "also": also, "only": only}
    told = "".join(
        f" --{name} {faults}" for name, faults in given.items() if faults != gallery.NONE
    )
    return f"python -m stage1.study.fault_sweep {kind} records/faults/{table}.csv{told}"


def without(faults: str, repaired: str) -> str:
    """Return the faults except for the repaired ones."""
    kept = [name for name in gallery.names(faults) if name not in gallery.names(repaired)]
    return gallery.canonical(kept)


def both(faults: str, more: str) -> str:
    return gallery.canonical(gallery.names(faults) + gallery.names(more))


def added(recipe: StudyConfig) -> dict[str, StudyConfig]:
    """Return the recipe, and it with each fault alone that it does not carry yet, by name."""
    names = [name for name in gallery.FAULTS if name not in gallery.names(recipe.faults)]
    faulty = {name: recipe.replace(faults=both(recipe.faults, name)) for name in names}
    return {"recipe": recipe} | faulty


def removed(original: StudyConfig) -> dict[str, StudyConfig]:
    """Return the original, and it with each of its faults alone taken out, by name."""
    faults = original.faults
    names = gallery.names(faults)
    repaired = {name: original.replace(faults=without(faults, name)) for name in names}
    return {"original": original} | repaired


def ladder(original: StudyConfig, recipe: StudyConfig) -> dict[str, StudyConfig]:
    """Return the configs from the original to the recipe, by what each step repairs."""
    return dict(steps(original, recipe))


def steps(original: StudyConfig, recipe: StudyConfig) -> Iterator[tuple[str, StudyConfig]]:
    yield "original", original
    config = original
    for name in REPAIRED:
        if name in gallery.names(config.faults) and name not in gallery.names(recipe.faults):
            config = config.replace(faults=without(config.faults, name))
            yield name, config
    for step, fields in CHANGED.items():
        config = config.replace(**{field: getattr(recipe, field) for field in fields})
        yield step, config


def presets(also: str = gallery.NONE, repaired: str = gallery.NONE, rehearse: bool = False):
    """Return the presets `original` and `recipe`, with these faults in both or out of both.

    A rehearsal has the sizes of the preset `smoke`.
    """
    smoke, found = load_preset("smoke"), []
    for name in ("original", "recipe"):
        config = load_preset(name)
        if rehearse:
            steps = min(config.warmup_steps, smoke.warmup_steps)
            sizes = {field: getattr(smoke, field) for field in SIZES}
            config = config.replace(**sizes, warmup_steps=steps)
        found.append(config.replace(faults=without(both(config.faults, also), repaired)))
    return found


def plan(
    kind: str, original: StudyConfig, recipe: StudyConfig, only: str = gallery.NONE
) -> dict[str, StudyConfig]:
    """Return the configs of one kind of sweep, one seed each, by name: the first, and `only` these.

    Raises ValueError for a fault that the sweep does not add or remove.
    """
    if kind == "ladder":
        planned = ladder(original, recipe)
    else:
        planned = added(recipe) if kind == "added" else removed(original)
    first, *rest = planned
    kept = gallery.names(only) or rest
    for name in kept:
        require(name in rest, "only", name, f"one of {', '.join(rest)}")
    return {name: planned[name] for name in (first, *rest) if name == first or name in kept}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stage1.study.fault_sweep", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("kind", choices=["added", "removed", "ladder"])
    parser.add_argument("table", type=Path, help="CSV with one row per run")
    parser.add_argument("--also", default=gallery.NONE, help="faults that all runs carry")
    parser.add_argument("--without", default=gallery.NONE, help="faults that no run carries")
    parser.add_argument("--only", default=gallery.NONE, help="faults to add or remove, not all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--together", type=int, help="adapters that share passes, per process")
    parser.add_argument("--rehearse", action="store_true", help="at the sizes of preset smoke")
    given = parser.parse_args()
    also, repaired, only = map(gallery.canonical, (given.also, given.without, given.only))
    original, recipe = presets(also, repaired, given.rehearse)
    planned = plan(given.kind, original, recipe, only).values()
    configs = [config.replace(seed=seed) for config in planned for seed in range(given.seeds)]
    size = given.together or (TOGETHER if torch.cuda.is_available() else 1)
    sweep("runs", configs, given.table, given.processes, size)


if __name__ == "__main__":
    main()
