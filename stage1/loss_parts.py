"""What a training loss is made of: batches, parts of a loss, and how each part is measured.

An objective (`stage1/objectives.py`) returns parts; `measure` turns one into a term. The frozen
model reads the adapter's embeddings for the prompt; gold or generated answers follow as original
embeddings, as they do in generation. The output head reads supervised positions only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding

from stage1.config import StudyConfig
from stage1.fields import require
from stage1.model import fused_loss
from stage1.model.language_model import FrozenLM
from stage1.model.token_batch import TokenBatch


class Term(NamedTuple):
    """One term of a loss: its mean over the supervised tokens, their number, and its weight."""

    value: Float[Tensor, ""]
    tokens: int
    weight: float = 1.0


Terms = dict[str, Term]


@dataclass(frozen=True)
class ObjectiveContext:
    """What every objective needs besides adapter and batch."""

    lm: FrozenLM
    codebook: Float[Tensor, "V K"]
    """Row i is all that an adapter sees of token i: its compressed embedding, or, with a trained
    projection, its embedding minus the mean (D dimensions, not K)."""
    config: StudyConfig
    variance: float
    """Variance per dimension of the training prompts' embeddings; mse divided by it is fvu."""


@dataclass(frozen=True)
class ExampleBatch:
    """Prompts and gold answers (with their end tokens) as token ids."""

    prompts: Sequence[list[int]]
    answers: Sequence[list[int]]
    keeps_gold: Sequence[bool] | None = None
    """On-policy: which examples keep their gold answer; None: the first `gold_fraction`."""

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> "ExampleBatch":
        """Return the examples at these indices."""
        kept = None if self.keeps_gold is None else [self.keeps_gold[i] for i in indices]
        prompts = [self.prompts[i] for i in indices]
        return ExampleBatch(prompts, [self.answers[i] for i in indices], kept)


@dataclass(frozen=True)
class TokenCounts:
    """Prompt tokens without their order: distinct token ids and how often each occurs."""

    ids: Int[Tensor, " N"]
    counts: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.ids)


class Reconstruction(NamedTuple):
    """Part of an objective: the squared error of these tokens' embeddings, as mse or as fvu."""

    counts: TokenCounts
    measure: str = "mse"
    weight: float = 1.0


class CrossEntropy(NamedTuple):
    """Part of an objective: cross-entropy of the supervised tokens after the adapter's prompt."""

    tokens: TokenBatch
    supervised: Bool[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"] | None = None
    """What attention may read, where padding stands among the tokens."""
    weight: float = 1.0


class Divergence(NamedTuple):
    """Part of an objective: KL(teacher || student) at the supervised tokens.

    The teacher is the frozen model reading the original prompt; the student reads the adapter's.
    """

    tokens: TokenBatch
    supervised: Bool[Tensor, "B T"]
    attention_mask: None = None
    weight: float = 1.0


Part = Reconstruction | CrossEntropy | Divergence


Batch = ExampleBatch | TokenCounts


def total(terms: Terms) -> Float[Tensor, ""]:
    """Return the loss: the weighted sum of the terms."""
    return sum((term.weight * term.value for term in terms.values()), start=torch.tensor(0.0))


def input_embeddings(
    adapter: nn.Module, tokens: TokenBatch, context: ObjectiveContext
) -> Float[Tensor, "B T D"]:
    """Return the adapter's embeddings for the prompt, original ones elsewhere.

    The adapter works token by token, so it decodes each distinct token once.
    """
    original = context.lm.embed(tokens.ids)
    distinct, index = tokens.ids[tokens.is_prompt].unique(return_inverse=True)
    decoded = adapter(context.codebook[distinct]).to(original.dtype)
    return original.masked_scatter(tokens.is_prompt[..., None], embedding(index, decoded))


def measure(part: Part, adapter: nn.Module, context: ObjectiveContext, name: str) -> Term:
    """Measure a part of the objective of that name. Raises ValueError if it supervises nothing."""
    if isinstance(part, Reconstruction):
        return reconstruction(part, adapter, context, name)
    lm, tokens, teacher = context.lm, part.tokens, None
    positions = tokens.predictors(part.supervised, name)
    if isinstance(part, Divergence):
        with torch.no_grad():
            teacher = lm.hidden(lm.embed(tokens.ids), positions, starts=tokens.starts)
    inputs = input_embeddings(adapter, tokens, context)
    hidden = lm.hidden(inputs, positions, part.attention_mask, tokens.starts)
    if teacher is not None:
        value = fused_loss.mean_kl(hidden, lm.head, teacher, context.config.compiled)
    else:
        targets = tokens.ids[tokens.predicted(part.supervised)]
        value = fused_loss.mean_cross_entropy(hidden, lm.head, targets, context.config.compiled)
    return Term(value, len(hidden), part.weight)


def reconstruction(
    part: Reconstruction, adapter: nn.Module, context: ObjectiveContext, name: str
) -> Term:
    """Measure the mean squared error per dimension and prompt token; as fvu, over the variance."""
    ids, counts = part.counts.ids, part.counts.counts
    tokens = int(counts.sum())
    require(tokens > 0, "objective", name, "a batch with at least one supervised token")
    error = adapter(context.codebook[ids]) - context.lm.embedding_table[ids].float()
    value = (counts.float() / tokens) @ error.square().mean(1)
    return Term(value / context.variance if part.measure == "fvu" else value, tokens, part.weight)
