"""The training objectives: one pure function each, from adapter and batch to named loss terms.

Every function says which tokens it supervises. Masks come from lengths, never from token ids, and
the output head reads supervised positions only. The frozen model reads the adapter's embeddings for
the prompt; gold or generated answers follow as original embeddings, as they do in generation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding

from stage1 import names
from stage1.config import StudyConfig
from stage1.fields import nearest, require
from stage1.model import fused_loss
from stage1.model.generation import generate_ids
from stage1.model.language_model import FrozenLM
from stage1.model.token_batch import TokenBatch, check_prompts, packed_batch, padded_batch


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
Objective = Callable[[nn.Module, Any, ObjectiveContext], Terms]
"""An objective reads TokenCounts where `reads_tokens`, else an ExampleBatch."""

PARTS: dict[str, Callable[[nn.Module, Any, ObjectiveContext], dict[str, Part]]] = {}
"""What every objective consists of. Adapters trained together share the passes of their parts."""
FUNCTIONS: dict[str, Objective] = {}
"""The function of every objective in `names.OBJECTIVES`: its parts, measured."""


def objective(function: Callable[[nn.Module, Any, ObjectiveContext], dict[str, Part]]) -> Objective:
    """Register a training objective, a function that returns its parts by the name of their term.

    Raises ValueError unless `names.OBJECTIVES` has its name.
    """
    name = function.__name__
    require(name in names.OBJECTIVES, "objective", name, "an entry of names.OBJECTIVES")

    @wraps(function)
    def measured(adapter: nn.Module, batch: Batch, context: ObjectiveContext) -> Terms:
        parts = function(adapter, batch, context)
        return {term: measure(part, adapter, context, name) for term, part in parts.items()}

    PARTS[name], FUNCTIONS[name] = function, measured
    return measured


def find(name: str) -> Objective:
    """Return the objective of that name. Raises ValueError with the nearest name if unknown."""
    allowed = f"one of {', '.join(FUNCTIONS)}{nearest(name, FUNCTIONS)}"
    require(name in FUNCTIONS, "objective", name, allowed)
    return FUNCTIONS[name]


def reads_tokens(name: str) -> bool:
    """Return whether the objective needs only the counts of prompt tokens."""
    return names.OBJECTIVES[name].reads == "tokens"


def total(terms: Terms) -> Float[Tensor, ""]:
    """Return the loss: the weighted sum of the terms."""
    return sum((term.weight * term.value for term in terms.values()), start=torch.tensor(0.0))


# ---------------------------------------------------------------- from batches to terms


def token_batch(
    batch: ExampleBatch, answers: Sequence[list[int]], context: ObjectiveContext
) -> TokenBatch:
    """Return prompts followed by answers: a padded row per example, or one packed row.

    Raises ValueError for an empty batch or an empty prompt.
    """
    make = packed_batch if context.config.packed else padded_batch
    return make(batch.prompts, answers, context.lm.pad_token, context.lm.device)


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


def prompt_tokens(prompts: Sequence[list[int]], device: torch.device) -> TokenCounts:
    """Return the counts of the prompts' tokens, all that the reconstruction error depends on."""
    flat = [token for prompt in prompts for token in prompt]
    ids = torch.tensor(flat, dtype=torch.int64, device=device)
    return TokenCounts(*ids.unique(return_counts=True))


def pad_in_place(
    batch: ExampleBatch, context: ObjectiveContext, gap: bool
) -> tuple[TokenBatch, Bool[Tensor, "B T"]]:
    """Return rows of `max_prompt_tokens + max_answer_tokens`, padding included, and a padding mask.

    The padding counts as prompt or answer; the mask is True at real tokens. With a `gap`, prompt
    and answer are each right-padded to their budget, as in the analysed code; without, all padding
    follows the answer.
    """
    check_prompts(batch.prompts)
    pad, device = context.lm.pad_token, context.lm.device
    prompt_room, answer_room = context.config.max_prompt_tokens, context.config.max_answer_tokens
    prompts, answers, real = [], [], []
    for prompt, answer in zip(batch.prompts, batch.answers, strict=True):
        between, after = prompt_room - len(prompt), answer_room - len(answer)
        if not gap:
            between, after = 0, between + after
        prompts.append(prompt + [pad] * between)
        answers.append(answer + [pad] * after)
        is_real = [True] * len(prompt) + [False] * between
        real.append(is_real + [True] * len(answer) + [False] * after)
    return padded_batch(prompts, answers, pad, device), torch.tensor(real, device=device)


