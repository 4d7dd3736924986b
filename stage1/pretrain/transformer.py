"""A Llama made for training: few large parameters, fixed shapes, attention within documents.

It computes what transformers' `LlamaForCausalLM` computes (Touvron et al., 2023: RMS norm, rotary
positions, gated SiLU), and exports to it. All layers' matrices of a kind are one parameter, so that
an optimizer handles them in one batched product, and products that read the same input are one.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, silu
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stage1.model.engine import varlen_options

EPSILON = 1.0e-6
STD = 0.02
THETA = 10_000.0
"""Base of the rotary positions."""
RAGGED = varlen_options()  # read here, because torch.compile does not trace signatures


class Shape(NamedTuple):
    """The sizes of a model."""

    width: int
    depth: int
    hidden: int
    heads: int
    vocabulary: int
    tied: bool


class Ragged(NamedTuple):
    """Documents of a batch laid end to end: where each starts, and the length of a row."""

    edges: Int[Tensor, " E"]
    longest: int


Documents = Tensor | BlockMask | Ragged
"""What attention may read: a dense mask [B, 1, T, T], flex attention's, or ragged documents."""


def document_numbers(ids: Int[Tensor, "B T"], begin: int) -> Int[Tensor, "B T"]:
    """Return the number of each token's document within its row."""
    return (ids == begin).int().cumsum(1)


def dense_documents(ids: Int[Tensor, "B T"], begin: int) -> Bool[Tensor, "B 1 T T"]:
    """Return which earlier tokens of its own document each token reads."""
    number = document_numbers(ids, begin)
    return (number[:, None, :, None] == number[:, None, None, :]).tril()


def flex_documents(ids: Int[Tensor, "B T"], begin: int) -> BlockMask:
    """Return the same for flex attention."""
    number = document_numbers(ids, begin)
    return create_block_mask(
        lambda b, h, q, k: (q >= k) & (number[b, q] == number[b, k]),
        *(len(ids), None, ids.shape[1], ids.shape[1]),
        device=ids.device.type,
    )


def ragged_documents(ids: Int[Tensor, "B T"], begin: int, most: int) -> Ragged:
    """Return where documents start in the flattened batch, ending in empty ones up to `most`.

    The shape does not depend on the ids, so nothing is compiled again and nothing waits for the
    device. `most` is at least the number of documents.
    """
    starts = ids == begin
    starts[:, 0] = True
    flat = starts.flatten()
    index = torch.arange(len(flat), device=ids.device, dtype=torch.int32)
    edges = torch.full((most + 1,), len(flat), device=ids.device, dtype=torch.int32)
    # Tokens that start no document write into a last element, which goes.
    place = torch.where(flat, flat.cumsum(0) - 1, most)
    written = torch.cat([edges, edges[:1]]).scatter(0, place + (place == most), index)
    return Ragged(torch.cat([written[:most], edges[-1:]]), ids.shape[1])


def rotary(length: int, head: int, device) -> Float[Tensor, "2 T d"]:
    """Return cosine and sine of the rotary angles; a head's halves rotate together."""
    speed = THETA ** -(torch.arange(0, head, 2, device=device).float() / head)
    angles = torch.arange(length, device=device).float()[:, None] * speed
    angles = torch.cat([angles, angles], dim=1)
    return torch.stack([angles.cos(), angles.sin()])


def rotated(x: Float[Tensor, "B T H d"], turns: Float[Tensor, "2 T d"]) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    cosine, sine = turns[:, None, :, None]
    return (x * cosine + torch.cat([-second, first], dim=-1) * sine).to(x.dtype)


def normed(x: Float[Tensor, "B T D"], scale: Float[Tensor, " D"]) -> Float[Tensor, "B T D"]:
    """Return the RMS norm, spelt out so that torch.compile fuses it with its neighbours."""
    wide = x.float()
    return scale * (wide * (wide.square().mean(-1, keepdim=True) + EPSILON).rsqrt()).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Float[Tensor, "B T H d"]:
    """Compute causal attention of [B, T, H, d] within documents."""
    if isinstance(documents, Ragged):
        edges, longest = documents
        flat_q, flat_k, flat_v = (heads.flatten(0, 1) for heads in (q, k, v))
        ends = (edges, edges, longest, longest)
        return varlen_attn(flat_q, flat_k, flat_v, *ends, **RAGGED).view_as(q)  # type: ignore
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    if isinstance(documents, BlockMask):
        return flex_attention(q, k, v, block_mask=documents).transpose(1, 2)
    return scaled_dot_product_attention(q, k, v, attn_mask=documents).transpose(1, 2)


