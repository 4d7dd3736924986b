"""Terms and gradients of a batch over several processes and microbatches, exact up to rounding.

Every process reads its part of the batch, in as many microbatches as its memory needs. Means are
weighted by supervised tokens, so the result does not depend on the number of either.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import torch

from stage1.loss_parts import Batch, Terms
from stage1.machine import processes
from stage1.machine.room import halved
from stage1.model import engine
from stage1.training.batches import split
from stage1.training.gradients import Vectors, embedding_gradients, term_gradients

if TYPE_CHECKING:
    from stage1.training.loop import Loop

ReadGradients = Callable[[Batch], tuple[Terms, Vectors]]


class TrainingError(RuntimeError):
    """The loss is not finite or explodes, or one example does not fit; the message has the step."""


class BatchGradients(NamedTuple):
    """The terms of a batch, detached, and the gradient of each, unweighted."""

    terms: Terms
    gradients: Vectors

    def merged(self, terms: Terms, gradients: Vectors) -> "BatchGradients":
        """Return the means over this and another part of the batch, by their supervised tokens."""
        if not self.terms:  # the first part stays as it is, bit for bit
            detached = {n: term._replace(value=term.value.detach()) for n, term in terms.items()}
            return BatchGradients(detached, gradients)
        means, mean_gradients = {}, {}
        for name, mine in self.terms.items():
            other, tokens = terms[name], mine.tokens + terms[name].tokens
            share = other.tokens / tokens
            value = mine.value.lerp(other.value.detach(), share)
            means[name] = mine._replace(value=value, tokens=tokens)
            mean_gradients[name] = self.gradients[name].lerp(gradients[name], share)
        return BatchGradients(means, mean_gradients)

    def all_reduced(self, is_counted: bool) -> "BatchGradients":
        """Return the means over the parts of all processes, by their supervised tokens.

        A process without a part of its own reads another's again, and is not counted.
        """
        if processes.world_size() == 1:
            return self
        device = next(iter(self.gradients.values())).device
        own = torch.tensor(
            [is_counted * term.tokens for term in self.terms.values()], device=device
        )
        tokens = processes.all_reduce(own.clone()).tolist()
        shares = (own / torch.tensor(tokens, device=device)).tolist()
        parts = [share * t.value for share, t in zip(shares, self.terms.values(), strict=True)]
        values = processes.all_reduce(torch.stack(parts))
        terms, gradients = {}, {}
        for i, (name, term) in enumerate(self.terms.items()):
            terms[name] = term._replace(value=values[i], tokens=tokens[i])
            gradients[name] = processes.all_reduce(shares[i] * self.gradients[name])
        return BatchGradients(terms, gradients)


def gradients_at_parameters(loop: "Loop", batch: Batch) -> BatchGradients:
    """Return the batch's terms, and the gradient of each at the adapter's parameters."""

    def read(part: Batch) -> tuple[Terms, Vectors]:
        terms = loop.objective(loop.adapter, part, loop.context)
        return terms, term_gradients(terms, list(loop.adapter.parameters()))

    return over_processes(loop, batch, read)


def gradients_at_embeddings(loop: "Loop", batch: Batch) -> BatchGradients:
    """Return the batch's terms, and the gradient of each at the reconstructed embeddings."""

    def read(part: Batch) -> tuple[Terms, Vectors]:
        return embedding_gradients(loop.objective, loop.adapter, part, loop.context)

    return over_processes(loop, batch, read)


def over_processes(loop: "Loop", batch: Batch, read: ReadGradients) -> BatchGradients:
    """Return the batch's terms and gradients; each process reads its own part.

    Where memory runs out, the part is read again in microbatches of half the size. Raises
    TrainingError where a single example does not fit.
    """
    step, parts, rank = loop.progress.step, split(batch, processes.world_size()), processes.rank()
    part, result = parts[rank % len(parts)], None
    while result is None:
        torch.manual_seed(loop.config.seed * 1_000_003 + step)  # for sampled answers
        uses_tf32 = loop.config.dtype == "bfloat16"  # the language model's products have fewer bits
        with suppress(torch.OutOfMemoryError), engine.tf32(uses_tf32):
            result = over_microbatches(part, loop.microbatch_size, read)
        if result is None:
            size = min(loop.microbatch_size or len(part), len(part))
            loop.microbatch_size = halved(size, "example", f"step {step}", TrainingError)
    return result.all_reduced(is_counted=rank < len(parts))


def over_microbatches(part: Batch, size: int | None, read: ReadGradients) -> BatchGradients:
    """Return the terms and gradients of one process's part; a size of None reads it at once."""
    result = BatchGradients({}, {})
    for microbatch in split(part, math.ceil(len(part) / size) if size else 1):
        result = result.merged(*read(microbatch))
    return result
