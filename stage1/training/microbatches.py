"""Terms and gradients of a batch that several processes read in several passes, exact up to rounding.

Every process takes its part of the batch, in as many microbatches as its memory needs. Means add up by their supervised
tokens, so that the result does not depend on the number of either.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import torch
from tqdm import tqdm

from stage1.machine import processes
from stage1.model import engine
from stage1.objectives import ExampleBatch, Terms, TokenCounts
from stage1.training.batches import split
from stage1.training.gradients import Vectors, embedding_gradients, term_gradients

if TYPE_CHECKING:
    from stage1.training.loop import Loop

ReadGradients = Callable[["Loop", ExampleBatch | TokenCounts], tuple[Terms, Vectors]]


class TrainingError(RuntimeError):
    """The loss is no number or explodes, or a single example does not fit; the message names the step."""


class BatchGradients(NamedTuple):
    """The terms of a batch, detached, and the gradient of each, unweighted."""

    terms: Terms
    gradients: Vectors

    def merged(self, terms: Terms, gradients: Vectors) -> "BatchGradients":
        """Together with another part of the batch: means over the supervised tokens of both.

        The first part stays as it is, bit for bit.
        """
        if not self.terms:
            detached = {
                name: term._replace(value=term.value.detach()) for name, term in terms.items()
            }
            return BatchGradients(detached, gradients)
        means, sums = {}, {}
        for name, mine in self.terms.items():
            other, tokens = terms[name], mine.tokens + terms[name].tokens
            share = other.tokens / tokens
            means[name] = mine._replace(
                value=mine.value.lerp(other.value.detach(), share), tokens=tokens
            )
            sums[name] = self.gradients[name].lerp(gradients[name], share)
        return BatchGradients(means, sums)

    def all_reduced(self, counts: bool) -> "BatchGradients":
        """The means over the parts of all processes. A part that does not count repeats another one's, because the
        batch is too small for all."""
        if processes.world_size() == 1:
            return self
        device = next(iter(self.gradients.values())).device
        tokens = torch.tensor([counts * term.tokens for term in self.terms.values()], device=device)
        everyone = processes.all_reduce(tokens.clone()).tolist()
        shares = dict(
            zip(self.terms, (tokens / torch.tensor(everyone, device=device)).tolist(), strict=True)
        )
        values = processes.all_reduce(
            torch.stack([shares[name] * term.value for name, term in self.terms.items()])
        )
        terms = {
            name: term._replace(value=value, tokens=number)
            for (name, term), value, number in zip(
                self.terms.items(), values, everyone, strict=True
            )
        }
        gradients = {
            name: processes.all_reduce(shares[name] * g) for name, g in self.gradients.items()
        }
        return BatchGradients(terms, gradients)


def gradients_at_parameters(loop: "Loop", batch: ExampleBatch | TokenCounts) -> BatchGradients:
    """The batch's terms, and the gradient of each at the adapter's parameters."""

    def read(loop: "Loop", part: ExampleBatch | TokenCounts) -> tuple[Terms, Vectors]:
        terms = loop.objective(loop.adapter, part, loop.context)
        return terms, term_gradients(terms, list(loop.adapter.parameters()), keep_graph=False)

    return over_processes(loop, batch, read)


def gradients_at_embeddings(loop: "Loop", batch: ExampleBatch) -> BatchGradients:
    """The same at the reconstructed embeddings."""

    def read(loop: "Loop", part: ExampleBatch) -> tuple[Terms, Vectors]:
        return embedding_gradients(loop.objective, loop.adapter, part, loop.context)

    return over_processes(loop, batch, read)


def over_processes(
    loop: "Loop", batch: ExampleBatch | TokenCounts, read: ReadGradients
) -> BatchGradients:
    """The batch's terms and gradients, each process reading its own part.

    Where memory runs out the part is read again in microbatches of half the size. Raises TrainingError where a single
    example does not fit.
    """
    step, parts = loop.progress.step, split(batch, processes.world_size())
    mine = parts[processes.rank() % len(parts)]
    found = None
    while found is None:
        torch.manual_seed(loop.config.seed * 1_000_003 + step)  # for sampled answers
        with suppress(torch.OutOfMemoryError), engine.tf32_beside_bfloat16(loop.config):
            found = over_microbatches(loop, mine, read)
        if found is None:
            loop.microbatch_size = halved(min(loop.microbatch_size or len(mine), len(mine)), step)
            torch.cuda.empty_cache()
    return found.all_reduced(counts=processes.rank() < len(parts))


def over_microbatches(
    loop: "Loop", batch: ExampleBatch | TokenCounts, read: ReadGradients
) -> BatchGradients:
    """The terms and gradients of one process's part, in microbatches of `loop.microbatch_size`."""
    size, found = loop.microbatch_size, BatchGradients({}, {})
    for part in split(batch, math.ceil(len(batch) / size) if size else 1):
        found = found.merged(*read(loop, part))
    return found


def halved(size: int, step: int) -> int:
    """Half as many examples. Raises TrainingError where there is only one."""
    if size <= 1:
        raise TrainingError(
            f"step {step}: memory runs out with one example at a time; try recomputed=1.0, dtype='bfloat16' or a "
            "smaller max_prompt_tokens"
        )
    half = math.ceil(size / 2)
    tqdm.write(f"step {step}: memory runs out with {size} examples at a time; going on with {half}")
    return half
