"""Toy models with the architectures and tokenizer traits of the hub models that have a preset."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stage1.model.loading import SHAPES, SHIPPED

SHAPE_OF = {
    "llama32_1b": "Llama-3.2-1B-Instruct",
    "qwen3_06b": "Qwen3-0.6B",
    "smollm2_135m": "SmolLM2-135M-Instruct",
}
"""Preset and the name of its shape."""
PADDING = 40
"""Rows of Qwen's table that no token uses."""
SMALL = {
    "llama32_1b": {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 1,
                   "head_dim": 8},
    "qwen3_06b": {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
                  "head_dim": 16},
    "smollm2_135m": {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
}  # fmt: skip
"""As many query heads per key as the real models have, and for Qwen wider queries than D."""

LLAMA = """{{ bos_token }}<|start|>system

Today Date: {% if not date_string is defined %}{{ strftime_now("%d %b %Y") }}{% else %}\
{{ date_string }}{% endif %}<|eot|>{% for turn in messages %}<|start|>{{ turn['role'] }}

{{ turn['content'] | trim }}<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant

{% endif %}"""
QWEN = """{% for turn in messages %}<|start|>{{ turn['role'] }}
{% if turn['role'] == 'assistant' %}<think>

</think>

{% endif %}{{ turn['content'] }}<|eot|>
{% endfor %}{% if add_generation_prompt %}<|start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
SMOLLM = """{% for turn in messages %}{% if loop.first %}<|start|>system
You are a helpful assistant.<|eot|>
{% endif %}<|start|>{{ turn['role'] }}
{{ turn['content'] }}<|eot|>
{% endfor %}{% if add_generation_prompt %}<|start|>assistant
{% endif %}"""

TOKENS = {
    "llama32_1b": {
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": LLAMA,
        "bos_token": "<|begin|>", "eos_token": "<|eot|>",
    },
    "qwen3_06b": {
        "tokenizer_class": "Qwen2Tokenizer", "chat_template": QWEN, "add_bos_token": False,
        "eos_token": "<|eot|>", "pad_token": "<|endoftext|>",
    },
    "smollm2_135m": {
        "tokenizer_class": "GPT2Tokenizer", "chat_template": SMOLLM, "bos_token": "<|start|>",
        "eos_token": "<|eot|>", "pad_token": "<|eot|>", "unk_token": "<|endoftext|>",
    },
}  # fmt: skip
"""The class of each real tokenizer, and what it names. Llama's has no pad token, Qwen's no begin
token, and SmolLM's names one that it never writes by itself."""


def shrunk(name: str, **changes) -> dict:
    """Return a preset's shape with two narrow layers."""
    shape = json.loads((SHAPES / f"{SHAPE_OF[name]}.json").read_text("utf-8"))
    return shape | SMALL[name] | {"intermediate_size": 64, "num_hidden_layers": 2} | changes


def write(folder: Path, name: str, shape: dict | None = None, **tokenizer_changes) -> Path:
    """Write a toy model with random weights and its tokenizer, with changes to their settings."""
    folder.mkdir()
    vocabulary = write_tokenizer(folder, name, **tokenizer_changes)
    special = {"bos_token_id": vocabulary["<|begin|>"], "eos_token_id": vocabulary["<|eot|>"],
               "pad_token_id": None}  # fmt: skip
    rows = max(vocabulary.values()) + 1 + (PADDING if name == "qwen3_06b" else 0)
    own = shrunk(name, vocab_size=rows, **special, **(shape or {}))
    (folder / "config.json").write_text(json.dumps(own), "utf-8")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.generation_config.eos_token_id = [vocabulary["<|eot|>"], vocabulary["<|endoftext|>"]]
    model.save_pretrained(folder)
    return folder


def sharpen(model) -> None:
    """Enlarge the weights, so that predictions depend on all that the model reads."""
    rng = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3, generator=rng)


def write_tokenizer(folder: Path, name: str, **changes) -> dict[str, int]:
    """Write the shipped byte-level vocabulary with the special tokens of chat; return their ids."""
    tokenizer = json.loads((SHIPPED / "tokenizer.json").read_text("utf-8"))
    plain = tokenizer["added_tokens"][0]
    names = ["<|begin|>", "<|endoftext|>", "<|start|>", "<|eot|>"]
    ids = {content: len(tokenizer["model"]["vocab"]) + i for i, content in enumerate(names)}
    tokenizer["added_tokens"] += [plain | {"id": id, "content": c} for c, id in ids.items()]
    begin = {"id": "<|begin|>", "ids": [ids["<|begin|>"]], "tokens": ["<|begin|>"]}
    first = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    tokenizer["post_processor"] |= {
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<|begin|>": begin},
    }
    if name != "llama32_1b":
        tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    settings = TOKENS[name] | changes
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return ids
