"""Faults of generation: padding, masks, and what is read of the generated ids."""

import torch
from torch import Tensor

from stage1.faults.switch import replaces
from stage1.model.generation import Answer, read_answer
from stage1.names import OBJECTIVES

LEFT_PAD = "stage1.model.greedy:left_pad"
TRAINED = (*OBJECTIVES, "selection")
"""Conditions that read an adapter's embeddings."""


@replaces("mask_of_ones", LEFT_PAD)
def of_ones(original):
    def left_pad(prompts, pad) -> tuple[Tensor, Tensor]:
        ids, mask = original(prompts, pad)
        return ids, torch.ones_like(mask)

    return left_pad


@replaces("mask_of_ones", "stage1.model.language_model:FrozenLM.hidden")
def without_a_mask(original):
    def hidden(lm, embeddings, positions, mask=None, starts=None) -> Tensor:
        return original(lm, embeddings, positions, None, starts)

    return hidden


@replaces("right_padded_generation", LEFT_PAD)
def on_the_right(original):
    def right_pad(prompts, pad) -> tuple[Tensor, Tensor]:
        ids, mask = original([prompt[::-1] for prompt in prompts], pad)
        return ids.flip(1), mask.flip(1)

    return right_pad


@replaces("slice_of_generated_ids", "stage1.model.generation:generate")
def cut_by_the_prompt(original):
    def generate(lm, prompts, embed=None, *arguments, **options) -> list[Answer]:
        answers = original(lm, prompts, embed, *arguments, **options)
        if embed is None:  # token ids come back with their prompt, which is cut elsewhere
            return answers
        pairs = zip(prompts, answers, strict=True)
        return [read_answer(lm, answer.ids[len(prompt) :]) for prompt, answer in pairs]

    return generate


def at_norm_of(original: Tensor, embeddings: Tensor) -> Tensor:
    """Return the embeddings [*B, D], each rescaled to the norm of the original one."""
    size = original.norm(dim=-1, keepdim=True) / embeddings.norm(dim=-1, keepdim=True)
    return embeddings * size.nan_to_num(0.0)


@replaces("oracle_norm", "stage1.loss_parts:input_embeddings")
def trained_at_their_norm(original):
    def input_embeddings(adapter, tokens, context) -> Tensor:
        embeddings = original(adapter, tokens, context)
        return at_norm_of(context.lm.embed(tokens.ids), embeddings)

    return input_embeddings


@replaces("oracle_norm", "stage1.evaluation.conditions:evaluate")
def tested_at_their_norm(original):
    def evaluate(lm, encoded, condition, table, config, description=None):
        if table is not None and condition in TRAINED:
            table = at_norm_of(lm.embedding_table, table)
        return original(lm, encoded, condition, table, config, description)

    return evaluate
