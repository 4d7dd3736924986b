"""The committed records of a budget, read once, and the questions that the report asks of them.

No winner is named here: the best adapter follows from the selection split and the recommended
objective from the records, so other records give another recommendation.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from stage1.config import StudyConfig, load_preset, shipped
from stage1.fields import names_where
from stage1.names import FIXES, FLOORS, OBJECTIVES
from stage1.report import results
from stage1.scoring import comparison, criteria
from stage1.scoring.comparison import Difference, Finding
from stage1.scoring.intervals import Interval
from stage1.scoring.tables import retention

START = ["initialisation", "output_scaling"]
"""What an adapter is besides its objective."""
AS_FOUND = ("random", "unit_rms")
"""The adapter of the analysed code."""
OTHER_BUDGETS = ("runs_640x2", "runs_2500x3", "runs_40000x3")
WITHIN_MARGIN = (Finding.EQUIVALENT, Finding.SLIGHTLY_DIFFERENT)
MEASURED = ("as_found_padding", "objective_cost", "train_step_largest")
BENCHMARKS = shipped("benchmarks", "benchmarks/results")


@dataclass(frozen=True)
class Evidence:
    """The tables of one budget's runs, judged by the criteria of `config`."""

    config: StudyConfig
    runs: pd.DataFrame
    """One row per objective, adapter and seed at the budget."""
    scores: pd.DataFrame
    """The scores of every answer of these runs."""
    untrained: pd.DataFrame
    """The conditions that need no training."""
    sizes: pd.DataFrame
    """Runs at other budgets, in the columns of `runs`."""
    weights: pd.DataFrame
    """Runs with other reconstruction weights and terms, and with each of the two terms alone."""
    balancing: pd.DataFrame
    """Runs with the published balancing rules."""
    gradients: pd.DataFrame
    """Readings of the terms' gradients over training, with objective, adapter and seed."""
    weight_gradients: pd.DataFrame
    """The same of the runs in `weights`."""
    padding: pd.DataFrame
    """`as_found` with and without its labels on padding and its gap before the answer."""
    cost: pd.DataFrame
    """Seconds per step of each objective."""
    memory: pd.DataFrame
    """The largest batches of training steps at the shape of Llama-3.1-8B."""
    warm_runs: pd.DataFrame
    """The grid of `runs` once more, each adapter warmed up by reconstruction first."""
    warm_scores: pd.DataFrame
    """The scores of every answer of these runs."""

    @cached_property
    def warmed(self) -> "Evidence":
        """The same questions, asked of the runs with a reconstruction warm-up, at one budget."""
        return replace(
            self, runs=self.warm_runs, scores=self.warm_scores, sizes=self.sizes.iloc[:0]
        )

    def warmup_gain(self, adapter: tuple | None = None, objective: str | None = None) -> Difference:
        """Return the F1 that the warm-up adds to an adapter, by default the best warmed one.

        For one objective, by default the one recommended with a warm-up. The learning rate is
        searched with and without it.
        """
        warm, adapter = self.warmed, adapter or self.warmed.adapter
        objective = objective or warm.recommended
        one = warm.select(warm.scores, objective, adapter)
        other = self.select(self.scores, objective, adapter)
        return comparison.difference(one, other, margin=self.config.equivalence_margin)

    @cached_property
    def best(self) -> pd.Series:
        """The means over seeds of the objective and adapter with the best selection F1."""
        groups = self.runs.groupby(results.ADAPTER)
        means = groups[["selection_f1", "f1", "em", "fvu"]].mean().reset_index()
        return means.loc[means["selection_f1"].idxmax()]

    @cached_property
    def adapter(self) -> tuple[str, str]:
        """Initialisation and output scaling of the best adapter on the selection split.

        The config's own adapter is kept where it is within the margin of the best.
        """
        own = self.config.initialisation, self.config.output_scaling
        reached = self.select(self.runs, adapter=own).groupby("objective")["selection_f1"].mean()
        if reached.max() > self.best["selection_f1"] - self.config.equivalence_margin:
            return own
        return self.best["initialisation"], self.best["output_scaling"]

    @property
    def ceiling(self) -> float:
        return float(self.untrained.set_index("condition").loc["embeddings", "f1"])

    @property
    def floor(self) -> float:
        return float(self.untrained.set_index("condition").loc[FLOORS, "f1"].max())

    def retention(self, f1: float) -> float:
        return retention(f1, self.ceiling, self.floor)

    @property
    def retention_thresholds(self) -> dict[str, float]:
        """The criteria as retention in percent, with this run's floor."""
        return criteria.retention_thresholds(self.config, self.floor)

    @property
    def target_here(self) -> float:
        """The F1 in percent at which retention meets the target."""
        share = self.retention_thresholds["target"] / 100
        return self.floor + share * (self.ceiling - self.floor)

    def select(
        self, table: pd.DataFrame, objective: str | None = None, adapter: tuple | None = None
    ) -> pd.DataFrame:
        """Return the rows of an adapter (by default the best) and an objective (by default all)."""
        kept = (table[START] == list(adapter or self.adapter)).all(axis=1)
        return table[kept & (table["objective"] == objective)] if objective else table[kept]

    def mean(self, objective: str, column: str = "f1", adapter: tuple | None = None) -> float:
        """Return a column's mean over the seeds of an objective."""
        return float(self.select(self.runs, objective, adapter)[column].mean())

    def mean_with_more(self, objective: str, adapter: tuple | None = None) -> float:
        """Return the mean F1 of an objective at the largest of the other budgets."""
        largest = self.sizes[self.sizes["train_examples"] == self.sizes["train_examples"].max()]
        return float(self.select(largest, objective, adapter)["f1"].mean())

    def gain(self, first: str, second: str) -> Difference:
        """Return the F1 of the first objective minus that of the second, on the best adapter."""
        one, other = (self.select(self.scores, name) for name in (first, second))
        return comparison.difference(one, other, margin=self.config.equivalence_margin)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per objective on the best adapter, the best first.

        F1 with its interval over articles and seeds and its standard deviation over seeds,
        retention, EM, fvu, and one verdict on F1 in points and on retention.
        """
        points = criteria.thresholds(self.config)
        rows = []
        for objective, runs in self.select(self.runs).groupby("objective"):
            f1 = comparison.interval(self.select(self.scores, objective))
            kept = Interval(*map(self.retention, f1))
            row = {"objective": objective, "f1": f1.mean, "f1_low": f1.low, "f1_high": f1.high}
            row |= {"f1_sd": runs["f1"].std(), "seeds": len(runs), "retention": kept.mean}
            row |= {name: runs[name].mean() for name in ("em", "fvu", "selection_f1")}
            row["verdict"] = criteria.joint_verdict(f1, kept, points, self.retention_thresholds)
            rows.append(row)
        return pd.DataFrame(rows).sort_values("f1", ascending=False, ignore_index=True)

    def f1(self, objective: str) -> Interval:
        """Return the mean F1 of an objective on the best adapter, with its interval."""
        row = self.table.set_index("objective").loc[objective]
        return Interval(row["f1"], row["f1_low"], row["f1_high"])

    @property
    def headline(self) -> pd.DataFrame:
        """The table in words, for the README."""
        rows = [
            {
                "objective": row["objective"],
                "F1 [95 % interval]": str(self.f1(row["objective"])),
                "± over seeds": f"{row['f1_sd']:.1f}",
                "retention": f"{row['retention']:.1f} %",
                "fvu": f"{row['fvu']:.2f}",
                "seeds": row["seeds"],
                "verdict": row["verdict"],
            }
            for _, row in self.table.iterrows()
        ]
        return pd.DataFrame(rows)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every pair of objectives on the best adapter, Holm-corrected over all of them."""
        scores = self.select(self.scores)
        return comparison.pairs(scores, "objective", margin=self.config.equivalence_margin)

    def pair(self, one: str, other: str) -> pd.Series:
        """Return the row of `pairs` for two objectives, in either order."""
        return self.pairs[self.pairs[["first", "second"]].isin([one, other]).all(axis=1)].iloc[0]

    def is_as_good(self, name: str, best: str) -> bool:
        """Return whether an objective is the best one, or found within the margin of it."""
        return name == best or self.pair(name, best)["finding"] in WITHIN_MARGIN

    @cached_property
    def recommended(self) -> str:
        """The cheapest per step of the analysis's fixes that are as good as the best.

        The best has the highest F1 on the selection split; a fix is as good if its F1 on the test
        questions is found to be within the margin of the best one's.
        """
        top = self.select(self.runs).groupby("objective")["selection_f1"].mean()[FIXES].idxmax()
        tied = [name for name in FIXES if self.is_as_good(name, top)]
        return str(self.cost.set_index("objective").loc[tied, "seconds"].idxmin())

    def factor(self, factor: str, first: str, second: str) -> Difference:
        """Return the F1 gained by a factor's first level over its second, on two objectives.

        They differ only in the answers they are trained on.
        """
        scores = self.scores[self.scores["objective"].isin(["distill", "option2_on_policy"])]
        margin = self.config.equivalence_margin
        return comparison.contrast(scores, factor, first, second, margin=margin)

    @cached_property
    def step_shares(self) -> pd.DataFrame:
        """Each term's mean share of AdamW's steps, by objective and adapter."""
        return self.gradients.groupby([*results.ADAPTER, "term"])["step_share"].mean().reset_index()

    @cached_property
    def ablation(self) -> pd.DataFrame:
        """The readings of `gradients` from the analysed code to the best adapter.

        One change at a time, named by `setting`: output scaling, initialisation, objective.
        """
        settings = [("as_found", AS_FOUND), ("as_found", (AS_FOUND[0], self.adapter[1]))]
        read = set(self.gradients["objective"])
        settings += [(name, self.adapter) for name in OBJECTIVES if name in read]
        parts = []
        for objective, adapter in dict.fromkeys(settings):
            rows = self.select(self.gradients, objective, adapter)
            parts.append(rows.assign(setting=f"{objective}\n{', '.join(adapter)}"))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def grid(self) -> pd.DataFrame:
        """The runs of `weights` with both terms.

        `weight` is the reconstruction term's as mse; `level` names adapter and reconstruction term.
        """
        grid = self.weights[self.weights["objective"] == "option3_teacher_forced"].copy()
        one = grid["reconstruction_weight"]
        fvu_per_mse = (grid["fvu"] / grid["mse"]).mean()  # one over the embeddings' variance
        grid["weight"] = (one * fvu_per_mse).where(grid["reconstruction_term"] == "fvu", one)
        return grid.assign(level=grid[[*START, "reconstruction_term"]].agg(", ".join, axis=1))

    @cached_property
    def weight_table(self) -> pd.DataFrame:
        """One row per adapter, reconstruction term and weight.

        Means over seeds, with the reconstruction term's mean share of AdamW's steps.
        """
        by = [*START, "reconstruction_term", "reconstruction_weight"]
        readings = self.weight_gradients[self.weight_gradients["term"] == "reconstruction"]
        shares = readings.groupby(by)["step_share"].mean()
        return self.grid.groupby(by)[["f1", "fvu", "ce_first"]].mean().join(shares).reset_index()

    @cached_property
    def rules(self) -> pd.DataFrame:
        """One row per adapter and balancing rule, beside them the fixed weight 1."""
        adapters = self.balancing[START].drop_duplicates()
        option3 = self.runs[self.runs["objective"] == "option3_teacher_forced"]
        runs = pd.concat([option3.merge(adapters).assign(balancing="fixed"), self.balancing])
        measures = {name: (name, "mean") for name in ("f1", "fvu", "ce_first")}
        spread = {"f1_sd": ("f1", "std"), "seeds": ("f1", "count")}
        return runs.groupby([*START, "balancing"]).agg(**measures, **spread).reset_index()


