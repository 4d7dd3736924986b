"""The training loop: one adapter, one objective; every step recorded, every training resumable.

What step n does depends on the config and n alone (its batch and its random numbers are seeded by both). So a checkpoint
needs no random state, and an interrupted training ends where an uninterrupted one does, bit for bit on the CPU.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from stage1 import store
from stage1.adapter import Adapter
from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded
from stage1.fields import require
from stage1.machine import processes
from stage1.objectives import (
    ExampleBatch,
    Objective,
    ObjectiveContext,
    Terms,
    TokenCounts,
    find,
    reads_tokens,
)
from stage1.training.balancing import Uncertainty, balanced
from stage1.training.batches import (
    TokenDistribution,
    examples_at,
    steps_per_epoch,
    token_distribution,
    tokens_at,
)
from stage1.training.gradients import TermMoments, assign_gradient
from stage1.training.microbatches import TrainingError, gradients_at_parameters
from stage1.training.observer import GradientObserver, is_due

EXPLODED = 1_000.0  # times the term's first value, or this value itself where that is below 1
SelectionScores = Callable[[Adapter], dict]


@dataclass
class Progress:
    """What a training has come to: what a checkpoint holds, and what it leaves at the end."""

    step: int
    curve: list[dict]
    """One row per step: the terms unweighted and weighted, gradient norm, learning rate, seconds, examples, tokens."""
    selection: list[dict]
    """One row per evaluation on the selection split: `step` and whatever was measured."""
    gradients: list[dict]
    """One row per term and reading of the terms' gradients: `step` and what `gradients.readings` says."""


@dataclass
class Loop:
    """The moving parts of one training."""

    context: ObjectiveContext
    objective: Objective
    adapter: Adapter
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    uncertainty: Uncertainty
    observer: GradientObserver
    progress: Progress
    microbatch_size: int | None
    """Examples that a process passes through the language model at a time; None: all that it has."""

    @property
    def config(self) -> StudyConfig:
        return self.context.config

    @property
    def state(self) -> dict:
        """The parts with a state of their own, which a checkpoint keeps."""
        return {
            "adapter": self.adapter,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "uncertainty": self.uncertainty,
            "moments": self.observer.moments,
        }


def take_step(loop: Loop, batch: ExampleBatch | TokenCounts) -> dict:
    """One optimizer step; returns its row of the curve. Raises TrainingError before a bad gradient is applied."""
    config, parameters = loop.config, list(loop.adapter.parameters())
    loop.optimizer.zero_grad()
    terms, gradients = gradients_at_parameters(loop, batch)
    terms = balanced(config.balancing, loop.uncertainty, terms, gradients)
    weighted = {name: terms[name].weight * gradient for name, gradient in gradients.items()}
    assign_gradient(sum(weighted.values()), parameters)
    norm = clip_grad_norm_(parameters, config.max_grad_norm)
    values = read_values(terms, norm)
    check_terms(values, loop.progress.curve, loop.progress.step)
    rate = loop.schedule.get_last_lr()[0]
    loop.observer.before_step(loop, batch, terms)
    loop.optimizer.step()
    loop.schedule.step()
    loop.observer.after_step(loop, terms, gradients, weighted, values["gradient_norm"])
    return curve_row(terms, values) | {"step": loop.progress.step, "learning_rate": rate}


def read_values(terms: Terms, norm: torch.Tensor) -> dict[str, float]:
    """The terms' values and the gradient norm as numbers, in one transfer from the device."""
    values = [term.value.detach() for term in terms.values()]
    return dict(
        zip([*terms, "gradient_norm"], torch.stack([*values, norm.detach()]).tolist(), strict=True)
    )


def check_terms(terms: dict[str, float], curve: list[dict], step: int) -> None:
    """Raise TrainingError for a term that is no finite number or has exploded since the first step."""
    for name, value in terms.items():
        first = curve[0][name] if curve else value
        if not math.isfinite(value) or (curve and value > EXPLODED * max(1.0, first)):
            raise TrainingError(
                f"step {step}: {name}={value:.4g} (first step {first:.4g}); expected a finite number below "
                f"{EXPLODED:g} times its first value; try a lower learning_rate"
            )


def curve_row(terms: Terms, values: dict[str, float]) -> dict:
    """Terms unweighted, weighted (`_weighted`), their supervised tokens (`_tokens`), the loss and the gradient norm."""
    weighted = {f"{name}_weighted": term.weight * values[name] for name, term in terms.items()}
    supervised = {f"{name}_tokens": term.tokens for name, term in terms.items()}
    return values | weighted | supervised | {"loss": sum(weighted.values())}


