"""How the frozen model's pass is made fast and small: packed attention, compiled layers, recomputed activations, fp8.

Nothing here changes what is computed but for rounding, and fp8 by more than that. Everything works on any
transformers model whose decoder is a list `layers`, as Llama's is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from stage1.config import StudyConfig

ATTENTION = "packed_or_padded"
FP8 = torch.float8_e4m3fn
FP8_LARGEST = torch.finfo(FP8).max


@cache
def fused_flex_attention():
    """Flex attention compiled to one kernel; outside of a compiled layer it would materialise all scores."""
    return torch.compile(flex_attention)


def attention(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
    """Flex attention for the block mask of packed rows, and PyTorch's own attention for everything else."""
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    output = fused_flex_attention()(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's decoder layers. Raises ValueError for an architecture that has none under that name."""
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"language_model: {type(model).__name__} has no list of decoder layers; expected packed, compiled, "
            "recomputed and matmul at their defaults for it"
        )
    return layers


def apply(model: PreTrainedModel, config: StudyConfig) -> None:
    """Set the model up as the config asks, in place."""
    if config.matmul == "fp8":
        to_fp8(decoder_layers(model))
    if config.recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compiled:
        for layer in decoder_layers(model):
            layer.compile(dynamic=True)


@contextmanager
def recomputing(model: PreTrainedModel, share: float) -> Iterator[None]:
    """Within, the first `share` of the decoder layers keep no activations: transformers checkpoints a layer in training
    mode, which for these layers means nothing else, for their parts stay in evaluation mode."""
    layers = decoder_layers(model) if share else []
    chosen = layers[: round(share * len(layers))]
    try:
        for layer in chosen:
            layer.training = True
        yield
    finally:
        for layer in chosen:
            layer.training = False


def quantised(x: Tensor) -> tuple[Tensor, Float[Tensor, "M 1"]]:
    """Rows in fp8 (e4m3) and the scale of each: the row's largest magnitude takes fp8's largest value."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(1.0e-12) / FP8_LARGEST
    return (x.float() / scale).to(FP8), scale


def scaled_matmul(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Float[Tensor, "M N"]:
    """(a * a_scale) @ (b * b_scale).T of fp8 rows a [M, K] and b [N, K]; in float32 where there are no fp8 units."""
    if a.is_cuda:
        return torch._scaled_mm(a, b.T, scale_a=a_scale, scale_b=b_scale.T, out_dtype=dtype, use_fast_accum=True)
    return ((a.float() @ b.float().T) * a_scale * b_scale.T).to(dtype)


@torch.compiler.allow_in_graph  # dynamo loses track of an input that several products share; AOT autograd does not
class _Fp8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows, row_scale, columns, column_scale):
        ctx.save_for_backward(columns, column_scale)
        return scaled_matmul(*quantised(x), rows, row_scale, x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        columns, column_scale = ctx.saved_tensors
        return scaled_matmul(*quantised(gradient), columns, column_scale, gradient.dtype), None, None, None, None


class Fp8Linear(nn.Module):
    """A frozen linear layer in fp8, with a scale per row of every factor: outputs scale the forward product, inputs the
    backward one, so the weight is kept in both directions. Together they take what the bfloat16 weight took."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        for name, weight in (("row", linear.weight.detach()), ("column", linear.weight.detach().T.contiguous())):
            values, scale = quantised(weight)
            self.register_buffer(f"{name}s", values)
            self.register_buffer(f"{name}_scale", scale)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        flat = x.reshape(-1, x.shape[-1])
        y = _Fp8Product.apply(flat, self.rows, self.row_scale, self.columns, self.column_scale)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def to_fp8(layers: nn.ModuleList) -> None:
    """Put `Fp8Linear` in the place of every linear layer in them."""
    for module in list(layers.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Fp8Linear(child))
