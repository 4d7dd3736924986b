"""Many adapters of one study at once: warmed up, trained and tested in shared passes.

Every adapter leaves the record that `runs.run` would leave.
"""

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from stage1 import adapter as adapters
from stage1 import gallery
from stage1.baselines import Adapter
from stage1.config import StudyConfig
from stage1.evaluation.reconstruction import reconstruction
from stage1.evaluation.together import evaluate_together
from stage1.faults import carries_faults
from stage1.fields import options
from stage1.loss_parts import ObjectiveContext
from stage1.machine.room import halved
from stage1.scoring.tables import TEACHER_FORCED
from stage1.study.preparation import Study, new_adapter, objective_context
from stage1.study.rates import learning_rate
from stage1.training.loop import Progress
from stage1.training.microbatches import TrainingError
from stage1.training.together import train_together
from stage1.training.warmup import warm_up

START = ("seed", "initialisation", "output_scaling")
"""What a new adapter depends on."""
WARM_UP = (
    "warmup_steps", "warmup_rate", "warmup_uniform", "warmup_batch", "warmup", "weight_decay",
    "max_grad_norm",
)  # fmt: skip
"""What a warm-up depends on besides its start."""


def groups(configs: Sequence[StudyConfig], size: int) -> list[list[StudyConfig]]:
    """Return the configs in groups of at most `size` that can share passes.

    Members of a group agree in every field that is not marked as an adapter's own. A config that
    asks for readings of gradients, balancing or packed rows, or carries a fault that cannot share,
    has a group to itself.
    """
    shared = [name for name, option in options(StudyConfig).items() if not option.own]
    alike: dict[tuple, list[StudyConfig]] = {}
    for place, config in enumerate(configs):
        key = tuple(getattr(config, name) for name in shared)
        is_plain = config.balancing == "fixed" and not config.gradients_every and not config.packed
        is_plain = is_plain and gallery.can_share(config.faults)
        alike.setdefault(key if is_plain else (place,), []).append(config)
    return [some[i : i + size] for some in alike.values() for i in range(0, len(some), size)]


def warmed_adapters(
    study: Study, configs: Sequence[StudyConfig]
) -> tuple[list[Adapter], list[list[dict]]]:
    """Return the configs' adapters before their first step, and the curves of their warm-ups.

    Equal starts are warmed up once, together with all others of the same schedule.
    """
    starts: dict[tuple, Adapter] = {}
    curves: dict[tuple, list[dict]] = {}
    schedules: dict[tuple, list[tuple]] = {}
    keys = [tuple(getattr(config, name) for name in (*START, *WARM_UP)) for config in configs]
    of_key = dict(zip(keys, configs, strict=True))
    for key, config in of_key.items():
        starts[key] = new_adapter(replace(study, config=config))
        draws = config.seed if config.warmup_batch else None  # a sampled batch depends on the seed
        schedules.setdefault((*key[len(START) :], draws), []).append(key)
    for own in schedules.values():
        context = objective_context(study, of_key[own[0]])
        found = warm_up_in_halves(study, context, [starts[key] for key in own])
        curves |= dict(zip(own, found, strict=True))
    return [copy.deepcopy(starts[key]) for key in keys], [curves[key] for key in keys]


def warm_up_in_halves(
    study: Study, context: ObjectiveContext, some: Sequence[Adapter]
) -> list[list[dict]]:
    """Warm adapters up in place, half of them at a time where memory runs out; return the curves.

    Raises TrainingError as `warm_up` does, and where a single adapter does not fit.
    """
    with suppress(torch.OutOfMemoryError):  # a warm-up that fails so has changed no adapter
        return warm_up(some, context, study.counts, show=False)
    half = halved(len(some), "adapter", "warm-up", TrainingError)
    parts = some[:half], some[half:]
    return [curve for part in parts for curve in warm_up_in_halves(study, context, part)]


def tables_of(study: Study, some: Sequence[Adapter]) -> Float[Tensor, "S V D"]:
    return torch.stack([adapters.decode(adapter, study.codebook) for adapter in some])


def selection_scores(study: Study, some: Sequence[Adapter]) -> list[dict[str, float]]:
    """Return every adapter's means on the selection split; see `runs.selection_scores`."""
    selection = study.encoded["selection"]
    if not len(selection):
        return [{} for _ in some]
    conditions, tables = ["selection"] * len(some), tables_of(study, some)
    frames = evaluate_together(study.lm, selection, conditions, tables, study.config)
    names = ("f1", "em", "ended", *TEACHER_FORCED)
    return [{name: float(frame[name].mean()) for name in names} for frame in frames]


@carries_faults
def train_group(
    study: Study, configs: Sequence[StudyConfig]
) -> tuple[list[Adapter], list[Progress | TrainingError]]:
    """Train an adapter of every config; a warm-up's curve is in its progress.

    Raises FrozenError if the language model changed, and TrainingError where a warm-up diverges or
    a single row does not fit into memory.
    """
    # A searched rate belongs to a width K.
    configs = [config.replace(compressed_width=study.compression.width) for config in configs]
    configs = [config.replace(learning_rate=learning_rate(config)) for config in configs]
    contexts = [objective_context(study, config) for config in configs]
    with study.lm.unchanged():
        trained, curves = warmed_adapters(study, configs)
        found = train_together(
            trained,
            contexts,
            study.encoded["train"],
            study.counts,
            lambda some: selection_scores(study, some),
        )
    for progress, curve in zip(found, curves, strict=True):
        if isinstance(progress, Progress):
            progress.warmup = curve
    return trained, found


@carries_faults
def test_group(
    study: Study, configs: Sequence[StudyConfig], trained: Sequence[Adapter]
) -> list[tuple[pd.DataFrame, dict[str, float]]]:
    """Return every adapter's answers to the test questions and its reconstruction error."""
    tables, test = tables_of(study, trained), study.encoded["test"]
    conditions = [config.objective for config in configs]
    frames = evaluate_together(study.lm, test, conditions, tables, study.config)
    table, counts = study.lm.embedding_table, study.test_counts()
    rebuilt = [reconstruction(table, own, counts) for own in tables]
    return list(zip(frames, rebuilt, strict=True))
