"""Make the frozen model fast and small: packed attention, compilation, checkpointing, fp8.

All but fp8 leave results unchanged up to rounding. They need a decoder with a list of `layers`.
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
from stage1.fields import require
from stage1.model.token_batch import block_mask, dense_mask

ATTENTION = "packed_or_padded"
LLAMA_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
"""Submodules of a pre-norm decoder layer in Llama, Mistral and Qwen."""
VARIANTS = 64
"""Variants of the decoder layers that a process may compile. All layers of all models share one
function; gradients, trimming, masks, TF32 and batches of one row each double its variants. Beyond
torch's own limit, which is 8, the others would run eagerly."""
FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max


def uncompiled(function: Callable) -> Callable:
    """Run compiled layers eagerly in a function whose ever new shapes would all be recompiled."""
    return torch.compiler.set_stance("force_eager")(function)


def packed_inputs(starts: Int[Tensor, "1 T"], dtype: torch.dtype) -> dict:
    """Return positions and attention arguments for the base model to read a packed row.

    On a GPU, flash attention over ragged examples, or flex in float32. On a CPU, a dense mask.
    """
    length = starts.shape[1]
    inputs = {"position_ids": torch.arange(length, device=starts.device) - starts}
    if not starts.is_cuda:
        return inputs | {"attention_mask": dense_mask(starts)}
    if dtype == torch.float32:
        return inputs | {"attention_mask": block_mask(starts)}
    edges = torch.cat([starts[0].unique_consecutive(), starts.new_tensor([length])])
    ragged = {"edges": edges.int(), "longest": int(edges.diff().max())}
    # Without a mask, transformers would build one of T x T; it passes on any with four dimensions.
    return inputs | ragged | {"attention_mask": starts[None, None]}


@cache
def fused_flex_attention():
    """Return flex attention compiled to one kernel: run eagerly, it materialises all scores."""
    return torch.compile(flex_attention)


@cache
def varlen_options() -> dict:
    """Return this torch version's arguments for causal ragged attention with grouped keys."""
    parameters = inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}
    return causal | ({"enable_gqa": True} if "enable_gqa" in parameters else {})


