"""Reads what runs have left, and sets conditions, seeds and factors against each other."""

import math
from collections.abc import Mapping
from itertools import pairwise

import pandas as pd
from IPython.display import HTML

from stage1 import store
from stage1.config import StudyConfig
from stage1.fields import GROUPS, options
from stage1.names import FLOORS, OBJECTIVES
from stage1.scoring.tables import retention

ADAPTER = ["objective", "initialisation", "output_scaling"]


def config_table(config: StudyConfig) -> HTML:
    """All fields of the config, grouped by their owners, folded away."""
    rows = [(option.group, name, getattr(config, name)) for name, option in options(config).items()]
    table = pd.DataFrame(rows, columns=["group", "field", "value"])
    table["group"] = pd.Categorical(table["group"], GROUPS)
    table = table.sort_values("group", kind="stable").set_index(["group", "field"])
    table.columns = [store.run_name(config)]
    return HTML(f"<details><summary>Config</summary>{table.to_html()}</details>")


def planned(config: StudyConfig) -> list[StudyConfig]:
    """The adapters that the report of a config trains: every objective with each of its seeds."""
    return [
        config.replace(objective=name, seed=seed)
        for name in OBJECTIVES
        for seed in range(config.seeds)
    ]


def adapter_records(config: StudyConfig) -> list[dict]:
    """The records of all planned adapters. Raises RecordError with the command that makes the first one missing."""
    records = []
    for run in planned(config):
        path = store.adapter_folder(run) / "record.json"
        if not path.exists():
            raise store.RecordError(
                f"{path}: this adapter has not been trained yet; make all of them with `make report "
                f"PRESET={config.preset}`, or this one with `papermill notebooks/02_train_adapter.ipynb out.ipynb "
                f"-p preset {config.preset} -p objective {run.objective} -p seed {run.seed}`"
            )
        records.append(store.read_json(path))
    return records


def adapter_answers(config: StudyConfig) -> pd.DataFrame:
    """Every answer of the planned adapters: the condition is the objective's name, `seed` the adapter's."""
    folders = {run: store.adapter_folder(run) for run in planned(config)}
    return pd.concat(
        store.read_table(folder / "answers.parquet").assign(seed=run.seed)
        for run, folder in folders.items()
    )


def curves(config: StudyConfig) -> pd.DataFrame:
    """The training curves of the planned adapters, with `objective` and `seed`."""
    return pd.concat(
        store.read_table(store.adapter_folder(run) / "curve.parquet").assign(
            objective=run.objective, seed=run.seed
        )
        for run in planned(config)
    )


def gradient_readings(config: StudyConfig) -> pd.DataFrame:
    """What was read of the terms' gradients while the planned adapters trained, with `objective` and `seed`; only
    objectives of several terms leave such a table. Raises RecordError where none of them did."""
    folders = {run: store.adapter_folder(run) / "gradients.parquet" for run in planned(config)}
    tables = [
        store.read_table(path).assign(objective=run.objective, seed=run.seed)
        for run, path in folders.items()
        if path.exists()
    ]
    if not tables:
        raise store.RecordError(
            f"{store.run_folder(config)}: no gradients were read; set gradients_every and train anew"
        )
    return pd.concat(tables, ignore_index=True)


def committed(preset: str, name: str) -> pd.DataFrame:
    """A committed table of runs that took a GPU, CSV or parquet. Raises RecordError where it is missing."""
    path = store.records_folder() / preset / name
    if not path.is_file():
        raise store.RecordError(f"{path}: no such table; `python -m stage1.study.sweep` makes it")
    return pd.read_csv(path) if path.suffix == ".csv" else store.read_table(path)


def budget_table(runs: pd.DataFrame, untrained: pd.DataFrame) -> pd.DataFrame:
    """One row per objective and adapter: means over seeds of F1 (with its standard deviation, `f1_sd`), EM, retention
    and fvu on the test questions, and how many seeds that is."""
    f1 = untrained.set_index("condition")["f1"]
    floor, ceiling = f1[FLOORS].max(), f1["embeddings"]
    measures = {
        "f1": ("f1", "mean"),
        "f1_sd": ("f1", "std"),
        "em": ("em", "mean"),
        "fvu": ("fvu", "mean"),
    }
    table = runs.groupby(ADAPTER, sort=False).agg(**measures, seeds=("f1", "count")).reset_index()
    table.insert(6, "retention", [retention(mean, ceiling, floor) for mean in table["f1"]])
    order = {name: place for place, name in enumerate(OBJECTIVES)}
    return table.sort_values(
        ADAPTER, key=lambda column: column.map(order) if column.name == "objective" else column
    )


def headline(budget: pd.DataFrame) -> pd.DataFrame:
    """F1 of a budget table as `mean ± standard deviation over seeds`: one row per objective, one column per adapter."""
    adapter = budget["initialisation"] + ", " + budget["output_scaling"]
    text = [
        f"{mean:.1f} ± {sd:.1f}" for mean, sd in zip(budget["f1"], budget["f1_sd"], strict=True)
    ]
    wide = budget.assign(adapter=adapter, text=text).pivot(
        index="objective", columns="adapter", values="text"
    )
    return wide.loc[list(OBJECTIVES)].rename_axis(columns=None).reset_index()


def crossover(grid: Mapping[float, float]) -> float:
    """The weight at which a share that grows with it passes one half, by interpolation in log weight; nan where it
    never does. `grid` maps weights to shares."""
    points = sorted((weight, share) for weight, share in grid.items() if weight > 0)
    for (low, below), (high, above) in pairwise(points):
        if below <= 0.5 <= above and below < above:
            return float(low * (high / low) ** ((0.5 - below) / (above - below)))
    return math.nan