class Transformer(nn.Module):
    """The parameters; `hidden` is the forward pass up to the head."""

    def __init__(self, shape: Shape, seed: int):
        super().__init__()
        D, L, H, _, V, tied = shape
        self.shape = shape
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int, std: float = STD) -> nn.Parameter:
            return nn.Parameter(torch.randn(size, generator=generator) * std)

        self.embedding = normal(V, D)
        self.qkv = normal(L, 3, D, D)
        # The 2 L outputs that add up in the residual stream start small (GPT-2).
        self.out = normal(L, D, D, std=STD / (2 * L) ** 0.5)
        self.gate_up = normal(L, 2, H, D)
        self.down = normal(L, D, H, std=STD / (2 * L) ** 0.5)
        self.norms = nn.Parameter(torch.ones(2 * L + 1, D))
        self.head = self.embedding if tied else normal(V, D)

    @property
    def matrices(self) -> list[nn.Parameter]:
        """The layers' matrices, [..., M, N]."""
        return [self.qkv, self.out, self.gate_up, self.down]

    @property
    def multiplied(self) -> int:
        """Parameters that every token is multiplied by: the layers' matrices and the head."""
        return sum(p.numel() for p in [*self.matrices, self.head])

    def hidden(
        self,
        ids: Int[Tensor, "B T"],
        documents: Documents,
        dtype: torch.dtype,
        dropout: float = 0.0,
    ) -> Float[Tensor, "B T D"]:
        """Return the last hidden states; matrices are cast to `dtype`, norms stay float32 inside.

        Rotary attention depends on distances alone, so positions count from the row's start.
        `dropout` is the share of what attention and MLP add that is left out (Srivastava et al.,
        2014), drawn with torch's global generator.
        """

        def kept(added: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
            return nn.functional.dropout(added, dropout) if dropout else added

        D, L, _, heads, *_ = self.shape
        B, T = ids.shape
        x = embedding(ids, self.embedding).to(dtype)
        turns = rotary(T, D // heads, ids.device)
        norms = self.norms.to(dtype).unbind()
        qkv, out, gate_up, down = (matrix.to(dtype).unbind() for matrix in self.matrices)
        for i in range(L):
            read = normed(x, norms[2 * i])
            q, k, v = linear(read, qkv[i].flatten(0, 1)).view(B, T, 3, heads, -1).unbind(2)
            mixed = attend(rotated(q, turns), rotated(k, turns), v, documents)
            x = x + kept(linear(mixed.flatten(2), out[i]))
            read = normed(x, norms[2 * i + 1])
            gate, up = linear(read, gate_up[i].flatten(0, 1)).chunk(2, dim=-1)
            x = x + kept(linear(silu(gate) * up, down[i]))
        return normed(x, norms[-1])


def exported(
    model: Transformer, tokenizer: PreTrainedTokenizerFast, length: int
) -> LlamaForCausalLM:
    """Return transformers' model with the same weights, in float32 on the CPU."""
    D, L, H, heads, V, tied = model.shape
    architecture = LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=heads,
        intermediate_size=H,
        max_position_embeddings=length,
        rms_norm_eps=EPSILON,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    llama = LlamaForCausalLM(architecture)
    missing = llama.load_state_dict(llama_weights(model), strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    return llama


def llama_weights(model: Transformer) -> dict[str, Tensor]:
    """Return the weights under the names of `LlamaForCausalLM`."""
    weights = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norms[-1]}
    if not model.shape.tied:
        weights["lm_head.weight"] = model.head
    for i in range(model.shape.depth):
        layer = f"model.layers.{i}."
        q, k, v = model.qkv[i]
        gate, up = model.gate_up[i]
        named = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": model.out[i],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": model.down[i],
            "input_layernorm": model.norms[2 * i],
            "post_attention_layernorm": model.norms[2 * i + 1],
        }
        weights |= {f"{layer}{name}.weight": value for name, value in named.items()}
    return {name: value.detach().float().cpu() for name, value in weights.items()}
