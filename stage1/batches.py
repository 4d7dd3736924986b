"""What each training step reads, how it is dealt out to processes and passes, and how their findings add up.

A batch depends on the config and the step alone, so every process can make it for itself, and an interrupted training
goes on with the batch it would have read.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64

from stage1 import processes
from stage1.config import StudyConfig
from stage1.loss_scale import Vectors
from stage1.objectives import Examples, Terms, Tokens
from stage1.prompts import Encoded


def steps_per_epoch(config: StudyConfig, examples: int) -> int:
    return math.ceil(examples / config.batch_size)


def examples_at(config: StudyConfig, encoded: Encoded, step: int) -> Examples:
    """The batch of one step: the epoch's examples in an order of their own, the last batch what is left of them."""
    epoch, place = divmod(step, steps_per_epoch(config, len(encoded)))
    order = np.random.default_rng([config.seed, epoch]).permutation(len(encoded))
    chosen = order[place * config.batch_size : (place + 1) * config.batch_size]
    gold = round(config.gold_fraction * len(chosen))
    keeps_gold = [place < gold for place in range(len(chosen))]
    return Examples([encoded.prompts[i] for i in chosen], [encoded.answers[i] for i in chosen], keeps_gold)


class Occurring(NamedTuple):
    """The tokens that occur in the training prompts: a draw from a large vocabulary costs what these cost."""

    ids: Int64[np.ndarray, " N"]
    shares: Float64[np.ndarray, " N"]


def occurring(counts: Int64[np.ndarray, " V"]) -> Occurring:
    ids = counts.nonzero()[0]
    return Occurring(ids, counts[ids] / counts.sum())


def tokens_at(config: StudyConfig, known: Occurring, tokens: int, step: int, device: torch.device) -> Tokens:
    """As many prompt tokens as a batch of examples has on average, drawn by their counts in the training prompts."""
    drawn = np.random.default_rng([config.seed, step]).multinomial(tokens, known.shares)
    places = drawn.nonzero()[0]
    return Tokens(torch.from_numpy(known.ids[places]).to(device), torch.from_numpy(drawn[places]).to(device))


def deal(lengths: Sequence[int], hands: int) -> list[list[int]]:
    """Places of the lengths in that many hands: longest first, there and back again, so that hands differ by at most
    one in number and little in sum. Together they hold every place once, each hand in ascending order."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    turns = [*range(hands), *reversed(range(hands))]
    return [sorted(order[i] for i in range(len(order)) if turns[i % (2 * hands)] == hand) for hand in range(hands)]


def split(batch: Examples | Tokens, parts: int) -> list[Examples | Tokens]:
    """The batch in that many parts of similar size, which together are the batch; fewer where it is too small."""
    if parts == 1:
        return [batch]
    if isinstance(batch, Tokens):
        return [Tokens(batch.ids[part::parts], batch.counts[part::parts]) for part in range(min(parts, len(batch.ids)))]
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(batch.prompts, batch.answers, strict=True)]
    return [batch.chosen(hand) for hand in deal(lengths, parts) if hand]


class Found(NamedTuple):
    """The terms of a batch, detached, and the gradient of each, unweighted."""

    terms: Terms
    gradients: Vectors

    def joined(self, terms: Terms, gradients: Vectors) -> "Found":
        """Together with another part of the batch: means over the supervised tokens of both. A first part stays as it
        is, bit for bit."""
        if not self.terms:
            return Found({name: term._replace(value=term.value.detach()) for name, term in terms.items()}, gradients)
        joined = {name: term.tokens + terms[name].tokens for name, term in self.terms.items()}
        shares = {name: terms[name].tokens / tokens for name, tokens in joined.items()}
        values = {name: term.value.lerp(terms[name].value.detach(), shares[name]) for name, term in self.terms.items()}
        means = {name: term._replace(value=values[name], tokens=joined[name]) for name, term in self.terms.items()}
        return Found(means, {name: self.gradients[name].lerp(gradients[name], shares[name]) for name in gradients})

    def over_processes(self, counts: bool) -> "Found":
        """The means over all processes' parts, of which this one `counts` or is a repetition that fills a gap."""
        if processes.count() == 1:
            return self
        tokens = torch.tensor([counts * term.tokens for term in self.terms.values()], device=self.device)
        everyone = processes.summed(tokens.clone()).tolist()
        shares = dict(zip(self.terms, (tokens / torch.tensor(everyone, device=self.device)).tolist(), strict=True))
        values = processes.summed(torch.stack([shares[name] * term.value for name, term in self.terms.items()]))
        terms = {
            name: term._replace(value=value, tokens=number)
            for (name, term), value, number in zip(self.terms.items(), values, everyone, strict=True)
        }
        return Found(terms, {name: processes.summed(shares[name] * g) for name, g in self.gradients.items()})

    @property
    def device(self) -> torch.device:
        return next(iter(self.gradients.values())).device
