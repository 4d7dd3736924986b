"""The frozen language model: read embeddings, pass them through, prove that nothing changed."""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stage1.model import engine


class FrozenError(RuntimeError):
    """The language model changed, or could have."""


@dataclass(frozen=True)
class FrozenLM:
    """A causal language model whose parameters never change, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    recomputed: float = 0.0
    """Share of the decoder layers that keep no activations for the backward pass."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def embedding_table(self) -> Float[Tensor, "V D"]:
        return self.model.get_input_embeddings().weight  # type: ignore[return-value]

    @cached_property
    def token_rows(self) -> int:
        """Number of rows of the table that tokens use; some models pad it beyond the tokenizer."""
        last = max(self.tokenizer.get_vocab().values())
        return min(last + 1, len(self.embedding_table))

    @property
    def end_tokens(self) -> list[int]:
        """Token ids that end an answer: the generation config's and the tokenizer's own.

        `load` adds to the former the one that ends a turn of the chat template.
        """
        configured = self.model.generation_config.eos_token_id
        configured = configured if isinstance(configured, list) else [configured]
        ends = {*configured, self.tokenizer.eos_token_id}
        return sorted(token for token in ends if token is not None)

    @property
    def pad_token(self) -> int:
        """The pad token, or else an end token, since masks are made from lengths."""
        pad = self.tokenizer.pad_token_id
        return self.end_tokens[0] if pad is None else pad

    @property
    def values_per_token(self) -> int:
        """Layers times width: what a token takes in memory, up to a factor."""
        shape = self.model.config.get_text_config()
        return shape.num_hidden_layers * shape.hidden_size

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return self.model.get_input_embeddings()(ids.to(self.device))

    @property
    def head(self) -> nn.Linear:
        """The output head, from last hidden states to logits."""
        return self.model.get_output_embeddings()

    def hidden(
        self,
        embeddings: Float[Tensor, "B T D"],
        positions: Bool[Tensor, "B T"] | Int64[Tensor, " N"],
        mask: Bool[Tensor, "B T"] | None = None,
        starts: Int[Tensor, "1 T"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Return the last hidden states at the N marked positions, row by row.

        The positions may also be given as indices into B x T; marks make the host wait for a GPU.
        `mask` marks what attention may read; without it, padding must come last in its row, where
        causal attention hides it. `starts` says where each token's example begins in a packed row.
        """
        inputs: dict = {"attention_mask": None if mask is None else mask.long()}
        if starts is not None:
            inputs = engine.packed_inputs(starts, self.model.dtype)
        # Indices are computed before the pass; after it, this would wait for the device.
        is_marks = positions.dtype == torch.bool
        kept = positions.flatten().nonzero().squeeze(1) if is_marks else positions
        inputs |= {"inputs_embeds": embeddings.to(self.model.dtype), "kept": kept}
        share = self.recomputed if torch.is_grad_enabled() else 0.0
        with engine.activation_checkpointing(self.model, share):
            output = self.model.base_model(**inputs, use_cache=False)
        hidden = output.last_hidden_state.flatten(0, 1)
        return hidden if len(hidden) == len(kept) else hidden[kept]

    def logits(
        self,
        embeddings: Float[Tensor, "B T D"],
        positions: Bool[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "N V"]:
        """Return next-token logits in float32 at the N marked positions; see `hidden`."""
        return self.head(self.hidden(embeddings, positions, mask)).float()

    def checksum(self) -> str:
        """Return a digest of every parameter and buffer, bit for bit, computed on their device."""
        digest = hashlib.sha256()
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        for name, tensor in sorted(tensors, key=itemgetter(0)):
            text = f"{name} {tuple(tensor.shape)} {tensor.dtype} {bit_sums(tensor)}"
            digest.update(text.encode())
        return digest.hexdigest()

    @contextmanager
    def unchanged(self):
        """Raise FrozenError if a weight changes in the block, or then has or requires gradients."""
        before = self.checksum()
        yield self
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad or parameter.grad is not None:
                raise FrozenError(f"{self.name}: {name} requires or holds a gradient")
        if self.checksum() != before:
            raise FrozenError(f"{self.name}: the weights of the frozen language model changed")


def bit_sums(tensor: Tensor) -> list[int]:
    """Return the plain and the position-weighted sum of the tensor's bit patterns, modulo 2^64.

    Chunks of 16M values limit memory. Position weights are odd, hence invertible modulo 2^64, so a
    change of one value always shows. So does the order of chunks.
    """
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for chunk in tensor.detach().contiguous().view(-1).view(bits).split(1 << 24):
        chunk = chunk.to(torch.int64)
        weights = 2 * torch.arange(len(chunk), device=chunk.device) + 1
        sums = sums * 3 + torch.stack([chunk.sum(), (chunk * weights).sum()])
    return sums.tolist()
