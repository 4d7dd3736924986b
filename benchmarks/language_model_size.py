"""How wide and deep should the shipped language model be? Trains candidates, then times them on one CPU thread.

    python benchmarks/language_model_size.py train FOLDER 192x4 192x6 256x4     # one GPU, about 2 minutes each
    python benchmarks/language_model_size.py measure FOLDER                     # CPU, prints the table

Training examples/s: forward and backward through the frozen model to its input embeddings, logits at the answer,
batches of 32. Generation examples/s: greedy answers from embeddings, batches of 64. Both on almanac test questions.
"""

import argparse
import gc
import json
import time
from pathlib import Path

import pandas as pd
import torch

from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import encode
from stage1.model import generation
from stage1.model.language_model import FrozenLM, load
from stage1.pretrain import train


def train(folder: Path, shapes: list[str], options: dict) -> None:
    prepared = train.prepare(folder / "tokenizer", train.PretrainConfig(**options))
    for shape in shapes:
        width, depth = map(int, shape.split("x"))
        config = train.PretrainConfig(width=width, depth=depth, **options)
        record = train.run(folder / shape, config, prepared)
        print(
            shape,
            [round(score["f1"]["mean"], 1) for score in record["scores"]],
            record["seconds"],
            flush=True,
        )
        torch.compiler.reset()
        gc.collect()


def training_rate(
    lm: FrozenLM, prompts: list[list[int]], repeats: int = 8, batch: int = 32
) -> float:
    """Examples/s of a forward and backward pass to the input embeddings, the last 5 positions through the head."""
    ids, mask = generation.left_pad(prompts[:batch], lm.pad_token)
    embeddings = lm.embed(ids).detach().requires_grad_()
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        hidden = lm.model.model(
            inputs_embeds=embeddings, attention_mask=mask.long(), use_cache=False
        ).last_hidden_state
        lm.model.lm_head(hidden[:, -5:]).logsumexp(-1).sum().backward()
        times.append(time.perf_counter() - begin)
    return batch / pd.Series(times[1:]).median()


def generation_rate(lm: FrozenLM, prompts: list[list[int]], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        generation.generate(lm, prompts, lm.embed)
        times.append(time.perf_counter() - begin)
    return len(prompts) / pd.Series(times[1:]).median()


def measure(folder: Path) -> pd.DataFrame:
    torch.set_num_threads(1)
    config, rows = StudyConfig(device="cpu"), []
    for path in sorted(folder.glob("*x*/training.json")):
        record, lm = (
            json.loads(path.read_text()),
            load(config.replace(language_model=str(path.parent))),
        )
        prompts = encode(almanac.table(192, 0, "test").to_pylist(), lm.tokenizer, config).prompts
        f1 = pd.DataFrame(
            {**score, "f1": score["f1"]["mean"]} for score in record["scores"]
        ).groupby("names")["f1"]
        rows.append(
            {
                "shape": f"{lm.model.config.hidden_size}x{lm.model.config.num_hidden_layers}",
                "parameters": record["parameters"],
                "steps": record["config"]["steps"],
                "F1 seen": f1.mean()["seen"],
                "F1 unseen": f1.mean()["unseen"],
                "GPU training s": record["seconds"]["train"],
                "CPU training examples/s": training_rate(lm, prompts),
                "CPU generation examples/s": generation_rate(lm, prompts),
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["train", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("shapes", nargs="*")
    parser.add_argument("--steps", type=int, default=train.PretrainConfig.steps)
    parser.add_argument("--passages", type=int, default=train.PretrainConfig.passages)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    if arguments.action == "train":
        chosen = {name: getattr(arguments, name) for name in ("steps", "passages", "device")}
        train(arguments.folder, arguments.shapes, chosen)
    else:
        table = measure(arguments.folder)
        table.to_csv(
            Path(__file__).parent / "results" / "language_model_size.csv",
            index=False,
            float_format="%.1f",
        )
        print(table.to_string(index=False, float_format="%.1f"))
