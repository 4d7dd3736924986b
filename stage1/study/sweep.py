"""Grids of adapters on one machine, without notebooks.

    python -m stage1.study.sweep trials full OUT.csv --vary learning_rate 1.0e-3 3.0e-3
    python -m stage1.study.sweep runs full OUT.csv --vary ce_weight 0.1 10.0 --vary seed 0 1 2
    python -m stage1.study.sweep runs full OUT.csv --together 28 --processes 3
    python -m stage1.study.sweep untrained full OUT.csv --vary compressed_width 12 24 48

Every `--vary` multiplies the grid; without one for `objective`, the grid has all objectives.
`trials` are scored on the selection split alone, to choose learning rates. `runs` are tested and
keep their records in the run folders, where the notebooks look for them; finished ones are not
repeated. Beside OUT.csv they leave the scores of every answer in OUT.parquet, shared settings and
provenance in OUT.json, and readings of the terms' gradients, if any, in OUT.gradients.parquet.
`untrained` scores the conditions that need no training, and also leaves OUT.parquet.

A GPU trains up to `--together` adapters in shared passes of the language model, in each process.
Processes take the machine's GPUs in turn.
"""

import argparse
import itertools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from functools import lru_cache
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
from stage1.study import runs, search, together
from stage1.study.pool import pool_of
from stage1.study.preparation import Study, prepare
from stage1.study.sweep_tables import (
    ANSWER_COLUMNS,
    answer_scores,
    columns,
    gathered,
    in_float32,
    origins,
    prefixed,
    recorded_fields,
    with_categories,
)
from stage1.training.loop import Progress
from stage1.training.microbatches import TrainingError

PREPARED = ("data", "language model", "compression")
"""Groups of fields that a prepared study depends on; runs that differ in others share one."""

TOGETHER = 28
"""Adapters that share passes on a GPU, unless the command says otherwise."""


@lru_cache(maxsize=2)
def prepared(config: StudyConfig) -> Study:
    return prepare(config)


def shared(config: StudyConfig) -> Study:
    """Return the config's study, prepared once per process for all runs on its data and model."""
    torch.set_num_threads(config.threads or 1)  # several processes run on the machine
    needed = [name for name, option in options(config).items() if option.group in PREPARED]
    values = {name: getattr(config, name) for name in [*needed, "faults"]}
    return replace(prepared(StudyConfig().replace(**values)), config=config)


def trial(config: StudyConfig, fields: Sequence[str]) -> dict:
    """Return one row: the columns and the final selection scores; zero F1 for a diverged run."""
    try:
        _, progress = runs.train_adapter(shared(config), resumable=False)
    except TrainingError as error:
        return trial_row(config, fields, error)
    return trial_row(config, fields, progress)


def trial_row(
    config: StudyConfig, fields: Sequence[str], outcome: Progress | TrainingError
) -> dict:
    row = columns(config, fields)
    if isinstance(outcome, TrainingError):
        return row | {"selection_f1": 0.0, "diverged": str(outcome)}
    row |= prefixed("selection", outcome.selection[-1])
    if outcome.warmup:
        row["warmup_fvu"] = outcome.warmup[-1]["fvu"]
    return row | {"seconds": sum(step["seconds"] for step in outcome.curve)}


def tested(config: StudyConfig, fields: Sequence[str]) -> dict:
    """Return one row: the columns and the results of the run's record, made now if missing."""
    path = store.adapter_folder(config) / "record.json"
    try:
        record = store.read_json(path if path.exists() else runs.run(config, shared(config)))
    except TrainingError as error:
        return columns(config, fields) | {"diverged": str(error)}
    results = record["results"]
    row = columns(config, fields) | prefixed("selection", results["selection"])
    row |= prefixed("tokens", results["tokens_supervised"])
    row |= {name: value for name, value in results.items() if not isinstance(value, dict)}
    return row | results["test"] | results["reconstruction"]


def trial_group(configs: Sequence[StudyConfig], fields: Sequence[str]) -> list[dict]:
    """Return the rows of trials that share passes."""
    _, found = together.train_group(shared(configs[0]), configs)
    outcomes = zip(configs, found, strict=True)
    return [trial_row(config, fields, outcome) for config, outcome in outcomes]


def tested_group(configs: Sequence[StudyConfig], fields: Sequence[str]) -> list[dict]:
    """Return the rows of runs that share passes, and write a record of each; see `tested`."""
    missing = [c for c in configs if not (store.adapter_folder(c) / "record.json").exists()]
    diverged = {}
    if missing:
        study = shared(missing[0])
        trained, found = together.train_group(study, missing)
        scored = together.test_group(study, missing, trained)
        for config, adapter, progress, results in zip(missing, trained, found, scored, strict=True):
            if isinstance(progress, TrainingError):
                diverged[config] = columns(config, fields) | {"diverged": str(progress)}
            else:
                runs.write_adapter(replace(study, config=config), adapter, progress, *results)
    return [diverged.get(config) or tested(config, fields) for config in configs]


