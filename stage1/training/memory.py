"""The largest batch that fits: measured before training on real steps over the longest examples."""

from collections.abc import Callable
from dataclasses import replace

import torch

from stage1.baselines import Adapter
from stage1.corpus.prompts import Encoded
from stage1.fields import require
from stage1.loss_parts import ExampleBatch, ObjectiveContext
from stage1.machine import processes
from stage1.training.loop import set_up, take_step
from stage1.training.microbatches import TrainingError

SAFE = 0.9
"""Share of a GPU's memory that a step may take; other processes and fragmentation need the rest."""
GRAIN = 8
"""Batch sizes are multiples of this many examples."""


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest multiple of `GRAIN` up to `most` that fits, by doubling and bisection.

    No size far above one that does not fit is tried. Raises ValueError where `GRAIN` does not fit.
    """
    allowed = f"memory for {GRAIN} examples at least; try recomputed=1.0"
    require(fits(GRAIN), "batch_size", "auto", allowed)
    # In grains: `low` fits; `high` does not, or exceeds `most`.
    low, high = 1, max(2, most // GRAIN + 1)
    while 2 * low < high:
        if fits(2 * low * GRAIN):
            low *= 2
        else:
            high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * GRAIN) else (low, middle)
    return low * GRAIN


def longest(encoded: Encoded, size: int) -> ExampleBatch:
    """Return a batch of `size` examples, longest first, repeated where there are fewer."""
    pairs = zip(encoded.prompts, encoded.answers, strict=True)
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    order = sorted(range(len(encoded)), key=lambda index: -lengths[index])
    batch = ExampleBatch(encoded.prompts, encoded.answers)
    return batch.select([order[i % len(order)] for i in range(size)])


def step_peak(adapter: Adapter, context: ObjectiveContext, batch: ExampleBatch) -> int | None:
    """Return the peak GPU memory of one optimizer step in bytes; None where it does not fit.

    Trains the adapter.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    whole = replace(context, config=context.config.replace(micro_batch_size=None))
    loop = set_up(adapter, whole, 1, None)
    try:
        take_step(loop, batch)
    except TrainingError:
        return None
    return torch.cuda.max_memory_allocated() if loop.microbatch_size is None else None


def largest_batch(make: Callable[[], Adapter], context: ObjectiveContext, encoded: Encoded) -> int:
    """Return the largest batch whose step takes at most `SAFE` of every process's GPU memory.

    Each process reads an equal share of the batch. Raises ValueError without a GPU to measure.
    """
    device, size = context.lm.device, context.config.batch_size
    on_gpu, allowed = device.type == "cuda", "a number where there is no GPU to measure"
    require(on_gpu, "batch_size", size, allowed)
    limit = SAFE * torch.cuda.get_device_properties(device).total_memory

    def fits(size: int) -> bool:
        peak = step_peak(make(), context, longest(encoded, size * processes.world_size()))
        return processes.all_true(peak is not None and peak <= limit)

    return largest(fits, len(encoded) // processes.world_size()) * processes.world_size()
