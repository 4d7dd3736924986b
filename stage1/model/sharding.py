"""Spread a language model over GPUs: decoder layers in equal blocks, all else on the first one.

Embeddings, final norm and head share a GPU with the adapter, so a loss needs no other device. Every
layer copies its inputs to its own GPU, outside of what `torch.compile` compiles.
"""

from collections.abc import Sequence
from functools import cache

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stage1.model import engine
from stage1.model.token_batch import block_mask


def devices() -> list[torch.device]:
    """Return all visible GPUs."""
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def device_map(source: str, over: Sequence[torch.device]) -> dict[str, torch.device]:
    """Return the device of each module of a folder's or the hub's model, without its weights.

    Raises ValueError for a model without a list of decoder layers.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    layers, chosen = engine.decoder_layers(model), {}
    within = next(name for name, module in model.named_modules() if module is layers)
    for name in dict(model.named_modules()):
        parent = name.rpartition(".")[0]
        if parent == within:
            chosen[name] = over[int(name.rpartition(".")[2]) * len(over) // len(layers)]
        elif is_above(parent, within) and not is_above(name, within):
            chosen[name] = over[0]
    return chosen


def is_above(name: str, within: str) -> bool:
    """Return whether a module is the list of layers or holds it."""
    return not name or f"{within}.".startswith(f"{name}.")


def moved(value, device: torch.device):
    """Return an input of a layer on its device: tensors, also in tuples, and flex masks."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(moved(part, device) for part in value)
    if isinstance(value, BlockMask):
        return block_mask(value.starts.to(device))  # type: ignore[attr-defined]
    return value


@cache
def placed(base: type) -> type:
    """Subclass a module so that it copies its inputs to the device of its parameters."""

    class PlacedModule(base):  # type: ignore[valid-type, misc]
        def __call__(self, *inputs, **named):
            device = next(self.parameters()).device
            named = {name: moved(value, device) for name, value in named.items()}
            return super().__call__(*moved(inputs, device), **named)

    return PlacedModule


def spread(model: PreTrainedModel, over: Sequence[torch.device]) -> None:
    """Move the decoder layers to their devices, in place; the rest is on the first one already."""
    remove_hook_from_module(model, recurse=True)  # from_pretrained's own, one per linear layer
    layers = engine.decoder_layers(model)
    for index, layer in enumerate(layers):
        layer.to(over[index * len(over) // len(layers)])
        place(layer)
    for module in model.base_model.children():  # the norm reads what the last layer wrote
        if module is not layers and any(True for _ in module.parameters()):
            place(module)


def place(module: nn.Module) -> None:
    module.__class__ = placed(type(module))  # type: ignore[arg-type, assignment]
