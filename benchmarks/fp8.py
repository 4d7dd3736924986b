"""What eight-bit arithmetic does to the answers: adapters trained under a language model as it is and in fp8.

    python benchmarks/fp8.py                                                     # preset full, on a GPU
    python benchmarks/fp8.py --train-examples 2500 --dtype float32               # on two cores, with fp8 emulated

Where there are no fp8 units the same eight bits are multiplied in float32.
Every adapter, and the original embeddings, are then answered from by both language models on the same test questions.
Writes `benchmarks/results/fp8.csv`: one row per training, answering model and seed. Selection during training is left
out, and learning rates are those chosen for the float32 model.
"""

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from stage1 import adapter as adapters
from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.evaluation.conditions import evaluate
from stage1.pretrain.model_card import markdown_table
from stage1.study import study

RESULTS = Path(__file__).parent / "results" / "fp8.csv"
ARITHMETIC = ("native", "fp8")


def answers(prepared: dict[str, study.Study], table: torch.Tensor, **about) -> list[dict]:
    """Scores of answers from a table of embeddings, by each language model."""
    rows = []
    for arithmetic, one in prepared.items():
        scored = evaluate(one.lm, one.encoded["test"], "fp8", table, one.config, description="")
        measures = {name: scored[name].mean() for name in ("f1", "em", "ce_first", "ce_later")}
        rows.append(about | {"answered_by": arithmetic, "questions": len(scored)} | measures)
    return rows


def trained(config: StudyConfig) -> list[dict]:
    """One adapter, trained under the config's arithmetic and answered from by both."""
    torch.set_num_threads(1)
    prepared = {name: study.prepare(config.replace(matmul=name)) for name in ARITHMETIC}
    adapter, progress = study.train_adapter(prepared[config.matmul], resumable=False)
    about = {
        "objective": config.objective,
        "budget": f"{config.train_examples}x{config.epochs}",
        "trained_under": config.matmul,
        "seed": config.seed,
    }
    about |= {
        "final_loss": sum(step["loss"] for step in progress.curve[-20:]) / len(progress.curve[-20:])
    }
    rows = answers(prepared, adapters.decode(adapter, prepared["native"].codebook), **about)
    if config.seed == 0 and config.matmul == "native":
        rows += answers(
            prepared, prepared["native"].lm.embedding_table, objective="original embeddings", seed=0
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="full")
    parser.add_argument("--objective", default="option3_teacher_forced")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-examples", type=int, default=10_000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    config = load_preset(given.preset).replace(
        objective=given.objective, dtype=given.dtype, gradients_every=0
    )
    config = config.replace(
        train_examples=given.train_examples, selection_examples=0, selection_every=0
    )
    configs = [
        config.replace(matmul=name, seed=seed)
        for seed, name in product(range(given.seeds), ARITHMETIC)
    ]
    os.environ["TQDM_DISABLE"] = "1"  # in the processes of the pool
    with ProcessPoolExecutor(
        given.processes, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        rows = []
        for done in as_completed([pool.submit(trained, one) for one in configs]):
            rows += done.result()
            table = pd.DataFrame(rows).sort_values(
                ["objective", "trained_under", "answered_by", "seed"]
            )
            store.traced(table).to_csv(given.out, index=False, float_format="%.5g")
    print(markdown_table(table.round(3)))


if __name__ == "__main__":
    main()