def attention(
    module, query, key, value, attention_mask=None, scaling=None, edges=None, longest=None, **kwargs
):
    """Compute attention [B, T, H, d]: ragged or flex for packed rows on a GPU, else PyTorch's."""
    if edges is not None:
        q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
        options = varlen_options()
        output = varlen_attn(q, k, v, edges, edges, longest, longest, scale=scaling, **options)
        return output[None], None
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
    """Compute attention for one query per row, as in a decoding step.

    The H / G heads that share a key are rows of one product, which reads keys and values once.
    """
    B, H, _, d = query.shape
    scores = (query.view(B, key.shape[1], -1, d) @ key.transpose(2, 3)).float() * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1).to(value.dtype) @ value).reshape(B, 1, H, d)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers. Raises ValueError where `layers` is no list of modules."""
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"language_model: {type(model).__name__} has no list of decoder layers; expected "
            "packed, compiled, recomputed and matmul at their defaults for it"
        )
    return layers


@cache
def trimmed(base: type) -> type:
    """Subclass a decoder layer so that its MLP reads only the positions `kept`, indices into B x T.

    Called without `kept`, it computes what `base` does.
    """

    class TrimmedLayer(base):  # type: ignore[valid-type, misc]
        def forward(self, hidden_states, kept=None, **kwargs):
            if kept is None:
                return super().forward(hidden_states, **kwargs)
            attended, _ = self.self_attn(
                hidden_states=self.input_layernorm(hidden_states), **kwargs
            )
            read = (hidden_states + attended).flatten(0, 1)[None, kept]
            return read + self.mlp(self.post_attention_layernorm(read))

    return TrimmedLayer


def check_window(model: PreTrainedModel, config: StudyConfig) -> None:
    """Raise ValueError where attention slides: a packed row lets a token read its whole example."""
    window = getattr(model.config, "sliding_window", None)
    longest = config.max_prompt_tokens + max(config.max_answer_tokens, config.max_new_tokens)
    allowed = f"False where attention reads {window} tokens of an example of up to {longest}"
    require(window is None or longest <= window, "packed", config.packed, allowed)


def configure(model: PreTrainedModel, config: StudyConfig) -> None:
    """Apply the config's engine settings in place. Raises ValueError where the model lacks support.

    Only with `config.trim_last_layer`, the last decoder layer's class is swapped for `trimmed`, if
    the layer is built like Llama's. Its parameters stay; only its forward pass changes.
    """
    if config.packed or config.recomputed:
        decoder_layers(model)  # otherwise unsupported models fail at the first step, or never
    if config.packed:
        check_window(model, config)
    last = getattr(model.base_model, "layers", [nn.Identity()])[-1]
    if config.trim_last_layer and {name for name, _ in last.named_children()} == LLAMA_LAYER:
        last.__class__ = trimmed(type(last))  # type: ignore[arg-type]
    if config.matmul == "fp8":
        to_fp8(decoder_layers(model))
    if config.recomputed:
        # transformers before 5.23 has the second name alone; later versions deprecate it.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if config.compiled:
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, VARIANTS)
        for layer in decoder_layers(model):
            layer.compile(dynamic=True)


@contextmanager
def tf32(is_used: bool) -> Iterator[None]:
    """Use TF32 for the float32 products of a GPU, which rounds their factors to 10 bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if is_used else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def activation_checkpointing(model: PreTrainedModel, share: float) -> Iterator[None]:
    """Checkpoint the first `share` of the decoder layers.

    transformers checkpoints layers in training mode; the submodules stay in evaluation mode.
    """
    layers = decoder_layers(model) if share else nn.ModuleList()
    checkpointed = layers[: round(share * len(layers))]
    try:
        for layer in checkpointed:
            layer.training = True
        yield
    finally:
        for layer in checkpointed:
            layer.training = False


def quantised(x: Tensor) -> tuple[Tensor, Float[Tensor, "M 1"]]:
    """Return rows in fp8 (e4m3) and their scales, which map the largest magnitude to fp8's."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(1.0e-12) / FP8_MAX
    return (x.float() / scale).to(FP8), scale


def scaled_matmul(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype
) -> Float[Tensor, "M N"]:
    """Return (a * a_scale) @ (b * b_scale).T of fp8 rows [M, K] and [N, K]; in float32 on a CPU."""
    if a.is_cuda:
        return torch._scaled_mm(
            a, b.T, scale_a=a_scale, scale_b=b_scale.T, out_dtype=dtype, use_fast_accum=True
        )
    return ((a.float() @ b.float().T) * a_scale * b_scale.T).to(dtype)


@torch.compiler.allow_in_graph  # dynamo cannot trace an input shared by products; AOT autograd can
class _Fp8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows, row_scale, columns, column_scale):
        ctx.save_for_backward(columns, column_scale)
        return scaled_matmul(*quantised(x), rows, row_scale, x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        columns, column_scale = ctx.saved_tensors
        product = scaled_matmul(*quantised(gradient), columns, column_scale, gradient.dtype)
        return product, None, None, None, None


class Fp8Linear(nn.Module):
    """A frozen linear layer in fp8, with one scale per row of every factor.

    The weight is kept twice, scaled per output for the forward product and per input for the
    backward one. Together they take the memory of the bfloat16 weight.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach()
        for name, layout in (("row", weight), ("column", weight.T.contiguous())):
            values, scale = quantised(layout)
            self.register_buffer(f"{name}s", values)
            self.register_buffer(f"{name}_scale", scale)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        flat = x.reshape(-1, x.shape[-1])
        y = _Fp8Product.apply(flat, self.rows, self.row_scale, self.columns, self.column_scale)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def to_fp8(layers: nn.ModuleList) -> None:
    """Replace every linear layer within by an `Fp8Linear`."""
    for module in list(layers.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Fp8Linear(child))
