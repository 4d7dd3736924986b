"""What each training step reads, and how it is split among processes and microbatches.

A batch depends on the config and the step alone, so every process can make it for itself, and an interrupted training
goes on with the batch it would have read.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64

from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded
from stage1.objectives import ExampleBatch, TokenCounts


def steps_per_epoch(config: StudyConfig, examples: int) -> int:
    return math.ceil(examples / config.batch_size)


def examples_at(config: StudyConfig, encoded: Encoded, step: int) -> ExampleBatch:
    """The batch of one step: the epoch's examples in an order of their own, the last batch what is left of them."""
    epoch, place = divmod(step, steps_per_epoch(config, len(encoded)))
    order = np.random.default_rng([config.seed, epoch]).permutation(len(encoded))
    chosen = order[place * config.batch_size : (place + 1) * config.batch_size]
    gold = round(config.gold_fraction * len(chosen))
    keeps_gold = [place < gold for place in range(len(chosen))]
    return ExampleBatch(
        [encoded.prompts[i] for i in chosen], [encoded.answers[i] for i in chosen], keeps_gold
    )


class TokenDistribution(NamedTuple):
    """The tokens that occur in the training prompts, so that a draw costs what they cost, not what the vocabulary does."""

    ids: Int64[np.ndarray, " N"]
    shares: Float64[np.ndarray, " N"]
    total: int
    """Tokens of all training prompts."""


def token_distribution(counts: Int64[np.ndarray, " V"]) -> TokenDistribution:
    ids = counts.nonzero()[0]
    return TokenDistribution(ids, counts[ids] / counts.sum(), int(counts.sum()))


def tokens_at(
    config: StudyConfig, known: TokenDistribution, tokens: int, step: int, device: torch.device
) -> TokenCounts:
    """As many prompt tokens as a batch of examples has on average, drawn by their counts in the training prompts."""
    drawn = np.random.default_rng([config.seed, step]).multinomial(tokens, known.shares)
    places = drawn.nonzero()[0]
    return TokenCounts(
        torch.from_numpy(known.ids[places]).to(device), torch.from_numpy(drawn[places]).to(device)
    )


def deal(lengths: Sequence[int], hands: int) -> list[list[int]]:
    """Places of the lengths in that many hands: longest first, there and back again, so that hands differ by at most
    one in number and little in sum. Together they hold every place once, each hand in ascending order."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    turns = [*range(hands), *reversed(range(hands))]
    return [
        sorted(order[i] for i in range(len(order)) if turns[i % (2 * hands)] == hand)
        for hand in range(hands)
    ]


def split(batch: ExampleBatch | TokenCounts, parts: int) -> list[ExampleBatch | TokenCounts]:
    """The batch in that many parts of similar size, which together are the batch; fewer where it is too small."""
    if parts == 1:
        return [batch]
    if isinstance(batch, TokenCounts):
        return [
            TokenCounts(batch.ids[part::parts], batch.counts[part::parts])
            for part in range(min(parts, len(batch.ids)))
        ]
    lengths = [
        len(prompt) + len(answer)
        for prompt, answer in zip(batch.prompts, batch.answers, strict=True)
    ]
    return [batch.select(hand) for hand in deal(lengths, parts) if hand]