def set_up(
    adapter: Adapter,
    context: ObjectiveContext,
    steps: int,
    checkpoint: Path | None,
    objective: Objective | None = None,
) -> Loop:
    """Optimizer and schedule, with the checkpoint's state where there is one. The objective is the config's, unless a
    function is given."""
    config, device = context.config, context.lm.device
    optimizer = torch.optim.AdamW(
        adapter.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )
    uncertainty = Uncertainty().to(device)
    if config.balancing == "uncertainty":
        optimizer.add_param_group({"params": list(uncertainty.parameters()), "weight_decay": 0.0})
    schedule = get_cosine_schedule_with_warmup(optimizer, round(config.warmup * steps), steps)
    observer = GradientObserver(TermMoments(optimizer, list(adapter.parameters())))
    # Microbatches spare the language model's memory; counts of tokens do not pass through it.
    size = None if reads_tokens(config.objective) else config.micro_batch_size
    parts = (adapter, optimizer, schedule, uncertainty, observer, Progress(0, [], [], []), size)
    loop = Loop(context, objective or find(config.objective), *parts)
    if checkpoint is not None and checkpoint.exists():
        resume(checkpoint, loop)
    return loop


def train(
    adapter: Adapter,
    context: ObjectiveContext,
    encoded: Encoded,
    counts: Int64[np.ndarray, " V"],
    selection_scores: SelectionScores,
    checkpoint: Path | None = None,
    objective: Objective | None = None,
) -> Progress:
    """Train the adapter in place by the config's objective (or the given function) and learning rate, which must be set.

    `counts` are the training prompts' token counts. `selection_scores` measures the adapter on the selection split before
    the first step, every `selection_every` steps and after the last. With a checkpoint path the state is saved there
    every `checkpoint_every` steps, and taken up again. Raises TrainingError for a loss that is no number or explodes,
    RecordError for a checkpoint of another config, and ValueError without training examples.
    """
    config = context.config
    require(
        len(encoded) > 0, "train_examples", len(encoded), "at least one whose answer is not cut"
    )
    steps = config.epochs * steps_per_epoch(config, len(encoded))
    loop, distribution = (
        set_up(adapter, context, steps, checkpoint, objective),
        token_distribution(counts),
    )
    progress, is_first = loop.progress, processes.rank() == 0
    if not progress.selection:
        progress.selection.append({"step": 0} | selection_scores(adapter))
    bar = {
        "desc": config.objective,
        "initial": progress.step,
        "total": steps,
        "disable": not is_first,
    }
    for step in tqdm(range(progress.step, steps), file=sys.stdout, **bar):
        begin = time.perf_counter()
        batch, examples = batch_at(loop, encoded, distribution, step)
        row = take_step(loop, batch)
        progress.curve.append(row | {"examples": examples, "seconds": time.perf_counter() - begin})
        progress.step = step + 1
        if progress.step == steps or is_due(config.selection_every, progress.step):
            progress.selection.append({"step": progress.step} | selection_scores(adapter))
        if is_first and checkpoint and is_due(config.checkpoint_every, progress.step):
            save(checkpoint, loop)
    return progress


def batch_at(
    loop: Loop, encoded: Encoded, distribution: TokenDistribution, step: int
) -> tuple[ExampleBatch | TokenCounts, int]:
    """What the step reads, and the number of examples that it stands for."""
    examples = examples_at(loop.config, encoded, step)
    if not reads_tokens(loop.config.objective):
        return examples, len(examples)
    tokens = round(len(examples) * distribution.total / len(encoded))
    return tokens_at(loop.config, distribution, tokens, step, loop.context.lm.device), len(examples)


def save(checkpoint: Path, loop: Loop) -> None:
    state = {name: part.state_dict() for name, part in loop.state.items()}
    state |= {"progress": vars(loop.progress), "config": store.identity(loop.config)}
    store.write_atomically(checkpoint, lambda path: torch.save(state, path))


def resume(checkpoint: Path, loop: Loop) -> None:
    """Put the checkpoint's state into the loop.

    Raises RecordError for a file that cannot be read or is no checkpoint of this config.
    """
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except Exception as error:  # zip, pickle and end-of-file errors alike
        raise store.RecordError(
            f"{checkpoint}: truncated or malformed ({error}); delete it to start again"
        ) from error
    if not isinstance(state, dict) or state.get("config") != store.identity(loop.config):
        raise store.RecordError(
            f"{checkpoint}: is no checkpoint of this config; delete it to start again"
        )
    for name, part in loop.state.items():
        part.load_state_dict(state[name])
    loop.progress = Progress(**state["progress"])


def curve_table(progress: Progress) -> pd.DataFrame:
    """The curve with running totals: examples seen and seconds since the start."""
    table = pd.DataFrame(progress.curve)
    return table.assign(
        examples_seen=table["examples"].cumsum(), seconds_total=table["seconds"].cumsum()
    )
