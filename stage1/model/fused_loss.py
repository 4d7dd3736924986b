"""Cross-entropy and KL divergence straight from hidden states, a chunk of positions at a time.

The logits of a whole batch of prompts take gigabytes at a vocabulary of 128,256. Here each chunk's logits are turned
into the loss and its gradient at the hidden states at once and forgotten: what is kept for the backward pass has the
size of the hidden states (the idea of Liger-Kernel's fused linear cross-entropy; Hsu et al., 2024).
"""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

CHUNK = 1_024  # positions whose logits exist at a time

Piece = tuple[Float[Tensor, ""], Float[Tensor, "N V"]]
"""A loss summed over some positions, and its gradient at their logits."""


def ce_piece(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> Piece:
    gradient = logits.softmax(-1)
    gradient[torch.arange(len(targets), device=targets.device), targets] -= 1
    return cross_entropy(logits, targets, reduction="sum"), gradient


def kl_piece(logits: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"]) -> Piece:
    p, q = teacher.log_softmax(-1), logits.log_softmax(-1)
    return kl_div(q, p, reduction="sum", log_target=True), q.exp() - p.exp()


class _Mean(torch.autograd.Function):
    """Mean over the positions of a loss that `piece` knows; its gradient is computed in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, head, piece, other):
        total, gradient = hidden.new_zeros((), dtype=torch.float32), torch.empty_like(hidden)
        for rows in torch.arange(len(hidden), device=hidden.device).split(CHUNK):
            loss, at_logits = piece(head(hidden[rows]).float(), other(rows))
            total += loss
            if ctx.needs_input_grad[0]:
                gradient[rows] = (at_logits / len(hidden)).to(hidden.dtype) @ head.weight
        ctx.save_for_backward(gradient)
        return total / len(hidden)

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return (upstream * gradient).to(gradient.dtype), None, None, None


@cache
def compiled(piece: Callable) -> Callable:
    return torch.compile(piece, dynamic=True)


def mean_cross_entropy(
    hidden: Float[Tensor, "N D"], head: nn.Linear, targets: Int[Tensor, " N"], compile: bool = False
) -> Float[Tensor, ""]:
    """Cross-entropy in nats per position, of the logits that the head gives in float32; the head is not trained."""
    return _Mean.apply(
        hidden, head, compiled(ce_piece) if compile else ce_piece, targets.__getitem__
    )


def mean_kl(
    hidden: Float[Tensor, "N D"],
    head: nn.Linear,
    teacher: Float[Tensor, "N D"],
    compile: bool = False,
) -> Float[Tensor, ""]:
    """KL divergence in nats per position, from the distributions that the head gives to the teacher's hidden states:
    sum of p log(p / q) over the vocabulary."""
    piece = compiled(kl_piece) if compile else kl_piece
    return _Mean.apply(hidden, head, piece, lambda rows: head(teacher[rows]).float())
