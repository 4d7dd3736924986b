"""How the frozen model's pass is made fast and small: packed attention, compiled layers, recomputed activations, fp8.

Nothing here changes what is computed but for rounding, and fp8 by more than that. Everything works on any
transformers model whose decoder is a list `layers`, as Llama's is.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from stage1.config import StudyConfig
from stage1.model.token_batch import block_mask, dense_mask

ATTENTION = "packed_or_padded"
PRE_NORM = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
"""The parts of a decoder layer as Llama, Mistral and Qwen have it."""
FP8 = torch.float8_e4m3fn
FP8_LARGEST = torch.finfo(FP8).max


def uncompiled(function: Callable) -> Callable:
    """Decorates what passes through the layers in ever new shapes, and would wait for the compiler each time."""
    return torch.compiler.set_stance("force_eager")(function)


def packed_inputs(starts: Int[Tensor, "1 T"], dtype: torch.dtype) -> dict:
    """What the base model is given besides embeddings to read a packed row, from where each token's example starts.

    A dense mask on the CPU; on a GPU flash attention over ragged examples, or flex attention for what it does not take.
    """
    length = starts.shape[1]
    inputs = {"position_ids": torch.arange(length, device=starts.device) - starts}
    if not starts.is_cuda:
        return inputs | {"attention_mask": dense_mask(starts)}
    if dtype == torch.float32:
        return inputs | {"attention_mask": block_mask(starts)}
    edges = torch.cat([starts[0].unique_consecutive(), starts.new_tensor([length])])
    ragged = {"edges": edges.int(), "longest": int(edges.diff().max())}
    # transformers passes a mask of four dimensions on as it is, and makes one of T x T where there is none.
    return inputs | ragged | {"attention_mask": starts[None, None]}


@cache
def fused_flex_attention():
    """Flex attention compiled to one kernel; outside of a compiled layer it would materialise all scores."""
    return torch.compile(flex_attention)


@cache
def causal_arguments() -> dict:
    """How this version of torch is told that ragged attention is causal and that several heads share a key."""
    known = inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return causal | ({"enable_gqa": True} if "enable_gqa" in known else {})


def attention(
    module, query, key, value, attention_mask=None, scaling=None, edges=None, longest=None, **kwargs
):
    """Attention [B, T, H, d] as `packed_inputs` asks for it, and PyTorch's own for everything else."""
    if edges is not None:
        q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
        return varlen_attn(
            q, k, v, edges, edges, longest, longest, scale=scaling, **causal_arguments()
        )[None], None
    if isinstance(attention_mask, BlockMask):
        output = fused_flex_attention()(
            query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).contiguous(), None
    if query.is_cuda and query.shape[2] == 1:
        return next_token_attention(query, key, value, attention_mask, scaling), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )


def next_token_attention(
    query: Float[Tensor, "B H 1 d"],
    key: Float[Tensor, "B G S d"],
    value: Float[Tensor, "B G S d"],
    mask: Bool[Tensor, "B 1 1 S"] | None,
    scaling: float,
) -> Float[Tensor, "B 1 H d"]:
    """Attention of a single query per row, as each step of decoding has it. Its H / G heads that share a key are the
    rows of one product, so that keys and values are read once; others would repeat them for every head first."""
    B, H, _, d = query.shape
    scores = (query.view(B, key.shape[1], -1, d) @ key.transpose(2, 3)).float() * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1).to(value.dtype) @ value).reshape(B, 1, H, d)


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


@cache
def trimmed(base: type[nn.Module]) -> type[nn.Module]:
    """The class of a last decoder layer whose feed-forward part sees only the positions that the output head will read:
    `chosen` among B x T. Without them it is the layer it was."""

    class LastLayer(base):
        def forward(self, hidden_states, chosen=None, **kwargs):
            if chosen is None:
                return super().forward(hidden_states, **kwargs)
            attended, _ = self.self_attn(
                hidden_states=self.input_layernorm(hidden_states), **kwargs
            )
            read = (hidden_states + attended).flatten(0, 1)[None, chosen]
            return read + self.mlp(self.post_attention_layernorm(read))

    return LastLayer


def configure(model: PreTrainedModel, config: StudyConfig) -> None:
    """Set the model up as the config asks, in place. Raises ValueError for an architecture that does not allow it."""
    if config.packed or config.recomputed:
        decoder_layers(model)  # neither would be missed before the first step, or at all
    last = getattr(model.base_model, "layers", [None])[-1]
    if (
        config.trim_last_layer
        and last is not None
        and {name for name, _ in last.named_children()} == PRE_NORM
    ):
        last.__class__ = trimmed(
            type(last)
        )  # the layer keeps its parameters and gains another forward pass
    if config.matmul == "fp8":
        to_fp8(decoder_layers(model))
    if config.recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compiled:
        for layer in decoder_layers(model):
            layer.compile(dynamic=True)


@contextmanager
def tf32_beside_bfloat16(config: StudyConfig) -> Iterator[None]:
    """Within, float32 products on a GPU are taken in TF32, where the language model's own have fewer bits anyway."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if config.dtype == "bfloat16" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def activation_checkpointing(model: PreTrainedModel, share: float) -> Iterator[None]:
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


def scaled_matmul(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype
) -> Float[Tensor, "M N"]:
    """(a * a_scale) @ (b * b_scale).T of fp8 rows a [M, K] and b [N, K]; in float32 where there are no fp8 units."""
    if a.is_cuda:
        return torch._scaled_mm(
            a, b.T, scale_a=a_scale, scale_b=b_scale.T, out_dtype=dtype, use_fast_accum=True
        )
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
        return (
            scaled_matmul(*quantised(gradient), columns, column_scale, gradient.dtype),
            None,
            None,
            None,
            None,
        )


class Fp8Linear(nn.Module):
    """A frozen linear layer in fp8, with a scale per row of every factor: outputs scale the forward product, inputs the
    backward one, so the weight is kept in both directions. Together they take what the bfloat16 weight took."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        for name, weight in (
            ("row", linear.weight.detach()),
            ("column", linear.weight.detach().T.contiguous()),
        ):
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