def work(kind: str, configs: Sequence[StudyConfig], fields: Sequence[str]) -> list[dict]:
    """Return the rows of some configs: alone where it is one, else in shared passes.

    Half of them share passes where memory runs out for what all have apart from the passes.
    """
    alone = {"trials": trial, "runs": tested}[kind]
    if len(configs) == 1:
        return [alone(configs[0], fields)]
    try:
        return {"trials": trial_group, "runs": tested_group}[kind](configs, fields)
    except TrainingError as error:  # whose, it does not say: a warm-up diverged, or a row is long
        print(f"one by one: {error}", file=sys.stderr)
        size = 1
    except torch.OutOfMemoryError as error:
        print(f"half of {len(configs)} adapters at a time: {error}", file=sys.stderr)
        size = math.ceil(len(configs) / 2)
    torch.cuda.empty_cache()
    parts = [configs[i : i + size] for i in range(0, len(configs), size)]
    return [row for part in parts for row in work(kind, part, fields)]


def grid(preset: str, vary: dict[str, list]) -> list[StudyConfig]:
    """Return every combination of the varied fields on the preset, checked before anything runs."""
    vary = {"objective": list(OBJECTIVES)} | vary
    for field, values in vary.items():
        require(len(values) > 0, f"--vary {field}", values, "at least one value")
    base = load_preset(preset)
    configs = []
    for combination in itertools.product(*vary.values()):
        configs.append(base.replace(**dict(zip(vary, combination, strict=True))))
        find(configs[-1].objective)
    return configs


def sweep(
    kind: str,
    configs: list[StudyConfig],
    table: Path,
    processes: int,
    size: int = 1,
    extend: bool = False,
) -> None:
    """Run the configs in a process pool and rewrite the whole table after each group of them.

    Up to `size` of them share the passes of one process. With `extend`, trials go on beyond the
    edges of the grid of learning rates; see `search.beyond_edges`. A failed run does not stop the
    others; RuntimeError is raised at the end. Where runs failed or the sweep was interrupted, the
    CSV has the finished ones, and nothing else is written: no table has answers of half a grid.
    """
    fields, failures = recorded_fields(configs), []
    rows: dict[StudyConfig, dict] = {}
    order = [*(name for name in fields if name != "seed"), "seed"]
    bar = {"desc": kind, "file": sys.stdout, "mininterval": 5}
    with pool_of(processes) as pool:
        todo = configs
        while todo:
            groups = together.groups(todo, size)
            futures = {pool.submit(work, kind, group, fields): group for group in groups}
            progress = tqdm(total=len(todo), **bar)
            for done in as_completed(futures):
                progress.update(len(futures[done]))
                if done.exception():
                    failures.append(done.exception())
                    continue
                rows |= zip(futures[done], done.result(), strict=True)
                store.write_csv(table, pd.DataFrame(rows.values()).sort_values(order))
            todo = search.beyond_edges(selection_f1(rows)) if extend else []
    if failures:
        message = f"{len(failures)} of {len(configs)} runs failed; the first: {failures[0]}"
        raise RuntimeError(message) from failures[0]
    if kind == "runs":
        store.write_table(table.with_suffix(".parquet"), answer_scores(configs))
        store.write_json(table.with_suffix(".json"), origins(configs))
        readings = gathered(configs, "gradients")
        if len(readings):
            store.write_table(table.with_suffix(".gradients.parquet"), readings)


def untrained(configs: Sequence[StudyConfig], varied: Sequence[str], table: Path) -> None:
    """Write the conditions that need no training, of every config in turn, and their scores."""
    parts, scores = [], []
    for config in configs:
        values = {name: getattr(config, name) for name in varied}
        answers, rebuilt = runs.test_untrained(prepare(config))
        parts.append(condition_table(answers, rebuilt).assign(**values))
        store.write_csv(table, pd.concat(parts))
        scores.append(in_float32(answers[["condition", *ANSWER_COLUMNS]]).assign(**values))
    found = pd.concat(scores, ignore_index=True)
    store.write_table(table.with_suffix(".parquet"), with_categories(found))


def selection_f1(rows: Mapping[StudyConfig, dict]) -> dict[StudyConfig, float]:
    return {config: row["selection_f1"] for config, row in rows.items()}


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
    parser.add_argument("--together", type=int, help="adapters that share passes, per process")
    extend = "trials: go on until the best learning rate of every cell lies inside its grid"
    parser.add_argument("--extend", action="store_true", help=extend)
    given = parser.parse_args()
    require(given.kind == "trials" or not given.extend, "--extend", given.kind, "trials")
    vary = {field: [yaml.safe_load(value) for value in values] for field, *values in given.vary}
    if given.kind == "untrained":
        objective = [load_preset(given.preset).objective]  # none is trained
        untrained(grid(given.preset, {"objective": objective} | vary), list(vary), given.table)
    else:
        size = given.together or (TOGETHER if torch.cuda.is_available() else 1)
        configs = grid(given.preset, vary)
        sweep(given.kind, configs, given.table, given.processes, size, given.extend)


if __name__ == "__main__":
    main()
