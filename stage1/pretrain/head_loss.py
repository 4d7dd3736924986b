"""Cross-entropy straight from hidden states, with gradients for the states and for the head.

The logits of a batch of 131,072 tokens and 16,384 entries would take gigabytes and several passes
through memory. Here each chunk's logits give its losses and gradients at once and are freed (the
idea of Liger-Kernel's fused linear cross-entropy; Hsu et al., 2024). `stage1.model.fused_loss` does
the same for a frozen head.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK_LOGITS = 1 << 28
"""Logits that exist at a time: half a gigabyte in bfloat16."""


class ChunkResult(NamedTuple):
    """Losses and hits of a chunk of positions, and gradients of its weighted sum of losses."""

    losses: Float[Tensor, " M"]
    right: Bool[Tensor, " M"]
    at_hidden: Float[Tensor, "M D"]
    at_head: Float[Tensor, "V D"]


def chunk_gradients(
    hidden: Float[Tensor, "M D"],
    head: Float[Tensor, "V D"],
    targets: Int[Tensor, " M"],
    weights: Float[Tensor, " M"],
) -> ChunkResult:
    """Return cross-entropies in nats, and gradients in the precision of the hidden states."""
    logits = hidden @ head.T
    scores = logits.float()
    target = scores.gather(1, targets[:, None])
    top = scores.amax(1, keepdim=True)
    total = (scores - top).exp().sum(1, keepdim=True)
    losses = total.log() + top - target
    probability = (scores - top).exp() / total
    entries = torch.arange(len(head), device=head.device)
    is_target = entries[None, :] == targets[:, None]
    at_logits = ((probability - is_target.float()) * weights[:, None]).to(hidden.dtype)
    right = target[:, 0] >= top[:, 0]
    return ChunkResult(losses[:, 0], right, at_logits @ head, at_logits.T @ hidden)


@cache
def compiled_chunk_gradients() -> Callable[..., ChunkResult]:
    return torch.compile(chunk_gradients, dynamic=False)


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, targets, weights):
        function = compiled_chunk_gradients() if hidden.is_cuda else chunk_gradients
        cast, at_head = head.to(hidden.dtype), torch.zeros_like(head)
        size = max(1, min(len(hidden), CHUNK_LOGITS // len(head)))
        parts = []
        for rows in zip(*(x.split(size) for x in (hidden, targets, weights)), strict=True):
            losses, right, at_hidden, at_chunk_head = function(rows[0], cast, *rows[1:])
            at_head += at_chunk_head
            parts.append((losses, right, at_hidden))
        losses, right, at_hidden = map(torch.cat, zip(*parts, strict=True))
        ctx.save_for_backward(at_hidden, at_head)
        ctx.mark_non_differentiable(losses, right)
        return weights @ losses, losses, right

    @staticmethod
    def backward(ctx, upstream, *_):
        at_hidden, at_head = ctx.saved_tensors
        return upstream.to(at_hidden.dtype) * at_hidden, upstream * at_head, None, None


def weighted_cross_entropy(
    hidden: Float[Tensor, "N D"],
    head: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    weights: Float[Tensor, " N"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Return the weighted sum of cross-entropies, and without gradient each one, and each hit.

    A hit is a target with the highest logit. `head` keeps its own precision and gets its gradient
    in it; products are computed in that of the hidden states.
    """
    return _WeightedSum.apply(hidden, head, targets, weights)
