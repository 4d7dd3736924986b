"""What a training step of each objective costs, in one run on an otherwise idle machine.

    python benchmarks/objective_cost.py                # preset full: half a minute on an H200
    python benchmarks/objective_cost.py --preset quick --steps 5

The objectives take turns, step by step, on the same batches with an adapter each, so whatever slows
the machine down slows all of them. Writes the median and quartiles of the seconds per step, and the
median over that of `answer_ce`.
"""

import time
from dataclasses import replace

import common
import pandas as pd

from stage1 import store, study
from stage1.config import load_preset
from stage1.names import OBJECTIVES
from stage1.scoring.tables import markdown_table
from stage1.training import loop
from stage1.training.batches import batch_at, steps_per_epoch, token_distribution

WARM_UP = 3


def loops(prepared: study.Study) -> dict[str, loop.Loop]:
    """Return a training of every objective, ready for its first step."""
    made, base = {}, prepared.config.replace(learning_rate=1.0e-3, gradients_every=0)
    steps = steps_per_epoch(base, len(prepared.encoded["train"]))
    for name in OBJECTIVES:
        one = replace(prepared, config=base.replace(objective=name))
        context = study.objective_context(one)
        made[name] = loop.set_up(study.new_adapter(one), context, steps, None)
    return made


def main() -> None:
    given = common.parser(__doc__, "objective_cost.csv", preset="full", steps=40).parse_args()
    prepared = study.prepare(load_preset(given.preset))
    running, encoded = loops(prepared), prepared.encoded["train"]
    distribution = token_distribution(prepared.counts)
    rows = []
    for step in range(given.steps + WARM_UP):
        for name, one in running.items():
            begin = time.perf_counter()
            batch, _ = batch_at(one.config, encoded, distribution, step, prepared.lm.device)
            row = loop.take_step(one, batch)  # reads the loss back, so the device has finished
            rows.append((name, step, time.perf_counter() - begin))
            one.progress.curve.append(row)
    measured = pd.DataFrame(rows, columns=["objective", "step", "seconds"])
    times = measured[measured["step"] >= WARM_UP].groupby("objective", sort=False)["seconds"]
    table = times.quantile([0.5, 0.25, 0.75]).unstack()
    table.columns = ["seconds", "q25", "q75"]
    table["times answer_ce"] = table["seconds"] / table.loc["answer_ce", "seconds"]
    table["batch"], table["machine"] = prepared.config.batch_size, store.provenance()["device"]
    table = table.reset_index().round(5)
    table.to_csv(given.out, index=False)
    print(markdown_table(table))


if __name__ == "__main__":
    main()
