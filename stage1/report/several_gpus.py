"""What was run on several GPUs of one machine: `benchmarks/several_gpus.py` in tables and words."""

from pathlib import Path

import pandas as pd

from stage1 import store
from stage1.report.evidence import BENCHMARKS

NAME = "several_gpus"
TARGET = 1.9  # times one GPU, with two
STEP = "training step"
CHECKS = ["case", "difference", "tolerance"]
RATES = {
    "seconds": 3,
    "slowest": 3,
    "seconds_alone": 3,
    "all_reduce_s": 4,
    "examples_per_s": 1,
    "tokens_per_s": 0,
    "per_minute": 1,
    "per_minute_training": 1,
    "peak_GB": 1,
    "times_one_gpu": 2,
}
"""Columns of rates and their decimals."""


def with_times(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with `times_one_gpu`: a row's rate over that of one GPU's first row.

    Rates are examples per second of the training step, and adapters per minute of a sweep.
    """
    table = table.copy()
    for rate in ("examples_per_s", "per_minute"):
        if rate in table:
            alone = table.loc[(table["gpus"] == 1) & table[rate].notna(), rate]
            if len(alone):
                times = table[rate] / alone.iloc[0]
                table["times_one_gpu"] = times.combine_first(
                    table.get("times_one_gpu", pd.Series(index=table.index, dtype=float))
                )
    return table


def load(folder: Path = BENCHMARKS) -> tuple[pd.DataFrame, dict]:
    """Return the table and how it was made. Raises RecordError where it was not."""
    with store.record_errors(folder / f"{NAME}.csv"):
        table = pd.read_csv(folder / f"{NAME}.csv")
    return table, store.read_json(folder / f"{NAME}.json")["results"]


def summary(folder: Path = BENCHMARKS) -> list[str]:
    """Return what was run in sentences, or that nothing was."""
    try:
        table, made = load(folder)
    except store.RecordError:
        return [
            "Training on two or more GPUs has not been run, and neither has a model sharded over "
            "them (`device: sharded`)."
        ]
    return [machine(made), *sentences(table)]


def machine(made: dict) -> str:
    """Say on what, when and by which commands the table was made."""
    runs = made["runs"]
    gpus, dates = runs[-1]["gpus"], sorted({run["date"] for run in runs})
    on = f"{len(gpus)} x {gpus[0]}" if gpus else "a CPU, as a rehearsal"
    commands = " and ".join(f"`{run['command']}`" for run in runs)
    return f"Measured on {on}, {' and '.join(dates)} ({commands})."


def column(table: pd.DataFrame, name: str) -> pd.Series:
    """Return a column; missing values where no row had one."""
    return table[name] if name in table else pd.Series(index=table.index, dtype=float)


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a rate, rounded; empty cells where a reading does not apply."""
    kept = table[column(table, "times_one_gpu").notna()]
    shown = kept[["case"]].copy()
    for name in ("gpus", "batch"):
        shown[name] = [f"{value:.0f}" for value in column(kept, name)]
    for name, decimals in RATES.items():
        if column(kept, name).notna().any():
            shown[name] = [f"{value:.{decimals}f}" for value in kept[name]]
    return shown.replace("nan", "")


def checks(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that compare, with relative differences in short notation."""
    if "tolerance" not in table:
        return pd.DataFrame(columns=CHECKS)
    shown = table.loc[table["tolerance"].notna(), CHECKS].astype(object)
    for name in ("difference", "tolerance"):
        shown[name] = [f"{value:.1e}" if value else "0" for value in shown[name]]
    return shown


def sentences(table: pd.DataFrame) -> list[str]:
    """Return what the table says, a paragraph per part; parts without rows are left out."""
    parts = (data_parallel, agreement, sharded, sweep, killed, failures)
    return [text for part in parts if (text := part(table))]


def rate_of(table: pd.DataFrame, gpus: int, batch: float) -> pd.Series | None:
    """Return the training step's row, if it was measured."""
    found = table[(table["case"] == STEP) & (table["gpus"] == gpus) & (table["batch"] == batch)]
    found = found[column(found, "examples_per_s").notna()]
    return found.iloc[0] if len(found) else None


def data_parallel(table: pd.DataFrame) -> str:
    """Say how much faster several GPUs train, and what bounds it."""
    steps = table[(table["case"] == STEP) & column(table, "examples_per_s").notna()]
    if steps["gpus"].nunique() < 2:
        return ""
    gpus, batch = int(steps["gpus"].max()), steps["batch"].iloc[0]
    one, part = rate_of(table, 1, batch), rate_of(table, 1, batch // gpus)
    equal, larger = rate_of(table, gpus, batch), rate_of(table, gpus, batch * gpus)
    if one is None or part is None or equal is None or larger is None:
        return ""
    share = part["examples_per_s"] / one["examples_per_s"]
    return (
        f"{gpus} GPUs train {equal['times_one_gpu']:.2f} times as many examples per second as one "
        f"at the same global batch of {batch:.0f}, and {larger['times_one_gpu']:.2f} times at "
        f"{batch:.0f} per GPU (target {TARGET}). At the same global batch a GPU reads "
        f"{batch // gpus:.0f} examples, at {100 * share:.0f} % of its rate with {batch:.0f}, which "
        f"bounds the gain at {gpus * share:.2f}. Of a step's {equal['seconds']:.3f} s, the sum of "
        f"the gradients over the processes takes {equal['all_reduce_s']:.3f} s; without any "
        f"communication the slower process takes {equal['seconds_alone']:.3f} s."
    )


def agreement(table: pd.DataFrame) -> str:
    """Say how many comparisons lie within their tolerance, and name those that do not."""
    if "tolerance" not in table:
        return ""
    compared = table[table["tolerance"].notna()]
    outside = compared[~(compared["difference"] <= compared["tolerance"])]
    text = f"{len(compared) - len(outside)} of {len(compared)} comparisons are within tolerance."
    names = "; ".join(outside["case"])
    return f"{text} Outside: {names}." if names else text


def sharded(table: pd.DataFrame) -> str:
    found = table[(table["part"] == "sharded") & column(table, "examples_per_s").notna()]
    if found.empty:
        return ""
    row = found.iloc[-1]  # compiled, if it could be
    times = f", {row['times_one_gpu']:.2f} times one GPU's rate" if row["times_one_gpu"] > 0 else ""
    return (
        f"With the model's layers spread over {row['gpus']:.0f} GPUs (`device: sharded`), one "
        f"process trains {row['examples_per_s']:.1f} examples per second at batch "
        f"{row['batch']:.0f}{times}, with a peak of {row['peak_GB']:.1f} GB per GPU: the GPUs work "
        "in turn, so it serves models that do not fit on one."
    )


def sweep(table: pd.DataFrame) -> str:
    found = table[(table["part"] == "adapters") & column(table, "per_minute").notna()]
    if len(found) < 2:
        return ""
    one, several = found.iloc[0], found.iloc[-1]
    training = several["per_minute_training"] / one["per_minute_training"]
    return (
        f"A sweep trains {one['per_minute']:.0f} adapters per minute on one GPU and "
        f"{several['per_minute']:.0f} on {several['gpus']:.0f} ({several['times_one_gpu']:.2f} "
        f"times, with the set-up of its processes; {training:.2f} times without)."
    )


def killed(table: pd.DataFrame) -> str:
    found = table[(table["part"] == "kill") & column(table, "resumes_at").notna()]
    if found.empty:
        return ""
    row = found.iloc[0]
    left = f" ({row['alive']:.0f} outlived it)" if row["alive"] else ""
    return (
        f"After SIGKILL of one training process the others are gone within {row['seconds']:.1f} s"
        f"{left}, and the launcher reports the failure. The same command resumes at step "
        f"{row['resumes_at']:.0f}."
    )


def failures(table: pd.DataFrame) -> str:
    failed = table[column(table, "error").notna()]
    named = [f"{row['part']} ({row['case']}): {row['error']}" for _, row in failed.iterrows()]
    return f"Not measured: {'; '.join(named)}." if named else ""
