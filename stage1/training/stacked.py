"""Several adapters of one architecture trained as one, with their parameters stacked.

Every layer of all adapters is one batched product, and one optimizer moves the whole stack.
Gradients are clipped row by row: each adapter takes the step it would take alone, up to rounding.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from transformers import get_cosine_schedule_with_warmup

from stage1.baselines import Adapter
from stage1.config import StudyConfig

Stack = dict[str, Tensor]
"""Tensors by parameter name; the first dimension counts adapters."""


class StackedAdapters:
    """Adapters with one optimizer and schedule, sorted by peak rate and weight decay.

    `order[row]` is the place of a row's adapter in the given sequence. With `capturable`, a CUDA
    graph may hold the optimizer's step.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        configs: Sequence[StudyConfig],
        rates: Sequence[float],
        steps: int,
        capturable: bool = False,
    ):
        keys = [(rate, config.weight_decay) for rate, config in zip(rates, configs, strict=True)]
        self.order = sorted(range(len(adapters)), key=lambda i: keys[i])
        self.adapters = [adapters[i] for i in self.order]
        self.template = adapters[0].template()
        self.constants = stacked([adapter.constants() for adapter in self.adapters])
        self.device = next(adapters[0].parameters()).device
        norms = [configs[i].max_grad_norm for i in self.order]
        self.max_norms = torch.tensor(norms, device=self.device)
        self.blocks: list[dict[str, nn.Parameter]] = []
        groups = []
        for rate, decay in sorted(set(keys)):
            rows = [adapters[i] for i in self.order if keys[i] == (rate, decay)]
            stack = stacked([dict(adapter.named_parameters()) for adapter in rows])
            block = {name: nn.Parameter(tensor) for name, tensor in stack.items()}
            self.blocks.append(block)
            lr = torch.tensor(rate, device=self.device) if capturable else rate
            groups.append({"params": list(block.values()), "lr": lr, "weight_decay": decay})
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, fused=fused, capturable=capturable)
        warmup = round(configs[0].warmup * steps)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, warmup, steps)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for block in self.blocks for parameter in block.values()]

    @property
    def sizes(self) -> list[int]:
        """Adapters in each block."""
        return [len(next(iter(block.values()))) for block in self.blocks]

    def rates(self) -> list[float]:
        """Return every adapter's learning rate in the next step."""
        rates = zip(self.schedule.get_last_lr(), self.sizes, strict=True)
        return [float(rate) for rate, size in rates for _ in range(size)]

    def decode(self, compressed: Float[Tensor, "N K"]) -> Float[Tensor, "S N D"]:
        """Return the embeddings of the same rows of the codebook by every adapter."""
        names = self.blocks[0]
        stack = {name: torch.cat([block[name] for block in self.blocks]) for name in names}

        def decode(own: Stack, constants: Stack) -> Float[Tensor, "N D"]:
            return functional_call(self.template, (own, constants), (compressed,))

        return vmap(decode)(stack, self.constants)

    def step(self) -> Float[Tensor, " S"]:
        """Clip each adapter's gradient and take a step; return the norms before clipping."""
        norms = self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norms

    @torch.no_grad()
    def clip(self) -> Float[Tensor, " S"]:
        """Scale each adapter's gradient down to its `max_grad_norm`; return the norms before."""
        squares = []
        for block in self.blocks:
            gradients = [gradient_of(parameter) for parameter in block.values()]
            rows = [gradient.reshape(len(gradient), -1).square().sum(1) for gradient in gradients]
            squares.append(torch.stack(rows).sum(0))
        norms = torch.cat(squares).sqrt()
        scales = (self.max_norms / (norms + 1.0e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        for block, scale in zip(self.blocks, scales.split(self.sizes), strict=True):
            for parameter in block.values():
                gradient_of(parameter).mul_(scale.view(-1, *(1,) * (parameter.dim() - 1)))
        return norms

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the stack's rows into the adapters."""
        adapters = iter(self.adapters)
        for block, size in zip(self.blocks, self.sizes, strict=True):
            for row in range(size):
                for name, parameter in next(adapters).named_parameters():
                    parameter.copy_(block[name][row])


def gradient_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def stacked(tensors: Sequence[Stack]) -> Stack:
    """Return the adapters' tensors of each name in one, with adapters as the first dimension."""
    return {name: torch.stack([own[name].detach() for own in tensors]) for name in tensors[0]}


class Captured:
    """A step that a GPU replays from a CUDA graph after three ordinary calls.

    Small kernels then do not wait for Python. The function takes no argument; every call overwrites
    the tensor it returns. On a CPU it is just called.
    """

    def __init__(self, function: Callable[[], Tensor], device: torch.device):
        self.function, self.calls = function, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.side = torch.cuda.Stream() if device.type == "cuda" else None

    def __call__(self) -> Tensor:
        self.calls += 1
        if self.side is None:
            return self.function()
        if self.calls <= 3:
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                self.output = self.function()
            torch.cuda.current_stream().wait_stream(self.side)
            return self.output
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = self.function()
        self.graph.replay()
        return self.output
