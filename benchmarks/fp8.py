"""What eight-bit arithmetic does to the answers: adapters trained under a native and an fp8 model.

    python benchmarks/fp8.py                                           # preset full, on a GPU
    python benchmarks/fp8.py --train-examples 2500 --dtype float32     # two cores, fp8 emulated

Without fp8 units the same eight bits are multiplied in float32. Both language models then answer
the same test questions from every adapter and from the original embeddings. Writes one row per
training, answering model and seed. Nothing is evaluated during training, and learning rates are
those chosen for the float32 model.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed

import common
import pandas as pd
import torch

from stage1 import adapter as adapters
from stage1 import store, study
from stage1.config import StudyConfig, load_preset
from stage1.evaluation import evaluate
from stage1.scoring.tables import markdown_table

ARITHMETIC = ("native", "fp8")


def answers(prepared: dict[str, study.Study], table: torch.Tensor, about: dict) -> list[dict]:
    """Return the scores of both language models' answers from a table of embeddings."""
    rows = []
    for arithmetic, one in prepared.items():
        scored = evaluate(one.lm, one.encoded["test"], "fp8", table, one.config, description="")
        measures = scored[["f1", "em", "ce_first", "ce_later"]].mean().to_dict()
        rows.append(about | {"answered_by": arithmetic, "questions": len(scored)} | measures)
    return rows


def trained(config: StudyConfig) -> list[dict]:
    """Train one adapter under the config's arithmetic and return both models' scores with it."""
    torch.set_num_threads(1)
    prepared = {name: study.prepare(config.replace(matmul=name)) for name in ARITHMETIC}
    adapter, progress = study.train_adapter(prepared[config.matmul], resumable=False)
    native, last = prepared["native"], [step["loss"] for step in progress.curve[-20:]]
    about = {
        "objective": config.objective,
        "budget": f"{config.train_examples}x{config.epochs}",
        "trained_under": config.matmul,
        "seed": config.seed,
        "final_loss": sum(last) / len(last),
    }
    rows = answers(prepared, adapters.decode(adapter, native.codebook), about)
    if config.seed == 0 and config.matmul == "native":
        about = {"objective": "original embeddings", "seed": 0}
        rows += answers(prepared, native.lm.embedding_table, about)
    return rows


def main() -> None:
    fields = {"objective": "option3_teacher_forced", "train_examples": 10_000, "dtype": "bfloat16"}
    options = {"preset": "full", "seeds": 3, "processes": 6}
    given = common.parser(__doc__, "fp8.csv", **fields, **options).parse_args()
    changes = dict.fromkeys(("selection_examples", "selection_every", "gradients_every"), 0)
    changes |= {name: getattr(given, name) for name in fields}
    config = load_preset(given.preset).replace(**changes)
    seeds = [config.replace(seed=seed) for seed in range(given.seeds)]
    configs = [one.replace(matmul=name) for one in seeds for name in ARITHMETIC]
    os.environ["TQDM_DISABLE"] = "1"  # in the processes of the pool
    spawn, rows = multiprocessing.get_context("spawn"), []
    with ProcessPoolExecutor(given.processes, mp_context=spawn) as pool:
        for done in as_completed([pool.submit(trained, one) for one in configs]):
            rows += done.result()
            order = ["objective", "trained_under", "answered_by", "seed"]
            table = pd.DataFrame(rows).sort_values(order)
            store.traced(table).to_csv(given.out, index=False, float_format="%.5g")
    print(markdown_table(table.round(3)))


if __name__ == "__main__":
    main()
