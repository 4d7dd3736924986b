"""Prompts and their answers as rows of tokens: one padded row per example, or all of them packed into a single one.

A packed row wastes no padding. Its examples are documents: each attends to itself alone and counts its positions from
zero, so the language model computes for every token what it would compute in a row of its own.
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
    """Token ids and what they are; padding comes last in a row."""

    ids: Int[Tensor, "B T"]
    is_prompt: Bool[Tensor, "B T"]
    is_answer: Bool[Tensor, "B T"]
    starts: Int[Tensor, "1 T"] | None = None
    """In a packed row, where each token's example starts; None where every row is one example."""

    @property
    def positions(self) -> Int[Tensor, "*B T"]:
        """The position of each token in its own example, from 0."""
        index = torch.arange(self.ids.shape[1], device=self.ids.device)
        return index if self.starts is None else index - self.starts

    def predicted(self, supervised: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """The supervised tokens that some position predicts: all but the first token of an example."""
        return supervised & (self.positions > 0)

    def predictors(self, supervised: Bool[Tensor, "B T"], name: str) -> Bool[Tensor, "B T"]:
        """The positions whose logits predict the supervised tokens, each one before its token.

        `name` is the objective's, for the ValueError where there are none.
        """
        followed = self.predicted(supervised)[:, 1:]
        if not followed.any():
            raise ValueError(
                f"objective={name!r}: the batch has no supervised token; expected at least one"
            )
        return torch.cat([followed, torch.zeros_like(followed[:, :1])], dim=1)


def check_prompts(prompts: Sequence[list[int]]) -> None:
    if not prompts or not all(prompts):
        raise ValueError("batch: expected at least one prompt, and at least one token in each")


def padded_batch(
    prompts: Sequence[list[int]], answers: Sequence[list[int]], pad: int, device: torch.device
) -> TokenBatch:
    """One row per example, padded to the longest, with masks made from lengths.

    Raises ValueError for an empty batch or an empty prompt.
    """
    check_prompts(prompts)
    begin = torch.tensor([len(prompt) for prompt in prompts], device=device)[:, None]
    end = begin + torch.tensor([len(answer) for answer in answers], device=device)[:, None]
    longest = int(end.max())
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in whole], device=device)
    place = torch.arange(longest, device=device)
    return TokenBatch(ids, place < begin, (place >= begin) & (place < end))


def packed_batch(
    prompts: Sequence[list[int]], answers: Sequence[list[int]], pad: int, device: torch.device
) -> TokenBatch:
    """All examples one after the other in a single row, padded to a multiple of `BLOCK`; the padding is an example of
    its own. Raises ValueError for an empty batch or an empty prompt."""
    check_prompts(prompts)
    examples = list(zip(prompts, answers, strict=True))
    sides = torch.tensor([[len(prompt), len(answer)] for prompt, answer in examples])
    lengths, tokens = sides.sum(1), int(sides.sum())
    padding = -tokens % BLOCK
    ids = torch.tensor(
        [token for pair in examples for side in pair for token in side] + [pad] * padding
    )
    kind = tensor_pad(
        torch.tensor([0, 1]).repeat(len(examples)).repeat_interleave(sides.flatten()),
        (0, padding),
        value=2,
    )
    starts = tensor_pad(
        (lengths.cumsum(0) - lengths).repeat_interleave(lengths), (0, padding), value=tokens
    )
    ids, kind, starts = (tensor[None].to(device) for tensor in (ids, kind, starts))
    return TokenBatch(ids, kind == 0, kind == 1, starts)


def dense_mask(starts: Int[Tensor, "1 T"]) -> Bool[Tensor, "1 1 T T"]:
    """What each token of a packed row reads: its own example up to itself."""
    place = torch.arange(starts.shape[1], device=starts.device)
    return ((place <= place[:, None]) & (place >= starts[0, :, None]))[None, None]


def block_mask(starts: Int[Tensor, "1 T"]) -> BlockMask:
    """The same for flex attention. A tile of `BLOCK` queries needs the tiles from the beginning of its first token's
    example up to itself, so the mask is made without looking at T x T pairs."""
    first, length = (starts[0, ::BLOCK] // BLOCK).to(torch.int32), starts.shape[1]
    tile = torch.arange(len(first), dtype=torch.int32, device=starts.device)
    needed = (first[:, None] + tile).clamp(max=len(tile) - 1)

    def reads(batch, head, query, key):
        return (key <= query) & (key >= starts[0, query])

    return BlockMask.from_kv_blocks(
        (tile - first + 1)[None, None],
        needed[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=reads,
        seq_lengths=(length, length),
    )