def load(
    config: StudyConfig, folder: str = "full", weights: str = "quick", benchmarks: Path = BENCHMARKS
) -> Evidence:
    """Read the tables of `records/<folder>/`, and the weight grid from `records/<weights>/`.

    They are judged by the criteria of `config`. All else in the evidence's config is the preset's
    that the records are of, so that a run of another adapter does not change what they say.

    Raises RecordError with the command that makes a missing table.
    """
    sizes = [results.committed(folder, f"{name}.csv") for name in OTHER_BUDGETS]
    padding, cost, memory = (pd.read_csv(benchmarks / f"{name}.csv") for name in MEASURED)
    criteria = {name: getattr(config, name) for name in names_where(config, group="criteria")}
    return Evidence(
        load_preset("full").replace(**criteria),
        results.committed(folder, "runs_10000x3.csv"),
        results.committed(folder, "runs_10000x3.parquet"),
        results.committed(folder, "untrained.csv"),
        pd.concat(sizes, ignore_index=True),
        results.committed(weights, "weights.csv"),
        results.committed(folder, "balancing.csv"),
        results.committed(folder, "runs_10000x3.gradients.parquet"),
        results.committed(weights, "weights.gradients.parquet"),
        padding,
        cost,
        memory,
        results.committed(folder, "runs_warmup.csv"),
        results.committed(folder, "runs_warmup.parquet"),
    )
