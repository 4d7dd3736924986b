"""Real English: the readers' adapters, beside those of the almanac, and what carries over.

Tables are read from `records/english/`, and those of other widths from folders within;
`docs/readers.md` has the commands that made them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.names import FLOORS, OBJECTIVES
from stage1.report import results
from stage1.report.controls import edge
from stage1.report.evidence import AS_FOUND, START, Evidence
from stage1.report.verdicts import adapter_name, signed
from stage1.scoring import comparison
from stage1.scoring.comparison import Difference
from stage1.scoring.intervals import Interval
from stage1.scoring.tables import retention

FOLDER = "english"
SHIPPED = store.ASSETS / "english-lm"
PCA_INVERSE = ("pca_inverse", "calibrated")
STARTS = (PCA_INVERSE, AS_FOUND)


@dataclass(frozen=True)
class English:
    """The tables of the runs on one English language model."""

    config: StudyConfig
    training: dict
    """How the language model was trained, and what it scored."""
    runs: pd.DataFrame
    """One row per objective, start, warm-up, width K and seed."""
    scores: pd.DataFrame
    """The scores of every answer of these runs."""
    untrained: pd.DataFrame
    """The conditions that need no training, at every width K that was measured."""
    trials: pd.DataFrame
    """Trials of learning rates, scored on the selection split."""

    @property
    def D(self) -> int:
        return self.training["shape"]["width"]

    @property
    def K(self) -> int:
        """The width of 8x compression."""
        return self.D // 8

    def untrained_row(self, condition: str, width: int | None = None) -> pd.Series:
        at_width = self.untrained["compressed_width"] == (width or self.K)
        return self.untrained[at_width].set_index("condition").loc[condition]

    def untrained_f1(self, condition: str, width: int | None = None) -> Interval:
        row = self.untrained_row(condition, width)
        return Interval(row["f1"], row["f1_low"], row["f1_high"])

    @property
    def ceiling(self) -> float:
        return self.untrained_f1("embeddings").mean

    @property
    def floor(self) -> float:
        return max(self.untrained_f1(name).mean for name in FLOORS)

    def retention(self, f1: Interval) -> Interval:
        return Interval(*(retention(x, self.ceiling, self.floor) for x in f1))

    def cells(
        self, table: pd.DataFrame, is_warm: bool = True, width: int | None = None
    ) -> pd.DataFrame:
        """Return the rows with or without a warm-up, at a width K, by default that of 8x."""
        warm = (table["warmup_steps"] > 0) == is_warm
        return table[warm & (table["compressed_width"] == (width or self.K))]

    def select(
        self,
        table: pd.DataFrame,
        objective: str,
        start: tuple = PCA_INVERSE,
        is_warm: bool = True,
        width: int | None = None,
    ) -> pd.DataFrame:
        """Return the rows of one cell of the study."""
        cells = self.cells(table, is_warm, width)
        own = (cells[START] == list(start)).all(axis=1) & (cells["objective"] == objective)
        return cells[own]

    def f1(self, objective: str, start: tuple = PCA_INVERSE, **cell) -> Interval:
        return comparison.interval(self.select(self.scores, objective, start, **cell))

    def has(self, objective: str, start: tuple = PCA_INVERSE, **cell) -> bool:
        return len(self.select(self.runs, objective, start, **cell)) > 0

    def objective(self, almanac: Evidence) -> str:
        """Return the almanac's recommended objective, or else this model's best on selection."""
        name, runs = almanac.warmed.recommended, self.cells(self.runs)
        starts = runs.groupby("objective")["initialisation"].nunique()
        if starts.get(name, 0) == len(STARTS):
            return name
        runs = runs[runs["objective"].isin(starts[starts == len(STARTS)].index)]
        return str(runs.groupby("objective")["selection_f1"].mean().idxmax())

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

    def rate(self, objective: str, start: tuple = PCA_INVERSE, is_warm: bool = True) -> str:
        """Return the learning rate of a cell's runs, and how well it was searched."""
        runs, trials = (
            self.select(table, objective, start, is_warm) for table in (self.runs, self.trials)
        )
        rate = f"{runs['learning_rate'].iloc[0]:g}"
        if trials.empty:
            return f"{rate}, not searched"
        return f"{rate}, at the edge" if edge(trials) is not None else rate

    def gains(self) -> pd.DataFrame:
        """Return what the warm-up adds to the F1 of every objective and start at 8x."""
        rows = []
        for name in OBJECTIVES:
            for start in STARTS:
                if not (self.has(name, start) and self.has(name, start, is_warm=False)):
                    continue
                warm, cold = (self.f1(name, start, is_warm=is_warm) for is_warm in (True, False))
                gain = difference_of(self, (name, start, True), (name, start, False))
                row = {"objective": name, "start": adapter_name(start)}
                row |= {"without": str(cold), "with warm-up": str(warm)}
                rows.append(row | {"gain": signed(gain)})
        return pd.DataFrame(rows)

    def ratios(self, names: Iterable[str]) -> pd.DataFrame:
        """Return F1 at every ratio that was measured: of objectives, and without training."""
        rows = []
        for width in sorted(set(self.untrained["compressed_width"].tolist()), reverse=True):
            if width == self.D:
                continue
            row = {"ratio": f"{self.D / width:g}x", "K": width}
            row |= {"variance kept": 1 - self.untrained_row("pca_inverse", width)["fvu"]}
            for condition in ("codebook", "pca_inverse"):
                row[condition] = f"{self.untrained_f1(condition, width).mean:.1f}"
            for name in names:
                measured = self.has(name, width=width)
                row[name] = str(self.f1(name, width=width)) if measured else "–"
            rows.append(row)
        return pd.DataFrame(rows)

    def control(self) -> pd.DataFrame:
        """Return F1 of the uncompressed control, K = D from the identity, and its gain."""
        rows, cells = [], self.cells(self.scores, is_warm=False, width=self.D)
        ceiling = self.untrained_f1("embeddings")
        for name in [name for name in OBJECTIVES if (cells["objective"] == name).any()]:
            f1 = comparison.interval(cells[cells["objective"] == name])
            gain = Interval(*(x - ceiling.mean for x in f1))
            rows.append({"objective": name, "F1": str(f1), "above the ceiling": signed(gain)})
        return pd.DataFrame(rows)


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

    def tables(pattern: str) -> pd.DataFrame:
        paths = sorted(folder.glob(pattern)) or [Path(pattern.replace("*", "warm"))]
        return pd.concat([results.committed(place, path.name) for path in paths])

    files = ("runs_*.csv", "runs_*.parquet", "untrained*.csv", "trials*.csv")
    return English(load_preset("squad"), training, *map(tables, files))
