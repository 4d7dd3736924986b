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
ROOM = 1 << 27  # logits that may exist at a time, where a small vocabulary allows longer chunks

LossAndGradient = tuple[Tensor, Float[Tensor, "N V"]]
"""A loss, summed over positions or of each, and its gradient at their logits."""


def ce_and_gradient(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], reduction: str = "sum"
) -> LossAndGradient:
    gradient = logits.softmax(-1)
    gradient[torch.arange(len(targets), device=targets.device), targets] -= 1
    return cross_entropy(logits, targets, reduction=reduction), gradient


def kl_and_gradient(
    logits: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"], reduction: str = "sum"
) -> LossAndGradient:
    p, q = teacher.log_softmax(-1), logits.log_softmax(-1)
    loss = kl_div(q, p, reduction=reduction, log_target=True)
    return loss if reduction == "sum" else loss.sum(-1), q.exp() - p.exp()


class _ChunkedMean(torch.autograd.Function):
    """Mean loss per position; its gradient is computed in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, head, loss_and_gradient, target_of):
        total, gradient = hidden.new_zeros((), dtype=torch.float32), torch.empty_like(hidden)
        for rows in torch.arange(len(hidden), device=hidden.device).split(CHUNK):
            loss, at_logits = loss_and_gradient(head(hidden[rows]).float(), target_of(rows))
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
    loss = compiled(ce_and_gradient) if compile else ce_and_gradient
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
    loss = compiled(kl_and_gradient) if compile else kl_and_gradient
    return _ChunkedMean.apply(hidden, head, loss, lambda rows: head(teacher[rows]).float())


class _ChunkedSum(torch.autograd.Function):
    """Weighted sum of the losses of all positions, and the losses themselves."""

    @staticmethod
    def forward(ctx, hidden, head, loss, target_of, weights):
        losses, gradient = weights.new_empty(len(hidden)), torch.empty_like(hidden)
        size = max(CHUNK, ROOM // head.out_features)
        for rows in torch.arange(len(hidden), device=hidden.device).split(size):
            losses[rows], at_logits = loss(head(hidden[rows]).float(), target_of(rows), "none")
            gradient[rows] = (at_logits * weights[rows, None]).to(hidden.dtype) @ head.weight
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(losses)
        return weights @ losses, losses

    @staticmethod
    def backward(ctx, upstream, _):
        (gradient,) = ctx.saved_tensors
        return (upstream * gradient).to(gradient.dtype), None, None, None, None


def weighted_cross_entropy(
    hidden: Float[Tensor, "N D"],
    head: nn.Linear,
    targets: Int[Tensor, " N"],
    weights: Float[Tensor, " N"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
    """Return the weighted sum of all positions' cross-entropies, and each, without gradient."""
    return _ChunkedSum.apply(hidden, head, ce_and_gradient, targets.__getitem__, weights)


def weighted_kl(
    hidden: Float[Tensor, "N D"],
    head: nn.Linear,
    teacher: Float[Tensor, "N D"],
    weights: Float[Tensor, " N"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
    """Return the same for KL(teacher || student)."""

    def logits_of(rows: Int[Tensor, " M"]) -> Float[Tensor, "M V"]:
        return head(teacher[rows]).float()

    return _ChunkedSum.apply(hidden, head, kl_and_gradient, logits_of, weights)
