"""Train the language model that ships with the package, from scratch, on almanac text.

    python -m stage1.pretrain OUT                                           # on one GPU
    python -m stage1.pretrain OUT --steps 20 --passages 2000 --device cpu   # a rehearsal anywhere
    python -m stage1.pretrain OUT --answers mixed                           # long answers as well
    python -m stage1.pretrain OUT --seed 1                                  # another such model

The command trains tokenizer and model, scores both kinds of names and writes the model card. The
loss covers all tokens, so that the model also predicts prompts; answer tokens weigh more.
"""

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.corpus import almanac
from stage1.corpus.prompts import encode
from stage1.evaluation import conditions
from stage1.fields import require
from stage1.model.language_model import FrozenLM
from stage1.model.loading import choose_device, load
from stage1.pretrain import model_card
from stage1.pretrain.rows import KINDS, LENGTHS, corpus, train_tokenizer
from stage1.scoring.intervals import mean_interval

LOSSES = ["loss", "cross_entropy", "answer_cross_entropy", "answer_accuracy"]
"""The weighted loss; cross-entropy of all tokens and of answer tokens; accuracy on the latter."""


@dataclass(frozen=True)
class PretrainConfig:
    """The recipe; every field is an option of the command."""

    width: int = 192
    """Embedding width D, a multiple of 32; one attention head per 32."""
    depth: int = 4
    """Transformer layers."""
    hidden: int = 0
    """Width of the gated MLP; 0 stands for 8/3 of the width, rounded up to a multiple of 32."""
    vocabulary: int = 4_096
    """Entries of the BPE tokenizer, special tokens included."""
    passages: int = 1_000_000
    """Training passages."""
    answers: str = "short"
    """Questions on them: for answers that are `short`, `long` or `mixed`."""
    row: int = 0
    """Length of a training row (tokens); 0 stands for what the answers need: `rows.LENGTHS`."""
    batch: int = 256
    """Rows per step."""
    steps: int = 12_000
    """Optimizer steps."""
    learning_rate: float = 2.0e-3
    """Peak of the cosine schedule, after a linear warm-up over a thirtieth of the steps."""
    answer_weight: float = 8.0
    """Loss weight of answer and end tokens; all others have weight 1."""
    weight_decay: float = 0.1
    """AdamW weight decay of the layers' matrices; embeddings, head and norms have none."""
    seed: int = 0
    """Decides the passages, hence also the tokenizer; initial weights; and the order of rows."""
    device: str = "cuda"
    processes: int = os.cpu_count() or 1
    """Processes that write and tokenize the corpus; results do not depend on it."""

    def __post_init__(self):
        require(self.answers in KINDS, "answers", self.answers, f"one of {', '.join(KINDS)}")
        object.__setattr__(self, "row", self.row or LENGTHS[self.answers])  # the record tells it
        for name in ("depth", "passages", "row", "batch", "steps", "processes"):
            least = almanac.PASSAGES_PER_ARTICLE if name == "passages" else 1
            require(getattr(self, name) >= least, name, getattr(self, name), f"{least} or more")
        require(self.width >= 32 and self.width % 32 == 0, "width", self.width, "a multiple of 32")


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(config.seed)
    architecture = LlamaConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.width // 32,
        intermediate_size=config.hidden or 32 * math.ceil(config.width * 8 / 3 / 32),
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(architecture).to(config.device)  # type: ignore[arg-type]


