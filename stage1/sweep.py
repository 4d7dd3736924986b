"""Grids of adapters on one machine, without notebooks: the runs behind a report that takes a GPU.

    python -m stage1.sweep trials full OUT.csv --vary learning_rate 1.0e-3 3.0e-3 --vary seed 100
    python -m stage1.sweep runs full OUT.csv --vary initialisation random pca_inverse --vary seed 0 1 2
    python -m stage1.sweep untrained full OUT.csv

Every `--vary` multiplies the grid; without one for `objective`, all objectives are run. `trials` are judged on the
selection split alone and serve to choose learning rates; `runs` are tested, keep their records in the run folders where
the notebooks look for them, and leave the scores of every answer in OUT.parquet, what they share in OUT.json and any
gradient readings in OUT.gradients.parquet; done ones are not run again.
`untrained` scores the conditions that need no training.
"""

import argparse
import itertools
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
import yaml
from tqdm import tqdm

from stage1 import results, store, study
from stage1.config import StudyConfig, load_preset, require
from stage1.objectives import OBJECTIVES, find
from stage1.train import TrainingError

SETTINGS = [
    "preset", "language_model", "compressed_width", "objective", "initialisation", "output_scaling", "train_examples",
    "epochs", "batch_size", "reconstruction_weight", "reconstruction_term", "balancing", "seed", "learning_rate",
]  # fmt: skip
OF_TRAINING = [
    "objective", "seed", "initialisation", "output_scaling", "learning_rate", "epochs", "batch_size",
    "reconstruction_weight", "reconstruction_term", "balancing", "gradients_every",
]  # fmt: skip
VARIED = [
    "objective", "seed", "initialisation", "output_scaling", "train_examples", "epochs", "reconstruction_weight",
    "reconstruction_term", "balancing",
]  # fmt: skip


@lru_cache(maxsize=2)
def prepared(config: StudyConfig) -> study.Study:
    """A process prepares data and language model once for all runs that differ in their training alone."""
    return study.prepare(config)


def shared(config: StudyConfig) -> study.Study:
    torch.set_num_threads(config.threads or 1)  # one run per process, several processes on the machine
    plain = StudyConfig()
    return prepared(config.replace(**{name: getattr(plain, name) for name in OF_TRAINING}))


def settings(config: StudyConfig) -> dict:
    return {name: getattr(config, name) for name in SETTINGS}


def trial(config: StudyConfig) -> dict:
    """One row: the settings and the last reading on the selection split; a run that diverged scores zero."""
    row = settings(config) | {"learning_rate": study.learning_rate(config)}
    try:
        _, progress = study.train_adapter(study.replace(shared(config), config=config), resumable=False)
    except TrainingError as error:
        return row | {"selection_f1": 0.0, "diverged": str(error)}
    row |= {f"selection_{name}": value for name, value in progress.selection[-1].items() if name != "step"}
    return row | {"seconds": sum(step["seconds"] for step in progress.curve)}


def tested(config: StudyConfig) -> dict:
    """One row: the settings and the results of the run's record, made now unless it is there."""
    path = store.adapter_folder(config) / "record.json"
    try:
        found = store.read_json(path if path.exists() else study.run(config, shared(config)))["results"]
    except TrainingError as error:
        return settings(config) | {"learning_rate": study.learning_rate(config), "diverged": str(error)}
    flat = {f"selection_{name}": value for name, value in found["selection"].items() if name != "step"}
    flat |= {f"tokens_{name}": value for name, value in found["tokens_supervised"].items()}
    flat |= {name: value for name, value in found.items() if not isinstance(value, dict)}
    return settings(config) | flat | found["test"] | found["reconstruction"]


def grid(preset: str, vary: dict[str, list]) -> list[StudyConfig]:
    """Every combination of the varied fields on the preset; all of them checked before anything runs."""
    vary = {"objective": list(OBJECTIVES)} | vary
    for field, values in vary.items():
        require(len(values) > 0, f"--vary {field}", values, "at least one value")
    combinations = itertools.product(*vary.values())
    configs = [load_preset(preset).replace(**dict(zip(vary, values, strict=True))) for values in combinations]
    for config in configs:
        find(config.objective)
    return configs


