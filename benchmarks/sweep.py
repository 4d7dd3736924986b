"""How many adapters a minute a sweep trains: one in each process, or many in shared passes.

    python benchmarks/sweep.py                                             # preset full, on a GPU
    python benchmarks/sweep.py --preset smoke --adapters 4 --pool 2 --together 4 --groups 1

Both train the same adapters, answer cross-entropy and distillation in turn with a seed each, and
evaluate them on the selection split once. The time includes the set-up of the processes.
"""

import tempfile
from pathlib import Path

import common
import pandas as pd
import torch

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.scoring.tables import markdown_table
from stage1.study.sweep import sweep

OBJECTIVES = ("answer_ce", "distill")


def adapters(preset: str, count: int) -> list[StudyConfig]:
    base = load_preset(preset).replace(gradients_every=0, selection_every=0, learning_rate=1.0e-3)
    names = [OBJECTIVES[i % len(OBJECTIVES)] for i in range(count)]
    return [base.replace(objective=name, seed=seed) for seed, name in enumerate(names)]


def main() -> None:
    given = common.parser(
        __doc__, "sweep.csv", preset="full", adapters=56, pool=16, together=28, groups=2
    ).parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    configs, rows = adapters(given.preset, given.adapters), []
    ways = {
        "one in each process": (given.pool, 1),
        "in shared passes": (given.groups, given.together),
    }
    with tempfile.TemporaryDirectory() as folder:
        for way, (processes, size) in ways.items():
            table = Path(folder) / f"{len(rows)}.csv"
            seconds = common.seconds(device, sweep, "trials", configs, table, processes, size)
            row = {"way": way, "processes": processes, "together": size, "adapters": len(configs)}
            rows.append(
                row | {"seconds": seconds, "adapters_per_minute": 60 * len(configs) / seconds}
            )
    table = pd.DataFrame(rows)
    table["times"] = table["adapters_per_minute"] / table["adapters_per_minute"].iloc[0]
    table = store.traced(table.round(2))
    table.to_csv(given.out, index=False)
    print(markdown_table(table))


if __name__ == "__main__":
    main()
