"""Read what runs left, and tabulate objectives, adapters and seeds side by side."""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pandas as pd
from IPython.display import HTML

from stage1 import gallery, store
from stage1.config import StudyConfig, presets
from stage1.fields import GROUPS, options
from stage1.names import FLOORS, OBJECTIVES
from stage1.scoring.tables import retention

ADAPTER = ["objective", "initialisation", "output_scaling"]


def config_table(config: StudyConfig) -> HTML:
    """Return all fields of the config, grouped by their owners and folded away.

    Above them, in sight, the faults that the run carries.
    """
    rows = [(option.group, name, getattr(config, name)) for name, option in options(config).items()]
    table = pd.DataFrame(rows, columns=["group", "field", "value"])
    table["group"] = pd.Categorical(table["group"], GROUPS)
    table = table.sort_values("group", kind="stable").set_index(["group", "field"])
    table.columns = [store.run_name(config)]
    faults = gallery.sentences(config.faults)
    warning = f"<p><strong>This run carries faults.</strong> {faults}</p>" if faults else ""
    return HTML(f"{warning}<details><summary>Config</summary>{table.to_html()}</details>")


def planned(config: StudyConfig) -> list[StudyConfig]:
    """Return the configs of the adapters that a report needs: every objective with every seed."""
    seeds = range(config.seeds)
    return [config.replace(objective=name, seed=seed) for name in OBJECTIVES for seed in seeds]


def adapter_records(config: StudyConfig) -> list[dict]:
    """Return the records of all planned adapters.

    Raises RecordError with the command that trains the first missing one, and for a record of other
    faults than the config's.
    """
    records = []
    for run in planned(config):
        path = store.adapter_folder(run) / "record.json"
        if not path.exists():
            preset = config.preset if config.preset in presets() else f"{config.preset}.yaml"
            raise store.RecordError(
                f"{path}: this adapter has not been trained yet; train all of them with "
                f"`make report PRESET={preset}`, or this one with "
                f"`papermill notebooks/02_train_adapter.ipynb out.ipynb -p preset {preset} "
                f"-p objective {run.objective} -p seed {run.seed}`"
            )
        records.append(store.read_json(path))
        check_faults(path, records[-1]["config"].get("faults", gallery.NONE), config.faults)
    return records


def check_faults(path: Path, found: str, expected: str = gallery.NONE) -> None:
    """Raise RecordError unless a record carries the expected faults: none, if it is evidence."""
    if found != expected:
        raise store.RecordError(f"{path}: its faults are {found!r}; expected {expected!r}")


def table_path(run: StudyConfig, name: str) -> Path:
    return store.adapter_folder(run) / f"{name}.parquet"


def adapter_answers(config: StudyConfig) -> pd.DataFrame:
    """Return every answer of the planned adapters, with `seed`; `condition` is the objective."""
    runs = planned(config)
    return pd.concat(
        store.read_table(table_path(run, "answers")).assign(seed=run.seed) for run in runs
    )


def training_tables(runs: list[StudyConfig], name: str) -> list[pd.DataFrame]:
    """Return a table of each run, with `objective` and `seed`."""
    return [
        store.read_table(table_path(run, name)).assign(objective=run.objective, seed=run.seed)
        for run in runs
    ]


def curves(config: StudyConfig) -> pd.DataFrame:
    """Return the training curves of the planned adapters, with `objective` and `seed`."""
    return pd.concat(training_tables(planned(config), "curve"))


def gradient_readings(config: StudyConfig) -> pd.DataFrame:
    """Return the gradient readings of the planned adapters, with `objective` and `seed`.

    Only objectives of several terms have any. Raises RecordError if none has.
    """
    runs = [run for run in planned(config) if table_path(run, "gradients").exists()]
    if not runs:
        folder = store.run_folder(config)
        raise store.RecordError(
            f"{folder}: there are no gradient readings; set gradients_every and train again"
        )
    return pd.concat(training_tables(runs, "gradients"), ignore_index=True)


def committed(preset: str, name: str, may_be_faulty: bool = False) -> pd.DataFrame:
    """Return a committed table, CSV or parquet.

    Raises RecordError if it is missing or, unless it may be faulty, if one of its runs carries a
    fault: no evidence takes such a run.
    """
    path = store.records_folder() / preset / name
    if not path.is_file():
        raise store.RecordError(f"{path}: no such table; `python -m stage1.study.sweep` makes it")
    return table_at(path, may_be_faulty)


def table_at(path: Path, may_be_faulty: bool = False) -> pd.DataFrame:
    """Return the table of a sweep, wherever it lies; refuses faulty runs as `committed` does."""
    table = pd.read_csv(path) if path.suffix == ".csv" else store.read_table(path)
    if "faults" in table and not may_be_faulty:
        for faults in table["faults"].unique():
            check_faults(path, faults)
    return table


def budget_table(runs: pd.DataFrame, untrained: pd.DataFrame) -> pd.DataFrame:
    """Return one row per objective and adapter, with means over seeds on the test questions.

    F1 with its standard deviation over seeds, `f1_sd`, EM, retention, fvu and the number of seeds.
    """
    f1 = untrained.set_index("condition")["f1"]
    floor, ceiling = f1[FLOORS].max(), f1["embeddings"]
    means = {name: (name, "mean") for name in ("f1", "em", "fvu")}
    spread = {"f1_sd": ("f1", "std"), "seeds": ("f1", "count")}
    table = runs.groupby(ADAPTER, sort=False).agg(**means, **spread).reset_index()
    table["retention"] = [retention(mean, ceiling, floor) for mean in table["f1"]]
    table = table[[*ADAPTER, "f1", "f1_sd", "em", "retention", "fvu", "seeds"]]
    order = {name: rank for rank, name in enumerate(OBJECTIVES)}
    return table.sort_values(
        ADAPTER, key=lambda column: column.map(order) if column.name == "objective" else column
    )


def headline(budget: pd.DataFrame) -> pd.DataFrame:
    """Return F1 as `mean ± standard deviation`: objectives in rows, adapters in columns."""
    words = budget[["objective"]].assign(
        adapter=budget["initialisation"] + ", " + budget["output_scaling"],
        f1=budget["f1"].map("{:.1f} ± ".format) + budget["f1_sd"].map("{:.1f}".format),
    )
    wide = words.pivot(index="objective", columns="adapter", values="f1")
    known = [name for name in OBJECTIVES if name in wide.index]
    return wide.loc[known].rename_axis(columns=None).reset_index()


def crossover(shares: Mapping[float, float]) -> float:
    """Return the weight at which a share passes one half, interpolated in log weight.

    `shares` maps weights to shares that grow with them. Returns nan if none passes one half.
    """
    points = sorted((weight, share) for weight, share in shares.items() if weight > 0)
    for (low, below), (high, above) in pairwise(points):
        if below <= 0.5 <= above and below < above:
            return float(low * (high / low) ** ((0.5 - below) / (above - below)))
    return math.nan
