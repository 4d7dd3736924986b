"""The frozen language model: load it, read embeddings, and prove that nothing changed it."""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path

import torch
from huggingface_hub.errors import LocalEntryNotFoundError
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
from stage1.corpus import prompts
from stage1.machine import processes
from stage1.model import engine

SHIPPED = store.ASSETS / "almanac-lm"
IN_PACKAGE = {"shipped": SHIPPED, "english": store.ASSETS / "english-lm"}
"""Language models of the package: of the almanac, and of real English."""
SHAPES = store.ASSETS / "shapes"
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


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
        positions: Bool[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None = None,
        starts: Int[Tensor, "1 T"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Return the last hidden states at the N marked positions, row by row.

        `mask` marks what attention may read; without it, padding must come last in its row, where
        causal attention hides it. `starts` says where each token's example begins in a packed row.
        """
        inputs: dict = {"attention_mask": None if mask is None else mask.long()}
        if starts is not None:
            inputs = engine.packed_inputs(starts, self.model.dtype)
        # Indices are computed before the pass; after it, this would wait for the device.
        kept = positions.flatten().nonzero().squeeze(1)
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


def choose_device(device: str) -> torch.device:
    """Return this process's device. Raises ValueError for a GPU where none is visible."""
    if device in ("cuda", "sharded") and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: no GPU is visible; expected 'auto' or 'cpu' here")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(processes.device_index())
    return torch.device("cuda", processes.device_index())


def resolve(name: str) -> str:
    """Return `shipped`, `english`, a folder or a hub id in the form that `from_pretrained` takes.

    Raises FileNotFoundError for a folder that lacks a config, safetensors weights or a tokenizer.
    """
    path = IN_PACKAGE.get(name, Path(name).expanduser())
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if is_hub_id and not path.exists():
        return name
    if not path.is_dir():
        raise FileNotFoundError(
            f"language_model={name!r}: expected 'shipped', 'english', a folder, or a hub id "
            "'owner/name'"
        )
    needed = "config.json, *.safetensors, tokenizer*"
    for pattern in needed.split(", "):
        if not any(path.glob(pattern)):
            raise FileNotFoundError(
                f"language_model={name!r}: the folder has no {pattern}; expected all of {needed}"
            )
    check_tokenizer_files(path, name)
    return str(path)


def check_tokenizer_files(folder: Path, name: str) -> None:
    """Raise FileNotFoundError for a tokenizer under another name, which would not be found."""
    vocabularies = {path.name for path in folder.glob("tokenizer*.json")}
    other = sorted(vocabularies - {"tokenizer.json", "tokenizer_config.json"})
    if other and "tokenizer.json" not in vocabularies and not any(folder.glob("*.model")):
        raise FileNotFoundError(
            f"language_model={name!r}: the folder has {', '.join(other)} but no tokenizer.json; "
            "expected the tokenizer in tokenizer.json and its end token in tokenizer_config.json"
        )


def check_ends(tokenizer: PreTrainedTokenizerBase, config: StudyConfig) -> None:
    """Raise ValueError for a tokenizer that names no end token or lacks the chat template."""
    if tokenizer.eos_token_id is None:
        special = ", ".join(tokenizer.get_added_vocab()) or "no special token"
        raise ValueError(
            f"language_model={config.language_model!r}: the tokenizer names no end token, which "
            "ends every answer; expected eos_token in its tokenizer_config.json (its vocabulary "
            f"has {special})"
        )
    prompts.answer_end(tokenizer, config.prompt_template)


def load(config: StudyConfig) -> FrozenLM:
    """Load the config's language model in evaluation mode, every parameter frozen.

    It reads safetensors only and runs no remote code. Raises FileNotFoundError for an incomplete
    folder, OSError for a model that the hub refuses or that cannot be read, and ValueError for a
    missing device, a tokenizer without an end token or the chat template that the config asks for,
    or a model that lacks support for the config's engine settings.
    """
    device = choose_device(config.device)
    model, tokenizer = (build_shape if config.shape_only else read_weights)(config, device)
    # Drop the model's own sampling settings and penalties; keep its end tokens.
    ends = end_tokens(model, tokenizer, config)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ends)
    model.requires_grad_(False).eval()
    engine.configure(model, config)
    return FrozenLM(model, tokenizer, config.language_model, config.recomputed)


def end_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: StudyConfig
) -> list[int]:
    """Return the generation config's end tokens, and the one that ends the template's answers.

    A tokenizer may name another one, as that of Llama-3-8B-Instruct did.
    """
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    ends = {*configured, prompts.answer_end(tokenizer, config.prompt_template)}
    return sorted(token for token in ends if token is not None)


def model_options(config: StudyConfig) -> dict:
    """Return the precision, or from_pretrained would keep that of the file, and the attention."""
    attention = engine.ATTENTION if config.packed else None
    return {"dtype": getattr(torch, config.dtype), "attn_implementation": attention}


def read_weights(config: StudyConfig, device: torch.device) -> Loaded:
    """Load model and tokenizer from the package, a folder or the hub, straight onto the device."""
    source = resolve(config.language_model)
    if config.language_model in IN_PACKAGE:
        logging.disable_progress_bar()  # it loads at once
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise unreadable(config, error) from error
    check_ends(tokenizer, config)  # before the weights, which take longer
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            use_safetensors=True,
            device_map="auto" if config.device == "sharded" else {"": device},
            **model_options(config),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(config, error) from error
    return model, tokenizer


def unreadable(config: StudyConfig, error: Exception) -> OSError:
    """Return the error of a model or tokenizer that cannot be loaded."""
    name = config.language_model
    if isinstance(error.__cause__, LocalEntryNotFoundError):
        return OSError(
            f"language_model={name!r} cannot be loaded: the hub cannot be reached, and no earlier "
            "download is in its cache. Where there is a network, run hf download "
            f"{name} --local-dir FOLDER (hf auth login first if its page asks to accept a licence)"
            "; then copy the folder and set language_model to it. shape_only=True with "
            "data='almanac' rehearses without any download"
        )
    return OSError(
        f"language_model={name!r} cannot be loaded: expected 'shipped', a "
        "local folder with safetensors, or a hub model you have access to (accept its licence "
        f"on its page, then hf auth login); shape_only=True rehearses without it. {error}"
    )


def build_shape(config: StudyConfig, device: torch.device) -> Loaded:
    """Build a model of the same shape with random weights, seeded by `data_seed`.

    The shape is that of a folder's config.json or one in the package; the tokenizer is the folder's
    or the shipped one. Raises FileNotFoundError for an unknown shape.
    """
    folder, name = Path(config.language_model).expanduser(), config.language_model.split("/")[-1]
    shapes = {path.stem: path for path in SHAPES.glob("*.json")}
    if not folder.is_dir() and name not in shapes:
        raise FileNotFoundError(
            f"language_model={config.language_model!r}: expected a folder with a config.json, "
            f"or one of {', '.join(sorted(shapes))} where shape_only=True"
        )
    shape = AutoConfig.from_pretrained(folder if folder.is_dir() else shapes[name])
    torch.manual_seed(config.data_seed)
    with device:
        model = AutoModelForCausalLM.from_config(shape, **model_options(config))
    own = folder.is_dir() and any(folder.glob("tokenizer*"))
    if own:
        check_tokenizer_files(folder, config.language_model)
    tokenizer = AutoTokenizer.from_pretrained(folder if own else SHIPPED)
    check_ends(tokenizer, config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer
