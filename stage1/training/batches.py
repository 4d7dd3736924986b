"""What each training step reads, and how it is split among processes and microbatches.

A batch depends on the config and the step alone: every process builds it by itself, and an
interrupted training resumes with the batch it would have read.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64

from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded
from stage1.loss_parts import Batch, ExampleBatch, TokenCounts
from stage1.objectives import reads_tokens


def steps_per_epoch(config: StudyConfig, examples: int) -> int:
    """Return the number of batches, the last one possibly smaller; the batch size is resolved."""
    assert config.batch_size != "auto"
    return math.ceil(examples / config.batch_size)


@lru_cache(maxsize=64)
def order_of_epoch(seed: int, epoch: int, examples: int) -> Int64[np.ndarray, " N"]:
    order = np.random.default_rng([seed, epoch]).permutation(examples)
    order.flags.writeable = False  # many steps and adapters share it
    return order


def indices_at(config: StudyConfig, examples: int, step: int) -> Int64[np.ndarray, " B"]:
    """Return the examples that one step reads; every epoch shuffles them anew."""
    assert config.batch_size != "auto"
    epoch, index = divmod(step, steps_per_epoch(config, examples))
    order = order_of_epoch(config.seed, epoch, examples)
    return order[index * config.batch_size : (index + 1) * config.batch_size]


def examples_at(config: StudyConfig, encoded: Encoded, step: int) -> ExampleBatch:
    """Return the batch of one step."""
    chosen = indices_at(config, len(encoded), step)
    gold = round(config.gold_fraction * len(chosen))
    keeps_gold = [i < gold for i in range(len(chosen))]
    prompts = [encoded.prompts[i] for i in chosen]
    return ExampleBatch(prompts, [encoded.answers[i] for i in chosen], keeps_gold)


class TokenDistribution(NamedTuple):
    """The tokens of the training prompts; a draw costs their number, not the vocabulary's."""

    ids: Int64[np.ndarray, " N"]
    shares: Float64[np.ndarray, " N"]
    total: int
    """Tokens of all training prompts."""


def token_distribution(counts: Int64[np.ndarray, " V"]) -> TokenDistribution:
    ids = counts.nonzero()[0]
    return TokenDistribution(ids, counts[ids] / counts.sum(), int(counts.sum()))


def tokens_at(
    config: StudyConfig,
    distribution: TokenDistribution,
    tokens: int,
    step: int,
    device: torch.device,
) -> TokenCounts:
    """Draw the prompt tokens of one step by their counts in the training prompts."""
    rng = np.random.default_rng([config.seed, step])
    drawn = rng.multinomial(tokens, distribution.shares)
    occurring = drawn.nonzero()[0]
    ids, counts = distribution.ids[occurring], drawn[occurring]
    return TokenCounts(torch.from_numpy(ids).to(device), torch.from_numpy(counts).to(device))


def batch_at(
    config: StudyConfig,
    encoded: Encoded,
    distribution: TokenDistribution,
    step: int,
    device: torch.device,
) -> tuple[Batch, int]:
    """Return what the config's objective reads at one step, and the examples that stands for."""
    examples = examples_at(config, encoded, step)
    if not reads_tokens(config.objective):
        return examples, len(examples)
    # As many tokens as that many examples have on average.
    tokens = round(len(examples) * distribution.total / len(encoded))
    return tokens_at(config, distribution, tokens, step, device), len(examples)


def partition(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Partition the indices of the lengths into parts of about equal size and total length.

    Dealt longest first in snake order, so that sizes differ by at most one. Each part ascends.
    """
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    snake = [*range(parts), *reversed(range(parts))]
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for turn, index in enumerate(longest_first):
        dealt[snake[turn % (2 * parts)]].append(index)
    return [sorted(part) for part in dealt]


def split(batch: Batch, parts: int) -> list[Batch]:
    """Split the batch into parts of similar size; fewer where it is too small."""
    if parts == 1:
        return [batch]
    if isinstance(batch, TokenCounts):
        starts = range(min(parts, len(batch)))
        return [TokenCounts(batch.ids[i::parts], batch.counts[i::parts]) for i in starts]
    pairs = zip(batch.prompts, batch.answers, strict=True)
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    return [batch.select(part) for part in partition(lengths, parts) if part]
