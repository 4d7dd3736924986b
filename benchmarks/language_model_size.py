"""How wide and deep should the shipped language model be? Candidates, timed on one CPU thread.

    python benchmarks/language_model_size.py train FOLDER 192x4 192x6    # one GPU, 2 minutes each
    python benchmarks/language_model_size.py measure FOLDER              # CPU, prints the table

Training examples/s: forward and backward through the frozen model to its input embeddings, logits
at the answer, batches of 32. Generation examples/s: greedy answers from embeddings, batches of 64.
Both on almanac test questions.
"""

import gc
import statistics
from pathlib import Path

import common
import pandas as pd
import torch

from stage1 import store
from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import encode
from stage1.model.generation import generate
from stage1.model.greedy import left_pad
from stage1.model.language_model import FrozenLM
from stage1.model.loading import load
from stage1.pretrain import train as pretraining

BATCH = 32


def train_shapes(folder: Path, shapes: list[str], options: dict) -> None:
    prepared = pretraining.prepare(folder / "tokenizer", pretraining.PretrainConfig(**options))
    for shape in shapes:
        width, depth = map(int, shape.split("x"))
        config = pretraining.PretrainConfig(width=width, depth=depth, **options)
        record = pretraining.run(folder / shape, config, prepared)
        f1 = [round(score["f1"]["mean"], 1) for score in record["scores"]]
        print(shape, f1, record["seconds"], flush=True)
        torch.compiler.reset()
        gc.collect()


def rate(lm: FrozenLM, call, examples: int, repeats: int) -> float:
    """Return examples per second, by the median of the calls after one warm-up call."""
    times = [common.seconds(lm.device, call) for _ in range(repeats + 1)]
    return examples / statistics.median(times[1:])


def training_rate(lm: FrozenLM, prompts: list[list[int]]) -> float:
    """Time forward and backward to the embeddings, the last 5 positions through the head."""
    ids, mask = left_pad(prompts[:BATCH], lm.pad_token)
    embeddings = lm.embed(ids).detach().requires_grad_()
    inputs = {"inputs_embeds": embeddings, "attention_mask": mask.long(), "use_cache": False}

    def step() -> None:
        hidden = lm.model.model(**inputs).last_hidden_state
        lm.model.lm_head(hidden[:, -5:]).logsumexp(-1).sum().backward()

    return rate(lm, step, BATCH, repeats=8)


def measure(folder: Path) -> pd.DataFrame:
    torch.set_num_threads(1)
    config, rows = StudyConfig(device="cpu"), []
    for path in sorted(folder.glob("*x*/training.json")):
        record = store.read_json(path)
        lm = load(config.replace(language_model=str(path.parent)))
        prompts = encode(almanac.table(192, 0, "test").to_pylist(), lm.tokenizer, config).prompts
        generation = rate(lm, lambda lm=lm, p=prompts: generate(lm, p, lm.embed), 192, repeats=3)
        scores = [(score["names"], score["f1"]["mean"]) for score in record["scores"]]
        f1 = pd.DataFrame(scores, columns=["names", "f1"]).groupby("names")["f1"].mean()
        row = {
            "shape": path.parent.name,
            "parameters": record["parameters"],
            "steps": record["config"]["steps"],
            "F1 seen": f1["seen"],
            "F1 unseen": f1["unseen"],
            "GPU training s": record["seconds"]["train"],
            "CPU training examples/s": training_rate(lm, prompts),
            "CPU generation examples/s": generation,
        }
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    defaults = pretraining.PretrainConfig()
    options = {name: getattr(defaults, name) for name in ("steps", "passages", "device")}
    parser = common.parser(__doc__, "language_model_size.csv", **options)
    parser.add_argument("action", choices=["train", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("shapes", nargs="*")
    given = parser.parse_args()
    if given.action == "train":
        options = {name: getattr(given, name) for name in options}
        train_shapes(given.folder, given.shapes, options)
    else:
        table = measure(given.folder)
        table.to_csv(given.out, index=False, float_format="%.1f")
        print(table.to_string(index=False, float_format="%.1f"))
