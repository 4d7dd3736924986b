"""Load a frozen language model: from the package, a folder, the hub, or by its shape alone."""

import sys
from pathlib import Path

import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
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
from stage1.model import engine, sharding
from stage1.model.language_model import FrozenLM

SHIPPED = store.ASSETS / "almanac-lm"
IN_PACKAGE = {"shipped": SHIPPED, "english": store.ASSETS / "english-lm"}
"""Language models of the package: of the almanac, and of real English."""
SHAPES = store.ASSETS / "shapes"
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


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
    if config.device == "sharded":
        sharding.spread(model, sharding.devices())
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
    if config.language_model in IN_PACKAGE or not sys.stderr.isatty():
        logging.disable_progress_bar()  # it loads at once, or a page would keep the bar at 0 %
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise unreadable(config, error) from error
    check_ends(tokenizer, config)  # before the weights, which take longer
    try:
        is_sharded = config.device == "sharded"
        over = sharding.device_map(source, sharding.devices()) if is_sharded else {"": device}
        model = AutoModelForCausalLM.from_pretrained(
            source,
            use_safetensors=True,
            device_map=over,
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
