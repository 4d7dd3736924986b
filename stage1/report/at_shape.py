"""Blocks about the shape of Llama-3.1-8B: what its stages cost, and what the real experiment would.

Every number follows from the tables of `benchmarks/results/` and from the presets; only the price
is an assumption.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.report.evidence import BENCHMARKS
from stage1.scoring.tables import markdown_table

DOLLARS_PER_GPU_HOUR = 3.0
"""An assumed price, not a measurement."""
RECIPES = ("llama31_8b", "llama31_8b_as_found")
"""Presets whose adapters are compared: the recipe, and the analysed adapter."""
SEEDS = 5
UNTRAINED = ("pca_inverse", "codebook")
REFERENCES = 4
"""Conditions of a baseline: text, original embeddings, and the two floors."""
Uses = list[tuple[str, int, int]]
"""Stages with their counts, and how many times each happens."""


@dataclass(frozen=True)
class Stages:
    """The measured stages, and what follows from them."""

    table: pd.DataFrame

    def row(self, stage: str) -> pd.Series:
        """Return a stage's row. Raises RecordError where it was not measured."""
        rows = self.table[self.table["stage"] == stage].dropna(subset="seconds_per_unit")
        if not len(rows):
            raise store.RecordError(f"benchmarks/results/recipe_at_shape.csv lacks {stage!r}")
        return rows.iloc[0]

    def seconds(self, stage: str, count: int) -> float:
        row = self.row(stage)
        return row["first_seconds"] + count * row["seconds_per_unit"]

    def hours(self, uses: Uses) -> float:
        return sum(times * self.seconds(stage, count) for stage, count, times in uses) / 3600

    def peak(self, uses: Uses) -> float:
        return max(self.row(stage)["peak_GB"] for stage, _, _ in uses)


def measured(name: str, folder: Path) -> pd.DataFrame:
    """Read a benchmark's table. Raises RecordError, with the command, where it is missing."""
    path = folder / f"{name}.csv"
    if not path.exists():
        raise store.RecordError(f"run `python benchmarks/{name}.py` on a GPU")
    return pd.read_csv(path)


def start(processes: int) -> Uses:
    return [("load", 1, processes), ("PCA", 1, processes)]


def training(config: StudyConfig) -> Uses:
    """Return the stages of one adapter, from its warm-up to its record."""
    assert isinstance(config.batch_size, int)
    steps = config.epochs * math.ceil(config.train_examples / config.batch_size)
    selections = 1 + math.ceil(steps / config.selection_every) if config.selection_every else 1
    warmup: Uses = [("warm-up", config.warmup_steps, 1)] if config.warmup_steps else []
    answers: Uses = [
        ("answers, adapter", config.selection_examples, selections),
        ("answers, adapter", config.test_examples, 1),
    ]
    examples = config.epochs * config.train_examples
    return [("checksum", 1, 2), *warmup, ("training", examples, 1), *answers, ("record", 1, 1)]


def experiment() -> Iterator[tuple[str, Uses]]:
    """Yield the steps of the real experiment, that which answers soonest first."""
    config = load_preset(RECIPES[0])
    asked = config.test_examples
    answers: Uses = [(f"answers, {name}", asked, 1) for name in UNTRAINED]
    yield "PCA inverse and lookup, no training", [*start(1), *answers]
    baseline: Uses = [("answers, embeddings", asked, REFERENCES)]
    yield "a baseline decoded correctly, and two floors", [*start(1), *baseline]
    recipes = [use for name in RECIPES for use in training(load_preset(name))]
    yield "two recipes, one seed", [*start(len(RECIPES)), *recipes]
    more = SEEDS - 1
    again: Uses = [(stage, count, times * more) for stage, count, times in recipes]
    yield f"two recipes, {SEEDS} seeds in all", [*start(len(RECIPES) * more), *again]


def cost_table(stages: Stages) -> pd.DataFrame:
    """Return GPU hours, dollars and memory of every step, and the sums so far."""
    rows, hours = [], 0.0
    for step, uses in experiment():
        own = stages.hours(uses)
        hours += own
        dollars = DOLLARS_PER_GPU_HOUR * own
        row = {"step": step, "GPU hours": own, "dollars": dollars, "peak GB": stages.peak(uses)}
        so_far = {"GPU hours so far": hours, "dollars so far": DOLLARS_PER_GPU_HOUR * hours}
        rows.append(row | so_far)
    return pd.DataFrame(rows).round({"peak GB": 1}).round(2)


