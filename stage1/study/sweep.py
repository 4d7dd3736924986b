"""Grids of adapters on one machine, without notebooks: the runs behind a report that takes a GPU.

    python -m stage1.study.sweep trials full OUT.csv --vary learning_rate 1.0e-3 3.0e-3 --vary seed 100
    python -m stage1.study.sweep runs full OUT.csv --vary initialisation random pca_inverse --vary seed 0 1 2
    python -m stage1.study.sweep untrained full OUT.csv

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
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
import torch
import yaml
from tqdm import tqdm

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.fields import options, require
from stage1.names import OBJECTIVES
from stage1.objectives import find
from stage1.scoring.tables import condition_table
from stage1.study import runs
from stage1.study.preparation import Study, prepare
from stage1.study.rates import learning_rate
from stage1.training.microbatches import TrainingError

PREPARED = ("data", "language model", "compression")
"""Groups of fields that a prepared study depends on; runs that differ in others share one."""

ANSWER_COLUMNS = ["id", "title", "f1", "em", "ended", "tokens", "right_first", "right_later"]
"""What a table of scores keeps of every answer."""


@lru_cache(maxsize=2)
def prepared(config: StudyConfig) -> Study:
    """A process prepares data and language model once for all runs that differ in their training alone."""
    return prepare(config)


def shared(config: StudyConfig) -> Study:
    """The config's study, prepared already if an earlier run of this process has the same data and language model."""
    torch.set_num_threads(
        config.threads or 1
    )  # one run per process, several processes on the machine
    needed = {
        name: getattr(config, name)
        for name, option in options(config).items()
        if option.group in PREPARED
    }
    return replace(prepared(StudyConfig().replace(**needed)), config=config)


def recorded_fields(configs: Sequence[StudyConfig]) -> list[str]:
    """Fields that a sweep writes as columns: those marked so, and every other one in which its configs differ."""
    differ = {
        name: len({getattr(config, name) for config in configs}) > 1
        for name in options(StudyConfig)
    }
    return [
        name for name, option in options(StudyConfig).items() if option.recorded or differ[name]
    ]


def columns(config: StudyConfig, fields: Sequence[str]) -> dict:
    """These fields of a config, with the learning rate that it takes."""
    return {name: getattr(config, name) for name in fields} | {
        "learning_rate": learning_rate(config)
    }


def trial(config: StudyConfig, fields: Sequence[str]) -> dict:
    """One row: the config's columns and the last scores on the selection split; a run that diverged scores zero."""
    row = columns(config, fields)
    try:
        _, progress = runs.train_adapter(shared(config), resumable=False)
    except TrainingError as error:
        return row | {"selection_f1": 0.0, "diverged": str(error)}
    row |= {
        f"selection_{name}": value
        for name, value in progress.selection[-1].items()
        if name != "step"
    }
    return row | {"seconds": sum(step["seconds"] for step in progress.curve)}


def tested(config: StudyConfig, fields: Sequence[str]) -> dict:
    """One row: the config's columns and the results of the run's record, made now unless it is there."""
    path = store.adapter_folder(config) / "record.json"
    try:
        found = store.read_json(path if path.exists() else runs.run(config, shared(config)))[
            "results"
        ]
    except TrainingError as error:
        return columns(config, fields) | {"diverged": str(error)}
    flat = {
        f"selection_{name}": value for name, value in found["selection"].items() if name != "step"
    }
    flat |= {f"tokens_{name}": value for name, value in found["tokens_supervised"].items()}
    flat |= {name: value for name, value in found.items() if not isinstance(value, dict)}
    return columns(config, fields) | flat | found["test"] | found["reconstruction"]


def grid(preset: str, vary: dict[str, list]) -> list[StudyConfig]:
    """Every combination of the varied fields on the preset; all of them checked before anything runs."""
    vary = {"objective": list(OBJECTIVES)} | vary
    for field, values in vary.items():
        require(len(values) > 0, f"--vary {field}", values, "at least one value")
    combinations = itertools.product(*vary.values())
    configs = [
        load_preset(preset).replace(**dict(zip(vary, values, strict=True)))
        for values in combinations
    ]
    for config in configs:
        find(config.objective)
    return configs


