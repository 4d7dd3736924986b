"""Real English: the readers' adapters, beside those of the almanac, and what carries over.

Tables are read from `records/english/`, and those of other widths from folders within;
`docs/readers.md` has the commands that made them.
"""

from dataclasses import dataclass

import pandas as pd

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.names import FLOORS, OBJECTIVES
from stage1.report import results
from stage1.report.controls import edge
from stage1.report.evidence import AS_FOUND, START
from stage1.report.verdicts import adapter_name
from stage1.scoring import comparison
from stage1.scoring.comparison import Difference
from stage1.scoring.intervals import Interval
from stage1.scoring.tables import retention

FOLDER = "english"
SHIPPED = store.ASSETS / "english-lm"
PCA_INVERSE = ("pca_inverse", "calibrated")
STARTS = (PCA_INVERSE, AS_FOUND)
RECIPE, RECONSTRUCTION = "option3_teacher_forced", "option1_reconstruction"
"""The objective of the almanac's recommendation, and the one that reads no language model."""


@dataclass(frozen=True)
class English:
    """The tables of the runs on one English language model."""

    config: StudyConfig
    training: dict
    """How the language model was trained, and what it scored."""
    runs: pd.DataFrame
    """One row per objective, start, warm-up and seed, all at 8x."""
    scores: pd.DataFrame
    """The scores of every answer of these runs."""
    untrained: pd.DataFrame
    """The conditions that need no training, at 8x."""
    trials: pd.DataFrame
    """Trials of learning rates, scored on the selection split."""

    @property
    def D(self) -> int:
        return self.training["shape"]["width"]

    @property
    def K(self) -> int:
        """The width of 8x compression."""
        return self.D // 8

    def untrained_row(self, condition: str) -> pd.Series:
        return self.untrained.set_index("condition").loc[condition]

    def untrained_f1(self, condition: str) -> Interval:
        row = self.untrained_row(condition)
        return Interval(row["f1"], row["f1_low"], row["f1_high"])

    @property
    def ceiling(self) -> float:
        return self.untrained_f1("embeddings").mean

    @property
    def floor(self) -> float:
        return max(self.untrained_f1(name).mean for name in FLOORS)

    def retention(self, f1: Interval) -> Interval:
        return Interval(*(retention(x, self.ceiling, self.floor) for x in f1))

    def cells(self, table: pd.DataFrame, is_warm: bool = True) -> pd.DataFrame:
        """Return the rows with or without a warm-up."""
        return table[(table["warmup_steps"] > 0) == is_warm]

    def select(
        self,
        table: pd.DataFrame,
        objective: str,
        start: tuple = PCA_INVERSE,
        is_warm: bool = True,
    ) -> pd.DataFrame:
        """Return the rows of one cell of the study."""
        cells = self.cells(table, is_warm)
        own = (cells[START] == list(start)).all(axis=1) & (cells["objective"] == objective)
        return cells[own]

    def f1(self, objective: str, start: tuple = PCA_INVERSE, is_warm: bool = True) -> Interval:
        return comparison.interval(self.select(self.scores, objective, start, is_warm))

    def has(self, objective: str, start: tuple = PCA_INVERSE, is_warm: bool = True) -> bool:
        return len(self.select(self.runs, objective, start, is_warm)) > 0

    def table(self, is_warm: bool = True) -> pd.DataFrame:
        """Return one row per objective and start at 8x, the best first."""
        rows = []
        for (objective, *start), runs in self.cells(self.runs, is_warm).groupby(
            ["objective", *START]
        ):
            f1 = self.f1(objective, tuple(start), is_warm=is_warm)
            row = {"objective": objective, "start": adapter_name(tuple(start)), **f1._asdict()}
            row |= {"em": runs["em"].mean(), "retention": self.retention(f1).mean}
            row |= {"fvu": runs["fvu"].mean(), "seeds": len(runs)}
            rows.append(row | {"learning rate": self.rate(objective, tuple(start), is_warm)})
        table = pd.DataFrame(rows).rename(
            columns={"mean": "f1", "low": "f1_low", "high": "f1_high"}
        )
        return table.sort_values("f1", ascending=False, ignore_index=True)

    def cells_table(self) -> pd.DataFrame:
        """Return the rows of `table` with a warm-up and without, the best first."""
        parts = [self.table(is_warm).assign(**{"warm-up": is_warm}) for is_warm in (True, False)]
        table = pd.concat(parts).sort_values("f1", ascending=False, ignore_index=True)
        table.insert(0, "D", self.D)
        return table

    def rate(self, objective: str, start: tuple = PCA_INVERSE, is_warm: bool = True) -> str:
        """Return the learning rate of a cell's runs, and how well it was searched."""
        runs, trials = (
            self.select(table, objective, start, is_warm) for table in (self.runs, self.trials)
        )
        rate = f"{runs['learning_rate'].iloc[0]:g}"
        if trials.empty:
            return f"{rate}, not searched"
        return f"{rate}, at the edge" if edge(trials) is not None else rate

    def shared(self, one: tuple, other: tuple) -> str | None:
        """Return the first objective with runs in both cells (start, warm-up), if there is any.

        The one recommended on the almanac comes first, reconstruction alone last.
        """
        names = sorted(OBJECTIVES, key=lambda name: (name != RECIPE, name == RECONSTRUCTION))
        return next((n for n in names if self.has(n, *one) and self.has(n, *other)), None)

    def on_selection(self) -> pd.DataFrame:
        """Return the best trial of every cell at 8x: F1 on the selection split, and its rate."""
        rows, cell = [], ["objective", *START, "warmup_steps"]
        for (objective, *start, steps), trials in self.trials.groupby(cell):
            best = trials.loc[trials["selection_f1"].idxmax()]
            rate = f"{best['learning_rate']:g}"
            rows.append(
                {
                    "objective": objective,
                    "start": adapter_name(tuple(start)),
                    "warm-up steps": steps,
                    "selection F1": best["selection_f1"],
                    "learning rate": rate if edge(trials) is None else f"{rate}, at the edge",
                    "rates": trials["learning_rate"].nunique(),
                }
            )
        table = pd.DataFrame(rows).sort_values("selection F1", ascending=False, ignore_index=True)
        table.insert(0, "D", self.D)
        return table


def difference_of(e: English, one: tuple, other: tuple) -> Difference:
    """Return the F1 of one cell (objective, start, warm-up) minus that of another."""
    first, second = (e.select(e.scores, *cell) for cell in (one, other))
    return comparison.difference(first, second, margin=e.config.equivalence_margin)


def load(name: str = FOLDER) -> English:
    """Read the tables of the reader that ships, or of one in `records/english/NAME/`.

    Raises RecordError for a missing table.
    """
    place = FOLDER if name == FOLDER else f"{FOLDER}/{name}"
    folder = store.records_folder() / place
    training = store.read_json((SHIPPED if name == FOLDER else folder) / "training.json")

    def tables(ending: str) -> pd.DataFrame:
        names = sorted(path.name for path in folder.glob(f"runs_*.{ending}"))
        parts = [results.committed(place, name) for name in names or [f"runs_warm.{ending}"]]
        return pd.concat(parts, ignore_index=True)

    others = (results.committed(place, name) for name in ("untrained.csv", "trials.csv"))
    return English(load_preset("squad"), training, tables("csv"), tables("parquet"), *others)