def scores(configs: list[StudyConfig]) -> pd.DataFrame:
    """The scores of every answer of every run, without the answers themselves and in types small enough to keep."""
    kept = ["id", "title", "f1", "em", "ended", "tokens", "right_first", "right_later"]
    tables = []
    for config in configs:
        path = store.adapter_folder(config) / "answers.parquet"
        if not path.exists():  # diverged
            continue
        table = store.read_table(path)
        tables.append(table[kept].assign(**{name: getattr(config, name) for name in VARIED}))
    if not tables:
        raise store.RecordError("no run left answers: all of them diverged")
    whole = pd.concat(tables)
    floats = dict.fromkeys(whole.select_dtypes("float64").columns, "float32")
    return whole.astype(floats | dict.fromkeys(whole.select_dtypes(["object", "string"]).columns, "category"))


def gradients(configs: list[StudyConfig]) -> pd.DataFrame:
    """The gradient readings of every run that took some, with its settings."""
    tables = []
    for config in configs:
        path = store.adapter_folder(config) / "gradients.parquet"
        if path.exists():
            table = store.read_table(path)
            small = table.astype(dict.fromkeys(table.select_dtypes("float64").columns, "float32"))
            tables.append(small.assign(**{name: getattr(config, name) for name in VARIED}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def sweep(kind: str, configs: list[StudyConfig], table: Path, processes: int) -> None:
    """Run the configs in a pool; the table is whole at every moment, and one failure does not stop the others."""
    make, rows, failures = {"trials": trial, "runs": tested}[kind], [], []
    os.environ["TQDM_DISABLE"] = "1"  # in the processes of the pool: one bar for all of them is enough
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(make, config) for config in configs]
        for done in tqdm(as_completed(futures), total=len(futures), desc=kind, file=sys.stdout, mininterval=5):
            if done.exception():
                failures.append(done.exception())
                continue
            rows.append(done.result())
            ordered = pd.DataFrame(rows).sort_values(SETTINGS)
            store.write_atomically(table, lambda path, ordered=ordered: ordered.to_csv(path, index=False))
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(configs)} runs failed; the first: {failures[0]}") from failures[0]
    if kind == "runs":
        store.write_table(table.with_suffix(".parquet"), scores(configs))
        store.write_json(table.with_suffix(".json"), origins(configs))
        if len(readings := gradients(configs)):
            store.write_table(table.with_suffix(".gradients.parquet"), readings)


def origins(configs: list[StudyConfig]) -> dict:
    """Where the runs come from: the fields they share, and the distinct provenances of their records."""
    paths = [store.adapter_folder(config) / "record.json" for config in configs]
    found = [store.read_json(path) for path in paths if path.exists()]
    first, seen = found[0]["config"], [record["provenance"] for record in found]
    shared = {name: value for name, value in first.items() if all(one["config"].get(name) == value for one in found)}
    return {"runs": len(found), "config": shared, "provenance": [p for i, p in enumerate(seen) if p not in seen[:i]]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stage1.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["trials", "runs", "untrained"])
    parser.add_argument("preset")
    parser.add_argument("table", type=Path, help="CSV with one row per run")
    parser.add_argument("--vary", nargs="+", action="append", default=[], metavar=("FIELD", "VALUE"))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    vary = {field: [yaml.safe_load(value) for value in values] for field, *values in given.vary}
    if given.kind == "untrained":
        table = results.condition_table(*study.test_untrained(study.prepare(load_preset(given.preset))))
        store.write_atomically(given.table, lambda path: table.to_csv(path, index=False))
    else:
        sweep(given.kind, grid(given.preset, vary), given.table, given.processes)


if __name__ == "__main__":
    main()
