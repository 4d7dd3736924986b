"""Cross-entropy and KL divergence straight from hidden states, a chunk of positions at a time.

The logits of a whole batch of prompts take gigabytes at a vocabulary of 128,256. Here each chunk's
logits give its loss and the gradient at its hidden states at once, and are freed: the backward pass
stores no more than the size of the hidden states (the idea of Liger-Kernel's fused linear
cross-entropy; Hsu et al., 2024).
"""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

CHUNK = 1_024  # positions whose logits exist at a time

LossAndGradient = tuple[Float[Tensor, ""], Float[Tensor, "N V"]]
"""A loss summed over positions, and its gradient at their logits."""


def summed_ce(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> LossAndGradient:
    gradient = logits.softmax(-1)
    gradient[torch.arange(len(targets), device=targets.device), targets] -= 1
    return cross_entropy(logits, targets, reduction="sum"), gradient


def summed_kl(logits: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"]) -> LossAndGradient:
    p, q = teacher.log_softmax(-1), logits.log_softmax(-1)
    return kl_div(q, p, reduction="sum", log_target=True), q.exp() - p.exp()


class _ChunkedMean(torch.autograd.Function):
    """Mean loss per position; its gradient is computed in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, head, summed_loss, target_of):
        total, gradient = hidden.new_zeros((), dtype=torch.float32), torch.empty_like(hidden)
        for rows in torch.arange(len(hidden), device=hidden.device).split(CHUNK):
            loss, at_logits = summed_loss(head(hidden[rows]).float(), target_of(rows))
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
def compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=True)


def mean_cross_entropy(
    hidden: Float[Tensor, "N D"], head: nn.Linear, targets: Int[Tensor, " N"], compile: bool = False
) -> Float[Tensor, ""]:
    """Return cross-entropy in nats per position, from float32 logits; the head gets no gradient."""
    loss = compiled(summed_ce) if compile else summed_ce
    return _ChunkedMean.apply(hidden, head, loss, targets.__getitem__)


def mean_kl(
    hidden: Float[Tensor, "N D"],
    head: nn.Linear,
    teacher: Float[Tensor, "N D"],
    compile: bool = False,
) -> Float[Tensor, ""]:
    """Return KL(teacher || student) in nats per position: sum of p log(p / q) over the vocabulary.

    Both distributions are the head's, on the teacher's and the student's hidden states.
    """
    loss = compiled(summed_kl) if compile else summed_kl
    return _ChunkedMean.apply(hidden, head, loss, lambda rows: head(teacher[rows]).float())
