"""Greedy or sampled answers from token ids or embeddings, in batches that change no answer."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from stage1.model import engine
from stage1.model.greedy import (
    Embed,
    by_prefix,
    can_share_prefixes,
    first_end,
    greedy_ids,
    left_pad,
)
from stage1.model.language_model import FrozenLM


class Answer(NamedTuple):
    """A generated answer: text, token ids without the end token, and whether that was generated."""

    text: str
    ids: list[int]
    ended: bool


def by_length(prompts: Sequence[list[int]], batch_size: int) -> list[list[int]]:
    """Return prompt indices in batches of similar length, the longest (and largest) first."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@engine.uncompiled
@torch.inference_mode()
def generate_ids(
    lm: FrozenLM,
    prompts: Sequence[list[int]],
    embed: Embed | None,
    max_new_tokens: int,
    temperature: float = 0.0,
) -> list[list[int]]:
    """Return one batch's new token ids: up to its first end token, included, or `max_new_tokens`.

    `embed` maps token ids to input embeddings; None passes the ids themselves. Temperature 0 is
    greedy; above it, tokens are drawn from the whole distribution with torch's global generator.
    """
    ids, mask = (tensor.to(lm.device) for tensor in left_pad(prompts, lm.pad_token))
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=lm.end_tokens, pad_token_id=lm.pad_token
    )
    settings.do_sample = temperature > 0
    if settings.do_sample:
        settings.temperature, settings.top_k = temperature, 0
    inputs = (
        {"input_ids": ids} if embed is None else {"inputs_embeds": embed(ids).to(lm.model.dtype)}
    )
    output = lm.model.generate(  # type: ignore[operator]
        **inputs, attention_mask=mask.long(), generation_config=settings
    )
    # Given embeddings, transformers returns the new tokens only.
    new = output[:, ids.shape[1] :] if embed is None else output
    return [row[: first_end(lm, row) + 1] for row in new.tolist()]


def read_answer(lm: FrozenLM, row: list[int]) -> Answer:
    """Decode the tokens before the first end token."""
    stop = first_end(lm, row)
    text = lm.tokenizer.decode(row[:stop], skip_special_tokens=True)
    assert isinstance(text, str)
    return Answer(text.strip(), row[:stop], stop < len(row))


def generate(
    lm: FrozenLM,
    prompts: Sequence[list[int]],
    embed: Embed | None = None,
    max_new_tokens: int = 20,
    batch_size: int = 64,
    description: str = "",
) -> list[Answer]:
    """Return greedy answers in the order of the prompts.

    `embed` works token by token, so prefixes that prompts share are read once if the model allows.
    A description labels a progress bar over the batches; without one, none is shown.
    """
    rows = generate_rows(lm, prompts, embed, max_new_tokens, batch_size, description)
    return [read_answer(lm, row) for row in rows]


def generate_rows(
    lm: FrozenLM,
    prompts: Sequence[list[int]],
    embed: Embed | None = None,
    max_new_tokens: int = 20,
    batch_size: int = 64,
    description: str = "",
) -> list[list[int]]:
    """Return the token ids of `generate`'s answers, each with its end token if it has one."""
    decode = greedy_ids if can_share_prefixes(lm) else generate_ids
    rows: dict[int, list[int]] = {}
    batches = by_prefix(prompts, batch_size)
    for batch in tqdm(batches, desc=description, file=sys.stdout, disable=not description):
        new = decode(lm, [prompts[i] for i in batch], embed, max_new_tokens)
        rows |= zip(batch, new, strict=True)
    return [rows[i] for i in range(len(prompts))]