# ---------------------------------------------------------------- the objectives


@objective
def as_found(adapter: nn.Module, batch: ExampleBatch, context: ObjectiveContext) -> dict[str, Part]:
    """The analysed code: reconstruction + cross-entropy of prompt, padding and answer, weights 1.

    Prompt and answer are right-padded to their budgets. Attention skips the padding; the labels do
    not. `padding_layout` removes the gap before the answer, the labels on padding, or both;
    `labels_on` removes the labels on the prompt.
    """
    layout = context.config.padding_layout
    tokens, real = pad_in_place(batch, context, gap=layout in ("as_found", "no_labels_on_padding"))
    supervised = torch.ones_like(real) if layout in ("as_found", "no_gap") else real
    if context.config.labels_on == "answer":
        supervised = supervised & ~(tokens.is_prompt & real)
    counts = prompt_tokens(batch.prompts, context.lm.device)
    return {
        "reconstruction": Reconstruction(counts),
        "cross_entropy": CrossEntropy(tokens, supervised, real),
    }


@objective
def option1_reconstruction(
    adapter: nn.Module, batch: TokenCounts, context: ObjectiveContext
) -> dict[str, Part]:
    """Fix option 1: reconstruction of prompt tokens alone, without the language model."""
    return {"reconstruction": Reconstruction(batch, context.config.reconstruction_term)}


@objective
def option2_prompt_ce(
    adapter: nn.Module, batch: ExampleBatch, context: ObjectiveContext
) -> dict[str, Part]:
    """Fix option 2 as written: cross-entropy of the reconstructed prompt's own next tokens."""
    tokens = token_batch(batch, [[]] * len(batch), context)
    return {"cross_entropy": CrossEntropy(tokens, tokens.is_prompt)}


@objective
def option2_on_policy(
    adapter: nn.Module, batch: ExampleBatch, context: ObjectiveContext
) -> dict[str, Part]:
    """Fix option 2 as meant: on answers generated from the adapter's prompt during training, KL
    from the frozen model reading the original prompt.

    The first `gold_fraction` of the (shuffled) batch keeps its gold answers. This is on-policy
    distillation with forward KL (Agarwal et al., 2024, GKD).
    """
    check_prompts(batch.prompts)
    count = len(batch)
    first = round(context.config.gold_fraction * count)
    gold = batch.keeps_gold or [i < first for i in range(count)]
    own = [prompt for prompt, keeps in zip(batch.prompts, gold, strict=True) if not keeps]
    generated = iter(generate_answers(adapter, own, context))
    pairs = zip(batch.answers, gold, strict=True)
    answers = [answer if keeps else next(generated) for answer, keeps in pairs]
    tokens = token_batch(batch, answers, context)
    return {"kl": Divergence(tokens, tokens.is_answer)}


def generate_answers(
    adapter: nn.Module, prompts: Sequence[list[int]], context: ObjectiveContext
) -> list[list[int]]:
    """Return the frozen model's answers to the adapter's prompts, with their end tokens."""
    if not prompts:
        return []
    config = context.config
    return generate_ids(
        context.lm,
        prompts,
        lambda ids: adapter(context.codebook[ids]),
        config.max_new_tokens,
        config.temperature,
    )


@objective
def option3_teacher_forced(
    adapter: nn.Module, batch: ExampleBatch, context: ObjectiveContext
) -> dict[str, Part]:
    """Fix option 3: reconstruction of the prompt + cross-entropy of the answer and end token."""
    config = context.config
    term, weight = config.reconstruction_term, config.reconstruction_weight
    tokens = token_batch(batch, batch.answers, context)
    counts = prompt_tokens(batch.prompts, context.lm.device)
    return {
        "reconstruction": Reconstruction(counts, term, weight),
        "cross_entropy": CrossEntropy(tokens, tokens.is_answer, weight=config.ce_weight),
    }


@objective
def answer_ce(
    adapter: nn.Module, batch: ExampleBatch, context: ObjectiveContext
) -> dict[str, Part]:
    """Control: cross-entropy of the answer and end token alone."""
    tokens = token_batch(batch, batch.answers, context)
    return {"cross_entropy": CrossEntropy(tokens, tokens.is_answer)}


@objective
def distill(adapter: nn.Module, batch: ExampleBatch, context: ObjectiveContext) -> dict[str, Part]:
    """Control: on the gold answer, KL from the frozen model reading the original prompt."""
    tokens = token_batch(batch, batch.answers, context)
    return {"kl": Divergence(tokens, tokens.is_answer)}
