"""The training objectives: one pure function each, from adapter and batch to named loss terms.

Every function returns the parts of its loss (`stage1/loss_parts.py`) and says which tokens each
supervises. Masks come from lengths, never from token ids.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from stage1 import names
from stage1.fields import nearest, require
from stage1.loss_parts import (
    Batch,
    CrossEntropy,
    Divergence,
    ExampleBatch,
    ObjectiveContext,
    Part,
    Reconstruction,
    Terms,
    TokenCounts,
    measure,
)
from stage1.model.generation import generate_ids
from stage1.model.token_batch import TokenBatch, check_prompts, packed_batch, padded_batch

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


# ---------------------------------------------------------------- from batches to terms


def token_batch(
    batch: ExampleBatch, answers: Sequence[list[int]], context: ObjectiveContext
) -> TokenBatch:
    """Return prompts followed by answers: a padded row per example, or one packed row.

    Raises ValueError for an empty batch or an empty prompt.
    """
    make = packed_batch if context.config.packed else padded_batch
    return make(batch.prompts, answers, context.lm.pad_token, context.lm.device)


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