def cost(folder: Path = BENCHMARKS) -> str:
    """Return the cost of the real experiment, as a table and a sentence."""
    table = measured("recipe_at_shape", folder)
    config = load_preset(RECIPES[0])
    sentence = (
        f"{machine_of(table)} at an assumed {DOLLARS_PER_GPU_HOUR:g} dollars per hour; "
        f"{config.train_examples:,} questions x {config.epochs}, {config.test_examples:,} test "
        f"questions, recipes {' and '.join(f'`{name}`' for name in RECIPES)}. Learning rates are "
        "not searched: each one tried costs another adapter. Answers were timed at their full "
        "length, so real ones cost less."
    )
    return f"{sentence}\n\n{markdown_table(cost_table(Stages(table)))}"


def stage_table(folder: Path = BENCHMARKS) -> str:
    """Return the measured stages."""
    table = measured("recipe_at_shape", folder)
    columns = ["stage", "unit", "first_seconds", "seconds_per_unit", "peak_GB"]
    return markdown_table(table[columns].round({"peak_GB": 1}).round(4))


def machine_of(table: pd.DataFrame) -> str:
    return f"On one {table['machine'].iloc[0].split(',')[0]}"


def spectrum(folder: Path) -> str:
    """Say which power law the random table has, and what it was fitted to."""
    table = measured("spectrum", folder).set_index(["language_model", "weighting"])
    own, other = table.loc[("english", "token")], table.loc[("shipped", "token")]
    return (
        f"Eigenvalue i of the table is proportional to i^-{own['exponent']:.2f}, as fitted to the "
        f"English reader's (the almanac reader's exponent is {other['exponent']:.2f})."
    )


def prompt_by_prompt(table: pd.DataFrame) -> str:
    """Say what a step of the same objective takes prompt by prompt."""
    rows = table[table["path"] == "per prompt"].dropna(subset="ms_per_step")
    times = [f"{row.ms_per_step:.1f} ms in {row.precision}" for row in rows.itertuples()]
    if not times:
        raise store.RecordError("benchmarks/results/warmup_at_shape.csv lacks 'per prompt'")
    tokens = rows["rows_per_step"].iloc[0]
    return f"Prompt by prompt, a step of {tokens:,.0f} tokens takes {', '.join(times)}."


def warmup(folder: Path = BENCHMARKS) -> str:
    """Return the speed and the error of every setting of the warm-up."""
    table = measured("warmup_at_shape", folder)
    settings = ["batch", "steps", "rate", "precision", "mode", "optimizer"]
    numbers = ["ms_per_step", "seconds_of_schedule", "flat_seconds", "table_fvu", "peak_GB"]
    ratios = ["times_per_prompt", "times_at_same_precision", "times_per_step"]
    own = table[table["path"] == "table"].dropna(subset="ms_per_step")
    own = own.astype({"batch": int, "steps": int})
    digits = dict.fromkeys(["ms_per_step", "table_fvu"], 3) | dict.fromkeys(numbers[1:3], 1)
    shown = own[[*settings, *numbers, *ratios]].round(digits | {"peak_GB": 1}).astype(object)
    shown = markdown_table(shown.where(shown.notna(), "not run to the end"))
    return f"{machine_of(table)}. {spectrum(folder)} {prompt_by_prompt(table)}\n\n{shown}"


def peers(folder: Path = BENCHMARKS) -> str:
    """Return the training step beside what people use."""
    table = measured("peers", folder)
    columns = ["path", "batch", "examples_per_s", "peak_GB", "ours_is_faster"]
    digits = {"examples_per_s": 1, "peak_GB": 1, "ours_is_faster": 2}
    shown = table.reindex(columns=[*columns, "note"]).round(digits).astype({"batch": "Int64"})
    shown = shown.astype(object)
    return f"{machine_of(table)}.\n\n{markdown_table(shown.where(shown.notna(), ''))}"
