"""What a training step of each objective costs, in one run on one machine, nothing else running.

    python benchmarks/objective_cost.py                # preset full: half a minute on an H200
    python benchmarks/objective_cost.py --preset quick --steps 5

Objectives take turns, step by step, on the same batches with an adapter of their own, so what slows the machine down
slows all of them. Writes `benchmarks/results/objective_cost.csv`: median and quartiles of the seconds per step, and the
median over that of `answer_ce`.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch

from stage1 import adapter as adapters
from stage1 import store
from stage1.config import load_preset
from stage1.objectives import OBJECTIVES, ObjectiveContext, reads_tokens
from stage1.pretrain.model_card import markdown_table
from stage1.study import study
from stage1.training.batches import examples_at, steps_per_epoch, token_distribution, tokens_at
from stage1.training.loop import set_up, take_step

RESULTS = Path(__file__).parent / "results" / "objective_cost.csv"


def loops(prepared: study.Study) -> dict:
    """A training of every objective, ready for its first step."""
    made = {}
    for name in OBJECTIVES:
        config = prepared.config.replace(objective=name, learning_rate=1.0e-3, gradients_every=0)
        table = prepared.lm.embedding_table
        adapter = adapters.make(
            prepared.compression, table, torch.from_numpy(prepared.counts), config
        )
        context = ObjectiveContext(prepared.lm, prepared.codebook, config, 1.0)
        made[name] = set_up(
            adapter, context, steps_per_epoch(config, len(prepared.encoded["train"])), None
        )
    return made


def seconds(prepared: study.Study, loop, step: int) -> float:
    """Of one step, batch included, until the device is done."""
    config, encoded, counts = loop.context.config, prepared.encoded["train"], prepared.counts
    begin = time.perf_counter()
    batch = examples_at(config, encoded, step)
    if reads_tokens(loop.objective):
        tokens = round(len(batch.prompts) * counts.sum() / len(encoded))
        batch = tokens_at(config, token_distribution(counts), tokens, step, loop.context.lm.device)
    loop.progress.curve.append(
        take_step(loop, batch)
    )  # reads the loss back, so the device has finished
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="full")
    parser.add_argument(
        "--steps",
        type=int,
        default=40,
        help="measured steps per objective, after three that are not",
    )
    given = parser.parse_args()
    prepared = study.prepare(load_preset(given.preset))
    running = loops(prepared)
    rows = [
        {"objective": name, "step": step, "seconds": seconds(prepared, loop, step)}
        for step in range(given.steps + 3)
        for name, loop in running.items()
    ]
    measured = pd.DataFrame(rows).query("step >= 3").groupby("objective", sort=False)["seconds"]
    table = (
        measured.quantile([0.5, 0.25, 0.75])
        .unstack()
        .set_axis(["seconds", "q25", "q75"], axis=1)
        .reset_index()
    )
    table["times answer_ce"] = table["seconds"] / float(
        table.set_index("objective").loc["answer_ce", "seconds"]
    )
    table["batch"], table["machine"] = prepared.config.batch_size, store.provenance()["device"]
    table.round(5).to_csv(RESULTS, index=False)
    print(markdown_table(table.round(5)))


if __name__ == "__main__":
    main()
