"""Prompts and answers as batches of tokens: one padded row per example, or all packed into one row.

A packed row wastes no padding. Each example attends to itself alone and counts its positions from
0, so the language model computes what it would compute in a row per example.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad as tensor_pad

BLOCK = 128
"""Packed rows are padded to a multiple of this many tokens, the tile of flex attention."""


class TokenBatch(NamedTuple):
    """Token ids and their roles; padding comes last in a row."""

    ids: Int[Tensor, "B T"]
    is_prompt: Bool[Tensor, "B T"]
    is_answer: Bool[Tensor, "B T"]
    starts: Int[Tensor, "1 T"] | None = None
    """In a packed row, where each token's example starts; None if every row is one example."""

    @property
    def positions(self) -> Int[Tensor, "*B T"]:
        """The position of each token in its example, from 0."""
        index = torch.arange(self.ids.shape[1], device=self.ids.device)
        return index if self.starts is None else index - self.starts

    def predicted(self, supervised: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Mark the supervised tokens that have a predictor: all but the first of an example."""
        return supervised & (self.positions > 0)

    def predictors(self, supervised: Bool[Tensor, "B T"], name: str) -> Bool[Tensor, "B T"]:
        """Mark the positions whose logits predict the supervised tokens, one before each token.

        Raises ValueError with the objective's `name` if there are none.
        """
        shifted = self.predicted(supervised)[:, 1:]
        if not shifted.any():
            raise ValueError(
                f"objective={name!r}: the batch has no supervised token; expected at least one"
            )
        return torch.cat([shifted, torch.zeros_like(shifted[:, :1])], dim=1)


def check_prompts(prompts: Sequence[list[int]]) -> None:
    if not prompts or not all(prompts):
        raise ValueError("batch: expected at least one prompt, and at least one token in each")


def padded_batch(
    prompts: Sequence[list[int]], answers: Sequence[list[int]], pad: int, device: torch.device
) -> TokenBatch:
    """Return one row per example, padded to the longest, with masks made from lengths.

    Raises ValueError for an empty batch or an empty prompt.
    """
    check_prompts(prompts)
    begin = torch.tensor([len(prompt) for prompt in prompts], device=device)[:, None]
    end = begin + torch.tensor([len(answer) for answer in answers], device=device)[:, None]
    longest = int(end.max())
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in whole], device=device)
    index = torch.arange(longest, device=device)
    return TokenBatch(ids, index < begin, (index >= begin) & (index < end))


def packed_batch(
    prompts: Sequence[list[int]], answers: Sequence[list[int]], pad: int, device: torch.device
) -> TokenBatch:
    """Return all examples in a single row, padded to a multiple of `BLOCK`.

    The padding is an example of its own. Raises ValueError for an empty batch or an empty prompt.
    """
    check_prompts(prompts)
    parts = [part for pair in zip(prompts, answers, strict=True) for part in pair]
    lengths = torch.tensor([len(part) for part in parts])
    sizes, size = lengths.view(-1, 2).sum(1), int(lengths.sum())
    padding = -size % BLOCK
    ids = torch.tensor([token for part in parts for token in part] + [pad] * padding)
    roles = torch.tensor([0, 1]).repeat(len(prompts)).repeat_interleave(lengths)
    roles = tensor_pad(roles, (0, padding), value=2)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    starts = tensor_pad(starts, (0, padding), value=size)
    ids, roles, starts = (tensor[None].to(device) for tensor in (ids, roles, starts))
    return TokenBatch(ids, roles == 0, roles == 1, starts)


def dense_mask(starts: Int[Tensor, "1 T"]) -> Bool[Tensor, "1 1 T T"]:
    """Return the attention mask of a packed row: causal within each token's own example."""
    index = torch.arange(starts.shape[1], device=starts.device)
    return ((index <= index[:, None]) & (index >= starts[0, :, None]))[None, None]


def block_mask(starts: Int[Tensor, "1 T"]) -> BlockMask:
    """Return `dense_mask` for flex attention, made without looking at T x T pairs.

    A tile of `BLOCK` queries reads the tiles from its first token's example up to its own.
    """
    first, length = (starts[0, ::BLOCK] // BLOCK).to(torch.int32), starts.shape[1]
    tile = torch.arange(len(first), dtype=torch.int32, device=starts.device)
    read = (first[:, None] + tile).clamp(max=len(tile) - 1)

    def reads(batch, head, query, key):
        return (key <= query) & (key >= starts[0, query])

    mask = BlockMask.from_kv_blocks(
        (tile - first + 1)[None, None],
        read[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=reads,
        seq_lengths=(length, length),
    )
    mask.starts = starts  # type: ignore[attr-defined]  # to make it again on another device
    return mask
