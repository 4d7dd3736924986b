"""The training loop: one adapter, one objective; every step recorded, every training resumable.

Step n depends on the config and n alone, which seed its batch and its random numbers. A checkpoint
needs no random state, and resuming changes no bit of the result on the CPU.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from stage1 import store
from stage1.baselines import Adapter
from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded
from stage1.fields import require
from stage1.loss_parts import Batch, ObjectiveContext, Terms
from stage1.machine import processes
from stage1.objectives import Objective, find, reads_tokens
from stage1.training import batches
from stage1.training.balancing import Uncertainty, balanced
from stage1.training.gradients import TermMoments, assign_gradient, vector_sum
from stage1.training.microbatches import TrainingError, gradients_at_parameters
from stage1.training.observer import GradientObserver, is_due

EXPLODED = 1_000.0  # times the term's first value, or this value itself where that is below 1
SelectionScores = Callable[[Adapter], dict]


@dataclass
class Progress:
    """What a training has recorded so far."""

    step: int
    curve: list[dict]
    """One row per step: terms unweighted and weighted, gradient norm, learning rate, seconds,
    examples, tokens."""
    selection: list[dict]
    """One row per evaluation on the selection split: `step` and its scores."""
    gradients: list[dict]
    """One row per term and gradient reading: `step` and the columns of `gradients.readings`."""
    warmup: list[dict] = field(default_factory=list)
    """Readings of the reconstruction warm-up: `step`, and the `fvu` before it."""


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
    """Examples per pass through the language model in each process; None: its whole part."""

    @property
    def config(self) -> StudyConfig:
        return self.context.config

    @property
    def state(self) -> dict:
        """The parts whose state a checkpoint holds."""
        return {
            "adapter": self.adapter,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "uncertainty": self.uncertainty,
            "moments": self.observer.moments,
        }


def take_step(loop: Loop, batch: Batch) -> dict:
    """Take one optimizer step and return its row of the curve.

    Raises TrainingError before a bad gradient is applied.
    """
    config, parameters = loop.config, list(loop.adapter.parameters())
    loop.optimizer.zero_grad()
    terms, gradients = gradients_at_parameters(loop, batch)
    terms = balanced(config.balancing, loop.uncertainty, terms, gradients)
    weighted = {name: terms[name].weight * gradient for name, gradient in gradients.items()}
    assign_gradient(vector_sum(list(weighted.values())), parameters)
    norm = clip_grad_norm_(parameters, config.max_grad_norm)
    values = to_numbers(terms, norm)
    check_values(values, loop.progress.curve, loop.progress.step)
    rate = loop.schedule.get_last_lr()[0]
    loop.observer.before_step(loop, batch, terms)
    loop.optimizer.step()
    loop.schedule.step()
    loop.observer.after_step(loop, terms, gradients, weighted, values["gradient_norm"])
    return curve_row(terms, values) | {"step": loop.progress.step, "learning_rate": rate}


def to_numbers(terms: Terms, norm: torch.Tensor) -> dict[str, float]:
    """Return the terms' values and the gradient norm, in one transfer from the device."""
    values = torch.stack([*(term.value.detach() for term in terms.values()), norm.detach()])
    return dict(zip([*terms, "gradient_norm"], values.tolist(), strict=True))


def check_values(values: dict[str, float], curve: list[dict], step: int) -> None:
    """Raise TrainingError for a value that is not finite or has exploded since the first step."""
    for name, value in values.items():
        first = curve[0][name] if curve else value
        if not math.isfinite(value) or (curve and value > EXPLODED * max(1.0, first)):
            raise TrainingError(
                f"step {step}: {name}={value:.4g} (first step {first:.4g}); expected a finite "
                f"number below {EXPLODED:g} times its first value; try a lower learning_rate"
            )


