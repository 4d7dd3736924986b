"""The committed records of a budget, read once, and the questions that the report asks of them.

Nothing here knows which objective won or which adapter is best: both follow from the selection split, so other records
give another recommendation.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from stage1 import store
from stage1.config import StudyConfig
from stage1.names import FIXES, FLOORS
from stage1.report import results
from stage1.scoring import comparison, criteria
from stage1.scoring.comparison import Difference, Finding
from stage1.scoring.intervals import Interval
from stage1.scoring.tables import retention

START = ["initialisation", "output_scaling"]
"""What an adapter is besides its objective."""
AS_FOUND = ("random", "unit_rms")
"""The adapter of the analysed code."""
MEASURED = ("as_found_padding", "objective_cost", "train_step_largest")
BENCHMARKS = store.ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Evidence:
    """Tables of one budget's runs; `config` holds the criteria that they are judged by."""

    config: StudyConfig
    runs: pd.DataFrame
    """One row per run: every objective, adapter and seed at the budget."""
    scores: pd.DataFrame
    """The scores of every answer of these runs."""
    untrained: pd.DataFrame
    """The conditions that need no training."""
    sizes: pd.DataFrame
    """Runs at other budgets, in the columns of `runs`."""
    weights: pd.DataFrame
    """Runs with other reconstruction weights and terms, and the two terms alone, from the best adapter and others."""
    balancing: pd.DataFrame
    """Runs with the published balancing rules."""
    gradients: pd.DataFrame
    """Readings of the terms' gradients over training, with objective, adapter and seed."""
    weight_shares: pd.DataFrame
    """The same of the runs in `weights`."""
    padding: pd.DataFrame
    """`as_found` with its padding taken apart."""
    cost: pd.DataFrame
    """Seconds per step of each objective."""
    memory: pd.DataFrame
    """Largest batches of training steps at the shape of Llama-3.1-8B."""

    @cached_property
    def best(self) -> pd.Series:
        """The objective and adapter with the highest mean F1 on the selection split; its means over seeds."""
        means = (
            self.runs.groupby(results.ADAPTER)[["selection_f1", "f1", "em", "fvu"]]
            .mean()
            .reset_index()
        )
        return means.loc[means["selection_f1"].idxmax()]

    @property
    def adapter(self) -> tuple[str, str]:
        """Initialisation and output scaling of the best."""
        return self.best["initialisation"], self.best["output_scaling"]

    @property
    def ceiling(self) -> float:
        return float(self.untrained.set_index("condition").loc["embeddings", "f1"])

    @property
    def floor(self) -> float:
        return float(self.untrained.set_index("condition").loc[FLOORS, "f1"].max())

    def retention(self, f1: float) -> float:
        return retention(f1, self.ceiling, self.floor)

    def on(
        self, table: pd.DataFrame, objective: str | None = None, adapter: tuple | None = None
    ) -> pd.DataFrame:
        """The rows of an adapter (the best one unless told) and an objective (all unless told)."""
        kept = (table[START] == list(adapter or self.adapter)).all(axis=1)
        return table[kept & (table["objective"] == objective)] if objective else table[kept]

    def mean(self, objective: str, column: str = "f1", adapter: tuple | None = None) -> float:
        """A column's mean over the seeds of an objective."""
        return float(self.on(self.runs, objective, adapter)[column].mean())

    def with_more(self, objective: str, adapter: tuple | None = None) -> float:
        """Its mean F1 at the largest other budget."""
        largest = self.sizes[self.sizes["train_examples"] == self.sizes["train_examples"].max()]
        return float(self.on(largest, objective, adapter)["f1"].mean())

    def against(
        self, first: str, second: str, adapter: tuple | None = None, metric: str = "f1"
    ) -> Difference:
        """First minus second objective, on one adapter."""
        sides = [self.on(self.scores, name, adapter) for name in (first, second)]
        return comparison.difference(*sides, metric, self.config.equivalence_margin)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per objective on the best adapter, best first: F1 with interval over articles and seeds, standard
        deviation over seeds, retention, EM, fvu, and the verdicts on F1 and on retention."""
        absolute, share = (
            criteria.thresholds(self.config),
            criteria.thresholds(self.config, share=True),
        )
        rows = []
        for objective, runs in self.on(self.runs).groupby("objective"):
            found = comparison.interval(self.on(self.scores, objective))
            kept = Interval(*map(self.retention, found))
            row = {
                "objective": objective,
                "f1": found.mean,
                "f1_low": found.low,
                "f1_high": found.high,
            }
            row |= {"f1_sd": runs["f1"].std(), "seeds": len(runs), "retention": kept.mean}
            row |= {
                "em": runs["em"].mean(),
                "fvu": runs["fvu"].mean(),
                "selection_f1": runs["selection_f1"].mean(),
            }
            row |= {"verdict": criteria.verdict_over(found, absolute)}
            rows.append(row | {"verdict on retention": criteria.verdict_over(kept, share)})
        return pd.DataFrame(rows).sort_values("f1", ascending=False, ignore_index=True)

    @property
    def headline(self) -> pd.DataFrame:
        """The table in words, for the README."""
        names = [
            "F1 [95 % interval]",
            "± over seeds",
            "retention",
            "fvu",
            "seeds",
            f"target {self.config.target_f1:g}",
        ]
        rows = [
            [
                str(Interval(row["f1"], row["f1_low"], row["f1_high"])),
                f"{row['f1_sd']:.1f}",
                f"{row['retention']:.1f} %",
                f"{row['fvu']:.2f}",
                row["seeds"],
                row["verdict"],
            ]
            for _, row in self.table.iterrows()
        ]
        words = pd.DataFrame(rows, columns=names)
        words.insert(0, "objective", self.table["objective"])
        return words

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every pair of objectives on the best adapter, Holm-corrected over all of them."""
        return comparison.pairs(
            self.on(self.scores), "objective", margin=self.config.equivalence_margin
        )

    def pair(self, one: str, other: str) -> pd.Series:
        """The row of `pairs` for two objectives, whichever is the better."""
        return self.pairs[self.pairs[["first", "second"]].isin([one, other]).all(axis=1)].iloc[0]

    @cached_property
    def step_shares(self) -> pd.DataFrame:
        """Each term's mean share of AdamW's steps, by objective and adapter, over training and seeds."""
        return self.gradients.groupby([*results.ADAPTER, "term"])["step_share"].mean().reset_index()

    @cached_property
    def grid(self) -> pd.DataFrame:
        """The runs of two terms: `weight` is the reconstruction term's as mse, whichever term it stood for, and
        `level` names adapter and term."""
        grid = self.weights[self.weights["objective"] == "option3_teacher_forced"].copy()
        as_mse = (
            grid["reconstruction_weight"] * (grid["fvu"] / grid["mse"]).mean()
        )  # fvu is mse over the variance
        grid["weight"] = as_mse.where(
            grid["reconstruction_term"] == "fvu", grid["reconstruction_weight"]
        )
        return grid.assign(level=grid[[*START, "reconstruction_term"]].agg(", ".join, axis=1))

    @cached_property
    def weight_table(self) -> pd.DataFrame:
        """One row per adapter, reconstruction term and weight: means over seeds, with the reconstruction term's mean
        share of AdamW's steps."""
        by = [*START, "reconstruction_term", "reconstruction_weight"]
        shares = (
            self.weight_shares[self.weight_shares["term"] == "reconstruction"]
            .groupby(by)["step_share"]
            .mean()
        )
        return self.grid.groupby(by)[["f1", "fvu", "ce_first"]].mean().join(shares).reset_index()

    @cached_property
    def rules(self) -> pd.DataFrame:
        """One row per adapter and balancing rule, the fixed weight 1 among them: means and deviations over seeds."""
        adapters = self.balancing[START].drop_duplicates()
        fixed = (
            self.runs[self.runs["objective"] == "option3_teacher_forced"]
            .merge(adapters)
            .assign(balancing="fixed")
        )
        one = pd.concat([fixed, self.balancing])
        measures = {name: (name, "mean") for name in ("f1", "fvu", "ce_first")}
        counted = {"f1_sd": ("f1", "std"), "seeds": ("f1", "count")}
        return one.groupby([*START, "balancing"]).agg(**measures, **counted).reset_index()

    @cached_property
    def recommended(self) -> str:
        """Of the analysis's fixes, the cheapest per step among the best on the selection split and those that do not
        differ from it by more than the margin on the test questions."""
        top = self.on(self.runs).groupby("objective")["selection_f1"].mean()[FIXES].idxmax()
        tied = [
            top,
            *(
                n
                for n in FIXES
                if n != top and self.pair(n, top)["finding"] is not Finding.DIFFERENT
            ),
        ]
        return str(self.cost.set_index("objective").loc[tied, "seconds"].idxmin())

    def factor(self, factor: str, first: str, second: str) -> Difference:
        """What a factor is worth, over the two objectives that differ only in the answers they are taken on."""
        pair = self.scores[self.scores["objective"].isin(["distill", "option2_on_policy"])]
        return comparison.contrast(
            pair, factor, first, second, margin=self.config.equivalence_margin
        )


def load(
    config: StudyConfig, folder: str = "full", weights: str = "quick", benchmarks: Path = BENCHMARKS
) -> Evidence:
    """Read `records/<folder>/`, and the grid of weights from `records/<weights>/`.

    Raises RecordError with the command that makes a table which is missing.
    """
    sizes = [
        results.committed(folder, f"{name}.csv")
        for name in ("runs_640x2", "runs_2500x3", "runs_40000x3")
    ]
    return Evidence(
        config,
        results.committed(folder, "runs_10000x3.csv"),
        results.committed(folder, "runs_10000x3.parquet"),
        results.committed(folder, "untrained.csv"),
        pd.concat(sizes, ignore_index=True),
        results.committed(weights, "weights.csv"),
        results.committed(folder, "balancing.csv"),
        results.committed(folder, "runs_10000x3.gradients.parquet"),
        results.committed(weights, "weights.gradients.parquet"),
        *(pd.read_csv(benchmarks / f"{name}.csv") for name in MEASURED),
    )