def build_optimizer(config: PretrainConfig, model: LlamaForCausalLM) -> torch.optim.AdamW:
    layers = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is layer for layer in layers)]
    groups = [
        {"params": layers, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = torch.device(config.device).type == "cuda"
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=fused)


def learning_rate(config: PretrainConfig, step: int) -> float:
    warmup = max(1, config.steps // 30)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def losses(
    model: LlamaForCausalLM,
    ids: Int[Tensor, "B T"],
    is_answer: Bool[Tensor, "B T"],
    answer_weight: float,
    pad: int,
) -> Float[Tensor, " 4"]:
    """Return the four columns `LOSSES` of the curve for a batch of rows."""
    # Attention is causal and padding comes last, so no mask is needed.
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()  # [B, T-1, V]
    targets, answer = ids[:, 1:], is_answer[:, 1:].float()
    nll = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(answer)
    real = (targets != pad).float()  # rows contain the pad token only as padding
    weight = real + (answer_weight - 1) * answer
    right = (logits.argmax(-1) == targets).float()
    terms = ((weight, nll), (real, nll), (answer, nll), (answer, right))
    return torch.stack([(w * x).sum() / w.sum() for w, x in terms])


def train(
    config: PretrainConfig, model: LlamaForCausalLM, rows: Tensor, is_answer: Tensor
) -> pd.DataFrame:
    """Train in place and return the curve: step, learning rate, seconds and `LOSSES`."""
    device, pad = torch.device(config.device), model.config.pad_token_id
    assert pad is not None
    optimizer = build_optimizer(config, model)
    step_losses = torch.compile(losses) if device.type == "cuda" else losses
    order = torch.Generator(device).manual_seed(config.seed)
    curve, begin = [], time.perf_counter()
    for step in tqdm(range(config.steps), desc="train", mininterval=5):
        batch = torch.randint(len(rows), (config.batch,), generator=order, device=device)
        rate = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            ids, answers = rows[batch].long(), is_answer[batch]
            figures = step_losses(model, ids, answers, config.answer_weight, pad)
        figures[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 99 or step + 1 == config.steps:
            curve.append([step + 1, rate, time.perf_counter() - begin, *figures.tolist()])
    return pd.DataFrame(curve, columns=["step", "learning_rate", "seconds", *LOSSES])


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write bf16 safetensors, the tokenizer and a greedy generation config."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)


def answer_scores(
    lm: FrozenLM, names: str, seed: int, answers: str = "short", n: int = 1_000
) -> dict:
    """Score n fresh test questions, read from original embeddings: F1 and EM in percent."""
    config = StudyConfig(eval_batch_size=250)
    if answers == "long":
        config = load_preset("long_answers").replace(eval_batch_size=250)
    table = almanac.table(n, seed, "test", names, answers)
    encoded = encode(table.to_pylist(), lm.tokenizer, config)
    scores = conditions.evaluate(lm, encoded, "embeddings", lm.embedding_table, config)
    record = {"answers": answers, "names": names, "seed": seed, "questions": n}
    record["ended"] = float(scores["ended"].mean())
    for metric in ("f1", "em"):
        record[metric] = mean_interval(scores[metric].tolist(), scores["title"].tolist())._asdict()
    return record


def prepare(folder: Path, config: PretrainConfig) -> tuple[PreTrainedTokenizerFast, Tensor, Tensor]:
    """Return the tokenizer, saved to the folder, and all training rows on the training device."""
    choose_device(config.device)  # raises for a missing GPU before any work
    folder.mkdir(parents=True, exist_ok=True)
    articles = config.passages // almanac.PASSAGES_PER_ARTICLE
    tokenizer = train_tokenizer(config.vocabulary, articles, config.seed, config.answers)
    tokenizer.save_pretrained(folder)
    ids, is_answer = map(
        torch.from_numpy,
        corpus(articles, folder, config.row, config.seed, config.processes, config.answers),
    )
    return tokenizer, ids.to(config.device), is_answer.to(config.device)


def run(folder: Path, config: PretrainConfig, prepared: tuple | None = None) -> dict:
    """Prepare, train, save and score; return the record `training.json` beside the weights."""
    begin = time.perf_counter()
    tokenizer, rows, is_answer = prepared or prepare(folder, config)
    model = build_model(config, tokenizer)
    started = time.perf_counter()
    curve = train(config, model, rows, is_answer)
    trained = time.perf_counter()
    save(model, tokenizer, folder)
    cpu_only = config.device == "cpu"
    lm = load(StudyConfig(language_model=str(folder), device="cpu" if cpu_only else "auto"))
    scores = [
        answer_scores(lm, names, seed, answers)
        for answers, names, seed in product(KINDS[config.answers], ("seen", "unseen"), range(3))
    ]
    seconds = {"prepare": started - begin, "train": trained - started}
    record = {
        "config": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": len(rows),
        "tokens_per_row": float((rows != tokenizer.pad_token_id).sum() / len(rows)),
        "scores": scores,
        "seconds": seconds | {"all": time.perf_counter() - begin},
        "provenance": store.provenance(),
    }
    curve.round(6).to_csv(folder / "training_curve.csv", index=False)
    store.write_json(folder / "training.json", record)
    model_card.write_card(folder)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stage1.pretrain", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="where the model and its records go")
    for field in fields(PretrainConfig):
        option, default = f"--{field.name.replace('_', '-')}", field.default
        parser.add_argument(option, type=field.type, default=default, help=f"default {default}")
    options = vars(parser.parse_args())
    print(json.dumps(run(options.pop("folder"), PretrainConfig(**options)), indent=1))
