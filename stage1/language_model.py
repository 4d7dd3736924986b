"""The frozen language model: load it, embed tokens, and prove that nothing has changed it."""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from stage1.config import StudyConfig

SHIPPED = Path(__file__).parent / "assets" / "almanac-lm"


class FrozenError(RuntimeError):
    """The language model changed, or could have."""


@dataclass(frozen=True)
class FrozenLM:
    """A causal language model whose parameters never change, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def embedding_table(self) -> Float[Tensor, "V D"]:
        return self.model.get_input_embeddings().weight

    @property
    def end_tokens(self) -> list[int]:
        """Token ids that end an answer: those of the generation config and the tokenizer's own."""
        configured = self.model.generation_config.eos_token_id
        configured = configured if isinstance(configured, list) else [configured]
        return sorted({token for token in [*configured, self.tokenizer.eos_token_id] if token is not None})

    @property
    def pad_token(self) -> int:
        """What fills padding slots; masks come from lengths, so the end token serves where there is no pad token."""
        pad = self.tokenizer.pad_token_id
        return self.end_tokens[0] if pad is None else pad

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return self.model.get_input_embeddings()(ids.to(self.device))

    def logits(
        self, embeddings: Float[Tensor, "B T D"], where: Bool[Tensor, "B T"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "N V"]:
        """Next-token logits in float32 at the N positions that `where` marks, row by row; the head reads no other.

        Without a mask, padding must come last in its row: causal attention keeps real tokens from seeing it.
        """
        attention = None if mask is None else mask.long()
        hidden = self.model.base_model(
            inputs_embeds=embeddings.to(self.model.dtype), attention_mask=attention, use_cache=False
        ).last_hidden_state
        return self.model.get_output_embeddings()(hidden[where]).float()

    def checksum(self) -> str:
        """A digest of every parameter and buffer, bit for bit, computed where the weights are."""
        digest = hashlib.sha256()
        for name, tensor in sorted([*self.model.named_parameters(), *self.model.named_buffers()], key=itemgetter(0)):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {bit_sums(tensor)}".encode())
        return digest.hexdigest()

    @contextmanager
    def unchanged(self):
        """Raise FrozenError if the block changes a weight, leaves a gradient on one, or asks for gradients of one."""
        before = self.checksum()
        yield self
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad or parameter.grad is not None:
                raise FrozenError(f"{self.name}: {name} requires or holds a gradient")
        if self.checksum() != before:
            raise FrozenError(f"{self.name}: the weights of the frozen language model changed")


def bit_sums(tensor: Tensor) -> list[int]:
    """The plain and the position-weighted sum of the tensor's bit patterns, modulo 2^64, by chunks of 16M values."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for chunk in tensor.detach().contiguous().view(-1).view(bits).split(1 << 24):
        chunk = chunk.to(torch.int64)
        place = 2 * torch.arange(len(chunk), device=chunk.device) + 1
        # Odd multipliers are invertible modulo 2^64: a change of one value always shows. So does the order of chunks.
        sums = sums * 3 + torch.stack([chunk.sum(), (chunk * place).sum()])
    return sums.tolist()


def choose_device(device: str) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': no GPU is visible; expected 'auto' or 'cpu' here")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def resolve(name: str) -> str:
    """`shipped`, a folder or a hub id, as `from_pretrained` takes it.

    Raises FileNotFoundError for a folder that lacks a config or safetensors weights.
    """
    path = SHIPPED if name == "shipped" else Path(name).expanduser()
    looks_local = name == "shipped" or path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1
    if not looks_local:
        return name
    if not path.is_dir():
        raise FileNotFoundError(f"language_model={name!r}: expected 'shipped', a folder, or a hub id 'owner/name'")
    needed = "config.json, *.safetensors, tokenizer*"
    for pattern in needed.split(", "):
        if not any(path.glob(pattern)):
            raise FileNotFoundError(f"language_model={name!r}: the folder has no {pattern}; expected all of {needed}")
    return str(path)


def load(config: StudyConfig) -> FrozenLM:
    """The config's language model in evaluation mode, every parameter frozen; safetensors only, no remote code.

    Raises FileNotFoundError for an incomplete folder, and OSError for a model that the hub does not give or that cannot
    be read.
    """
    source = resolve(config.language_model)
    if source == str(SHIPPED):
        logging.disable_progress_bar()  # it loads in a blink
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        # The dtype is always passed: from_pretrained would otherwise keep the one the weights were saved in.
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, config.dtype), use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(
            f"language_model={config.language_model!r} cannot be loaded: expected 'shipped', a local folder with "
            f"safetensors, or a hub model you have access to (hf auth login). {error}"
        ) from error
    # A model may come with sampling or penalties of its own: only its end tokens are kept.
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=model.generation_config.eos_token_id)
    model.requires_grad_(False).eval().to(choose_device(config.device))
    return FrozenLM(model, tokenizer, config.language_model)
