"""Muon for the layers' matrices, AdamW for everything else, and their schedule."""

from collections.abc import Callable, Iterable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stage1.pretrain.transformer import Transformer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
EPSILON = 1.0e-7


def orthogonalised(matrices: Float[Tensor, "*B M N"]) -> Float[Tensor, "*B M N"]:
    """Return matrices of the same singular vectors and singular values near 1, in bfloat16.

    Five steps of a quintic Newton-Schulz iteration (Jordan et al., 2024, "Muon").
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / x.float().norm(dim=(-2, -1), keepdim=True).clamp_min(EPSILON).bfloat16()
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


def muon_update(
    weight: Tensor, gradient: Tensor, average: Tensor, rate: Tensor, momentum: float, decay: float
) -> None:
    """Update weights [..., M, N] and the average of their gradients in place."""
    average.lerp_(gradient, 1 - momentum)
    update = orthogonalised(gradient.lerp(average, momentum))  # Nesterov's momentum
    # This factor gives updates the size of AdamW's, so both share rates (Liu et al., 2025).
    scale = 0.2 * max(weight.shape[-2:]) ** 0.5
    weight.mul_(1 - rate * decay).sub_(rate * scale * update)


@cache
def compiled_update() -> Callable[..., None]:
    return torch.compile(muon_update, dynamic=False)


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, for stacks of matrices.

    PyTorch's takes one matrix after another: 15 small products for each, a thousand launches a step
    for ten layers. A stack of matrices takes 15 batched ones.
    """

    def __init__(
        self,
        stacks: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(stacks, defaults)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if "average" not in state:
                    state["average"] = torch.zeros_like(weight)
                # As a tensor, a new rate is no new constant to compile for.
                rate = torch.tensor(group["lr"], dtype=torch.float32)
                rate = rate.to(weight.device, non_blocking=True)
                function = compiled_update() if weight.is_cuda else muon_update
                rules = group["momentum"], group["weight_decay"]
                function(weight, weight.grad, state["average"], rate, *rules)


def optimizers(
    model: Transformer, muon_rate: float, adam_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Return Muon of the layers' matrices, and AdamW of embeddings, head and norms."""
    is_matrix = {id(matrix) for matrix in model.matrices}
    others = [p for p in model.parameters() if id(p) not in is_matrix]
    fused = others[0].is_cuda
    adam = torch.optim.AdamW(
        others, lr=adam_rate, betas=(0.9, 0.95), eps=1.0e-10, weight_decay=0.0, fused=fused
    )
    muon = Muon(model.matrices, lr=muon_rate, weight_decay=weight_decay)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def set_rates(optimizers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Set every learning rate to a share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak"]
