"""The frozen language model: load it, embed tokens, and prove that nothing has changed it."""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from stage1 import store
from stage1.config import StudyConfig
from stage1.machine import processes
from stage1.model import engine

SHIPPED = store.ASSETS / "almanac-lm"
SHAPES = store.ASSETS / "shapes"


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
        return self.model.get_input_embeddings().weight

    @property
    def end_tokens(self) -> list[int]:
        """Token ids that end an answer: those of the generation config and the tokenizer's own."""
        configured = self.model.generation_config.eos_token_id
        configured = configured if isinstance(configured, list) else [configured]
        return sorted(
            {token for token in [*configured, self.tokenizer.eos_token_id] if token is not None}
        )

    @property
    def pad_token(self) -> int:
        """What fills padding slots; masks come from lengths, so the end token serves where there is no pad token."""
        pad = self.tokenizer.pad_token_id
        return self.end_tokens[0] if pad is None else pad

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return self.model.get_input_embeddings()(ids.to(self.device))

    @property
    def head(self) -> nn.Linear:
        """The output head: from last hidden states to logits."""
        return self.model.get_output_embeddings()

    def hidden(
        self,
        embeddings: Float[Tensor, "B T D"],
        where: Bool[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None = None,
        starts: Int[Tensor, "1 T"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Last hidden states at the N positions that `where` marks, row by row; the head reads no other.

        `mask` tells what attention may read; without one, padding must come last in its row, where causal attention
        keeps real tokens from seeing it. `starts` tells where each token's example begins, in a packed row.
        """
        inputs = {"attention_mask": None if mask is None else mask.long()}
        if starts is not None:
            inputs = engine.packed_inputs(starts, self.model.dtype)
        chosen = (
            where.flatten().nonzero().squeeze(1)
        )  # before the pass: afterwards it would wait for the device
        inputs |= {
            "inputs_embeds": embeddings.to(self.model.dtype),
            "chosen": chosen,
            "use_cache": False,
        }
        with engine.activation_checkpointing(
            self.model, self.recomputed if torch.is_grad_enabled() else 0.0
        ):
            hidden = self.model.base_model(**inputs).last_hidden_state.flatten(0, 1)
        return hidden if len(hidden) == len(chosen) else hidden[chosen]

    def logits(
        self,
        embeddings: Float[Tensor, "B T D"],
        where: Bool[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "N V"]:
        """Next-token logits in float32 at the N positions that `where` marks, as `hidden` reads them."""
        return self.head(self.hidden(embeddings, where, mask)).float()

    def checksum(self) -> str:
        """A digest of every parameter and buffer, bit for bit, computed where the weights are."""
        digest = hashlib.sha256()
        for name, tensor in sorted(
            [*self.model.named_parameters(), *self.model.named_buffers()], key=itemgetter(0)
        ):
            digest.update(
                f"{name} {tuple(tensor.shape)} {tensor.dtype} {bit_sums(tensor)}".encode()
            )
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
    """The device of this process. Raises ValueError for a GPU where none is visible."""
    if device in ("cuda", "sharded") and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: no GPU is visible; expected 'auto' or 'cpu' here")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(processes.device_index())
    return torch.device("cuda", processes.device_index())


def resolve(name: str) -> str:
    """`shipped`, a folder or a hub id, as `from_pretrained` takes it.

    Raises FileNotFoundError for a folder that lacks a config or safetensors weights.
    """
    path = SHIPPED if name == "shipped" else Path(name).expanduser()
    looks_local = (
        name == "shipped"
        or path.exists()
        or name.startswith((".", "/", "~"))
        or name.count("/") != 1
    )
    if not looks_local:
        return name
    if not path.is_dir():
        raise FileNotFoundError(
            f"language_model={name!r}: expected 'shipped', a folder, or a hub id 'owner/name'"
        )
    needed = "config.json, *.safetensors, tokenizer*"
    for pattern in needed.split(", "):
        if not any(path.glob(pattern)):
            raise FileNotFoundError(
                f"language_model={name!r}: the folder has no {pattern}; expected all of {needed}"
            )
    return str(path)


def load(config: StudyConfig) -> FrozenLM:
    """The config's language model in evaluation mode, every parameter frozen; safetensors only, no remote code.

    Raises FileNotFoundError for an incomplete folder, OSError for a model that the hub does not give or that cannot be
    read, and ValueError for a device that is not there or a model that the config's engine cannot drive.
    """
    device = choose_device(config.device)
    model, tokenizer = (build_shape if config.shape_only else read_weights)(config, device)
    # A model may come with sampling or penalties of its own: only its end tokens are kept.
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=model.generation_config.eos_token_id
    )
    model.requires_grad_(False).eval()
    engine.configure(model, config)
    return FrozenLM(model, tokenizer, config.language_model, config.recomputed)


def read_weights(
    config: StudyConfig, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from the package, a folder or the hub, straight onto the device."""
    source = resolve(config.language_model)
    if source == str(SHIPPED):
        logging.disable_progress_bar()  # it loads in a blink
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(
                torch, config.dtype
            ),  # from_pretrained would otherwise keep the one it was saved in
            use_safetensors=True,
            device_map="auto" if config.device == "sharded" else {"": device},
            attn_implementation=engine.ATTENTION if config.packed else None,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(
            f"language_model={config.language_model!r} cannot be loaded: expected 'shipped', a local folder with "
            f"safetensors, or a hub model you have access to (accept its licence on its page, then hf auth login); "
            f"shape_only=True rehearses without it. {error}"
        ) from error
    return model, tokenizer


def build_shape(
    config: StudyConfig, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of the same shape with random weights, seeded by `data_seed`, without its download: from the config.json
    of a folder, or from the shapes in the package. Its tokenizer is the folder's, or else the shipped one.

    Raises FileNotFoundError for a model whose shape is not at hand.
    """
    folder, name = Path(config.language_model).expanduser(), config.language_model.split("/")[-1]
    known = {path.stem: path for path in SHAPES.glob("*.json")}
    if folder.is_dir():
        shape = AutoConfig.from_pretrained(folder)
    elif name in known:
        shape = AutoConfig.from_pretrained(known[name])
    else:
        allowed = f"a folder with a config.json, or one of {', '.join(sorted(known))} where shape_only=True"
        raise FileNotFoundError(f"language_model={config.language_model!r}: expected {allowed}")
    torch.manual_seed(config.data_seed)
    with device:
        model = AutoModelForCausalLM.from_config(
            shape,
            dtype=getattr(torch, config.dtype),
            attn_implementation=engine.ATTENTION if config.packed else None,
        )
    own = folder.is_dir() and any(folder.glob("tokenizer*"))
    tokenizer = AutoTokenizer.from_pretrained(folder if own else SHIPPED)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer
