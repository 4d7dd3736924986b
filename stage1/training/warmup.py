"""Reconstruction warm-up: steps of option 1 on the whole vocabulary before the objective proper.

Nothing passes through the language model, so thousands of steps cost seconds. Entry v weighs
(1 - m) times its share of the training tokens plus m / V, with m the config's `warmup_uniform`.
Token counts alone (m = 0) leave rare entries unlearned, pieces of unseen names among them. Rows
that only pad the table, beyond the V of the tokenizer, weigh nothing.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from stage1 import store
from stage1.adapter import CHUNK
from stage1.baselines import Adapter
from stage1.config import StudyConfig
from stage1.loss_parts import ObjectiveContext
from stage1.model import engine
from stage1.training.microbatches import TrainingError
from stage1.training.stacked import Captured, StackedAdapters

READINGS = 50
"""Rows of a warm-up's curve, evenly spaced over its steps."""
CHECKPOINT_EVERY = 500
"""Steps between checkpoints."""
Readings = list[tuple[int, list[float]]]
"""Steps, and the fvu of every adapter before each of them."""


def entry_weights(
    counts: Int64[np.ndarray, " V"], uniform: float, rows: int
) -> Float[Tensor, " V"]:
    """Return the weight of every vocabulary entry, uniform over the first `rows`; they sum to 1."""
    weights = (1 - uniform) * torch.from_numpy(counts / counts.sum())
    weights[:rows] += uniform / rows
    return weights


def draw_entries(
    weights: Float[Tensor, " V"], size: int, seed: int, step: int
) -> Int64[Tensor, " N"]:
    """Draw entries systematically: each occurs as often as its weight asks, up to rounding."""
    offset = np.random.default_rng([seed, step]).random()
    points = (torch.arange(size, device=weights.device, dtype=torch.float64) + offset) / size
    cumulative = weights.double().cumsum(0)
    return torch.searchsorted(cumulative, points * cumulative[-1]).clamp(max=len(weights) - 1)


def warm_up(
    adapters: Sequence[Adapter],
    context: ObjectiveContext,
    counts: Int64[np.ndarray, " V"],
    show: bool = True,
    checkpoint: Path | None = None,
) -> list[list[dict]]:
    """Warm the adapters up in place, all by the context's config; return a curve of each.

    With a checkpoint path, the state is saved there and resumed from. Raises TrainingError where an
    error is not finite, and RecordError for a checkpoint of another config.
    """
    config, steps = context.config, context.config.warmup_steps
    if not steps:
        return [[] for _ in adapters]
    configs, rates = [config] * len(adapters), [config.warmup_rate] * len(adapters)
    on_gpu = context.lm.device.type == "cuda"
    stack = StackedAdapters(adapters, configs, rates, steps, capturable=on_gpu)
    done, readings = resume(checkpoint, stack, config)
    weights = entry_weights(counts, config.warmup_uniform, context.lm.token_rows)
    prepare_batch, take_step = step_functions(stack, context, weights)
    every, bar = max(1, steps // READINGS), {"desc": "warm-up", "initial": done, "total": steps}
    hidden = {} if show else {"disable": True}  # else as TQDM_DISABLE says
    uses_tf32 = on_gpu and config.dtype == "bfloat16"  # the table itself has fewer bits
    for step in tqdm(range(done, steps), file=sys.stdout, **hidden, **bar):
        prepare_batch(step)
        with engine.tf32(uses_tf32):
            fvu = take_step()
        stack.schedule.step()
        if step % every == 0 or step + 1 == steps:
            readings.append((step, fvu.tolist()))
        if checkpoint is not None and (step + 1) % CHECKPOINT_EVERY == 0:
            save(checkpoint, stack, config, step + 1, readings)
    stack.write_back()
    return curves(readings)


def step_functions(
    stack: StackedAdapters, context: ObjectiveContext, weights: Float[Tensor, " V"]
) -> tuple[Callable[[int], None], Callable[[], Float[Tensor, " S"]]]:
    """Return a function that prepares a step's batch, and one that takes the step.

    The second returns the fvu of every adapter. A GPU replays it, so batches change in place.
    """
    config, device = context.config, stack.device
    weights = weights.to(device, torch.float32)
    size = config.warmup_batch or len(weights)
    rows = torch.arange(size, device=device) % len(weights)
    shares = torch.full((size,), 1 / size, device=device) if config.warmup_batch else weights

    def prepare_batch(step: int) -> None:
        if config.warmup_batch:
            rows.copy_(draw_entries(weights, size, config.seed, step))

    def take_step() -> Float[Tensor, " S"]:
        fvu = add_gradients(stack, context, rows, shares)
        stack.step()
        return fvu

    return prepare_batch, Captured(take_step, device)


def add_gradients(
    stack: StackedAdapters,
    context: ObjectiveContext,
    rows: Int64[Tensor, " N"],
    shares: Float[Tensor, " N"],
) -> Float[Tensor, " S"]:
    """Add the gradient of every adapter's fvu over these entries, by chunks; return the fvu."""
    fvu = torch.zeros(len(stack.adapters), device=shares.device)
    for part, share in zip(rows.split(CHUNK), shares.split(CHUNK), strict=True):
        error = stack.decode(context.codebook[part]) - context.lm.embedding_table[part].float()
        of_part = error.square().mean(-1) @ share / context.variance
        of_part.sum().backward()
        fvu += of_part.detach()
    return fvu


def curves(readings: Readings) -> list[list[dict]]:
    """Return one curve per adapter. Raises TrainingError where a reading is not finite."""
    for step, values in readings:
        for value in values:
            if not math.isfinite(value):
                raise TrainingError(f"warm-up, step {step}: fvu={value}; try a lower warmup_rate")
    adapters = range(len(readings[0][1]))
    return [[{"step": step, "fvu": values[i]} for step, values in readings] for i in adapters]


def save(
    checkpoint: Path, stack: StackedAdapters, config: StudyConfig, step: int, readings: Readings
) -> None:
    state = {
        "parameters": [parameter.detach() for parameter in stack.parameters],
        "optimizer": stack.optimizer.state_dict(),
        "schedule": stack.schedule.state_dict(),
        "step": step,
        "readings": readings,
        "config": store.identity(config),
    }
    store.write_atomically(checkpoint, lambda path: torch.save(state, path))


def resume(
    checkpoint: Path | None, stack: StackedAdapters, config: StudyConfig
) -> tuple[int, Readings]:
    """Load a checkpoint's state into the stack, if there is one; return its step and readings."""
    if checkpoint is None or not checkpoint.exists():
        return 0, []
    state = store.read_checkpoint(checkpoint, config)
    with torch.no_grad():
        for parameter, saved in zip(stack.parameters, state["parameters"], strict=True):
            parameter.copy_(saved)
    stack.optimizer.load_state_dict(state["optimizer"])
    for group in stack.optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # a captured step reads it on its own device
            group["lr"] = group["lr"].to(stack.device)
    stack.schedule.load_state_dict(state["schedule"])
    return state["step"], state["readings"]