def gathered(
    configs: Sequence[StudyConfig], name: str, kept: Sequence[str] | None = None
) -> pd.DataFrame:
    """The tables of that name which the runs have left, with each run's columns, in types small enough to keep."""
    fields, tables = recorded_fields(configs), []
    for config in configs:
        path = store.adapter_folder(config) / f"{name}.parquet"
        if path.exists():  # not of a run that diverged, nor gradients of a single term
            table = store.read_table(path)
            tables.append(table[list(kept or table)].assign(**columns(config, fields)))
    if not tables:
        return pd.DataFrame()
    whole = pd.concat(tables, ignore_index=True)
    floats = dict.fromkeys(whole.select_dtypes("float64").columns, "float32")
    return whole.astype(
        floats | dict.fromkeys(whole.select_dtypes(["object", "string"]).columns, "category")
    )


def scores(configs: Sequence[StudyConfig]) -> pd.DataFrame:
    """The scores of every answer of every run, without the answers themselves. Raises RecordError without any."""
    table = gathered(configs, "answers", ANSWER_COLUMNS)
    if table.empty:
        raise store.RecordError("no run left answers: all of them diverged")
    return table


def sweep(kind: str, configs: list[StudyConfig], table: Path, processes: int) -> None:
    """Run the configs in a pool; the table is whole at every moment, and one failure does not stop the others."""
    fields, rows, failures = recorded_fields(configs), [], []
    make = partial({"trials": trial, "runs": tested}[kind], fields=fields)
    os.environ["TQDM_DISABLE"] = (
        "1"  # in the processes of the pool: one bar for all of them is enough
    )
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(make, config) for config in configs]
        for done in tqdm(
            as_completed(futures), total=len(futures), desc=kind, file=sys.stdout, mininterval=5
        ):
            if done.exception():
                failures.append(done.exception())
                continue
            rows.append(done.result())
            ordered = pd.DataFrame(rows).sort_values(
                [*(name for name in fields if name != "seed"), "seed"]
            )
            store.write_atomically(
                table, lambda path, ordered=ordered: ordered.to_csv(path, index=False)
            )
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(configs)} runs failed; the first: {failures[0]}"
        ) from failures[0]
    if kind == "runs":
        store.write_table(table.with_suffix(".parquet"), scores(configs))
        store.write_json(table.with_suffix(".json"), origins(configs))
        readings = gathered(configs, "gradients")
        if len(readings):
            store.write_table(table.with_suffix(".gradients.parquet"), readings)


def origins(configs: list[StudyConfig]) -> dict:
    """Where the runs come from: the fields they share, and the distinct provenances of their records."""
    paths = [store.adapter_folder(config) / "record.json" for config in configs]
    found = [store.read_json(path) for path in paths if path.exists()]
    first, seen = found[0]["config"], [record["provenance"] for record in found]
    shared = {
        name: value
        for name, value in first.items()
        if all(one["config"].get(name) == value for one in found)
    }
    return {
        "runs": len(found),
        "config": shared,
        "provenance": [p for i, p in enumerate(seen) if p not in seen[:i]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stage1.study.sweep", description=__doc__.splitlines()[0]
    )
    parser.add_argument("kind", choices=["trials", "runs", "untrained"])
    parser.add_argument("preset")
    parser.add_argument("table", type=Path, help="CSV with one row per run")
    parser.add_argument(
        "--vary", nargs="+", action="append", default=[], metavar=("FIELD", "VALUE")
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    vary = {field: [yaml.safe_load(value) for value in values] for field, *values in given.vary}
    if given.kind == "untrained":
        table = condition_table(*runs.test_untrained(prepare(load_preset(given.preset))))
        store.write_atomically(given.table, lambda path: table.to_csv(path, index=False))
    else:
        sweep(given.kind, grid(given.preset, vary), given.table, given.processes)


if __name__ == "__main__":
    main()
