"""How many examples fit a step: measured on real steps over the longest examples, before training starts."""

from collections.abc import Callable

import torch

from stage1.adapter import Adapter
from stage1.corpus.prompts import Encoded
from stage1.fields import require
from stage1.machine import processes
from stage1.objectives import ExampleBatch, ObjectiveContext
from stage1.training.loop import TrainingError, set_up, take_step

SAFE = 0.9
"""Share of a GPU's memory that a step may take; other processes and fragments need the rest."""
GRAIN = 8
"""Batch sizes are multiples of this many examples."""


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest multiple of `GRAIN` up to `most` that fits, by doubling and halving: past one that does not fit,
    none is tried. Raises ValueError where `GRAIN` does not fit."""
    require(
        fits(GRAIN),
        "batch_size",
        "auto",
        f"memory for {GRAIN} examples at least; try recomputed=1.0",
    )
    low, high = (
        1,
        max(2, most // GRAIN + 1),
    )  # in grains: one that fits, and one that does not or is not wanted
    while 2 * low < high:
        if not fits(2 * low * GRAIN):
            high = 2 * low
        else:
            low *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * GRAIN) else (low, middle)
    return low * GRAIN


def longest(encoded: Encoded, size: int) -> ExampleBatch:
    """A batch of that many examples, the longest first, over again where there are fewer."""
    order = sorted(
        range(len(encoded)), key=lambda i: -len(encoded.prompts[i]) - len(encoded.answers[i])
    )
    return ExampleBatch(encoded.prompts, encoded.answers).chosen(
        [order[i % len(order)] for i in range(size)]
    )


def step_peak(adapter: Adapter, context: ObjectiveContext, batch: ExampleBatch) -> int | None:
    """Bytes of GPU memory that one optimizer step takes at its peak; None where it does not fit. Trains the adapter."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    whole = ObjectiveContext(
        context.lm,
        context.codebook,
        context.config.replace(micro_batch_size=None),
        context.variance,
    )
    loop = set_up(adapter, whole, 1, None)
    try:
        take_step(loop, batch)
    except TrainingError:
        return None
    return torch.cuda.max_memory_allocated() if loop.pass_size is None else None


def largest_batch(make: Callable[[], Adapter], context: ObjectiveContext, encoded: Encoded) -> int:
    """The largest batch whose step takes at most `SAFE` of the memory of every process's GPU, with a share of it each.

    Raises ValueError where there is no GPU to measure.
    """
    name = context.config.batch_size
    require(
        context.lm.device.type == "cuda",
        "batch_size",
        name,
        "a number where there is no GPU to measure",
    )
    limit = SAFE * torch.cuda.get_device_properties(context.lm.device).total_memory

    def fits(size: int) -> bool:
        peak = step_peak(make(), context, longest(encoded, size * processes.world_size()))
        return processes.all_true(peak is not None and peak <= limit)

    return largest(fits, len(encoded) // processes.world_size()) * processes.world_size()