def curve_row(terms: Terms, values: dict[str, float]) -> dict:
    """Return the values, terms weighted (`_weighted`), supervised tokens (`_tokens`), the loss."""
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
    """Return a loop in the checkpoint's state, if any; `objective` replaces the config's."""
    config, device = context.config, context.lm.device
    assert config.learning_rate is not None
    optimizer = torch.optim.AdamW(
        adapter.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )
    uncertainty = Uncertainty().to(device)
    if config.balancing == "uncertainty":
        optimizer.add_param_group({"params": list(uncertainty.parameters()), "weight_decay": 0.0})
    loop = Loop(
        context,
        objective or find(config.objective),
        adapter,
        optimizer,
        get_cosine_schedule_with_warmup(optimizer, round(config.warmup * steps), steps),
        uncertainty,
        GradientObserver(TermMoments(optimizer, list(adapter.parameters()))),
        Progress(step=0, curve=[], selection=[], gradients=[]),
        # Microbatches save the language model's memory, which token counts do not need.
        None if reads_tokens(config.objective) else config.micro_batch_size,
    )
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
    warmup: list[dict] | None = None,
) -> Progress:
    """Train the adapter in place, by the config's objective or the given function.

    `counts` are the training prompts' token counts; the config's learning rate must be set.
    `selection_scores` evaluates the adapter on the selection split after the last step and, if
    `selection_every` is not 0, before the first and every so many steps. With a checkpoint path,
    the state is saved there every `checkpoint_every` steps and resumed from; `warmup` is the curve
    of the adapter's warm-up, which it keeps. Raises TrainingError for a loss that is not finite or
    explodes, RecordError for a checkpoint of another config, and ValueError without training
    examples.
    """
    config, allowed = context.config, "at least one whose answer is not cut"
    require(len(encoded) > 0, "train_examples", len(encoded), allowed)
    steps = config.epochs * batches.steps_per_epoch(config, len(encoded))
    loop = set_up(adapter, context, steps, checkpoint, objective)
    distribution = batches.token_distribution(counts)
    progress, is_first, device = loop.progress, processes.rank() == 0, context.lm.device
    progress.warmup = progress.warmup or warmup or []
    if config.selection_every and not progress.selection:
        progress.selection.append({"step": 0} | selection_scores(adapter))
    bar = {"desc": config.objective, "initial": progress.step, "total": steps}
    hidden = {} if is_first else {"disable": True}  # else as TQDM_DISABLE says
    for step in tqdm(range(progress.step, steps), file=sys.stdout, **hidden, **bar):
        begin = time.perf_counter()
        batch, examples = batches.batch_at(config, encoded, distribution, step, device)
        row = take_step(loop, batch)
        progress.curve.append(row | {"examples": examples, "seconds": time.perf_counter() - begin})
        progress.step = step + 1
        if progress.step == steps or is_due(config.selection_every, progress.step):
            progress.selection.append({"step": progress.step} | selection_scores(adapter))
        if is_first and checkpoint and is_due(config.checkpoint_every, progress.step):
            save(checkpoint, loop)
    return progress


def save(checkpoint: Path, loop: Loop) -> None:
    state = {name: part.state_dict() for name, part in loop.state.items()}
    state |= {"progress": vars(loop.progress), "config": store.identity(loop.config)}
    store.write_atomically(checkpoint, lambda path: torch.save(state, path))


def resume(checkpoint: Path, loop: Loop) -> None:
    """Load the checkpoint's state into the loop.

    Raises RecordError for a file that cannot be read or is no checkpoint of this config.
    """
    state = store.read_checkpoint(checkpoint, loop.config)
    for name, part in loop.state.items():
        part.load_state_dict(state[name])
    loop.progress = Progress(**state["progress"])


def curve_table(progress: Progress) -> pd.DataFrame:
    """Return the curve with running totals: examples seen, and seconds since the start."""
    curve = pd.DataFrame(progress.curve)
    curve["examples_seen"] = curve["examples"].cumsum()
    curve["seconds_total"] = curve["seconds"].cumsum()
    return curve
