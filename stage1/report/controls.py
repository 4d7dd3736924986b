"""Comparisons around the headline: lengths of the warm-up, language models, baselines, ratios.

Runs are scored on the reported split. Trials have one seed and are scored on the selection split,
at the best of their learning rates.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from stage1 import store
from stage1.config import load_preset
from stage1.names import FLOORS
from stage1.report import results
from stage1.report.evidence import AS_FOUND, START, Evidence
from stage1.scoring import comparison
from stage1.scoring.intervals import Interval
from stage1.scoring.tables import retention

FULL = load_preset("full")
TRAINING = store.read_json(store.ASSETS / "almanac-lm" / "training.json")
"""How the shipped language model was trained."""
D = int(TRAINING["config"]["width"])
FIELDS = ("language_model", "architecture", "projection", "compressed_width", "warmup_steps")
"""What tells the rows of one cell of the trials apart from others, besides the start."""
BASELINES: dict[str, dict[str, Any]] = {
    "affine map, no warm-up": {"architecture": "affine", "warmup_steps": 0},
    "affine map, warm-up": {"architecture": "affine"},
    "adapter, no warm-up": {"warmup_steps": 0},
    "adapter, warm-up": {},
    "adapter and trained projection, warm-up": {"projection": "trained"},
    "uncompressed control (K = D)": {"compressed_width": D, "warmup_steps": 0},
    "soft codebook, one temperature": {"architecture": "soft_codebook", "warmup_steps": 0},
}
"""What is trained in place of the adapter, by the fields in which it differs from `FULL`."""


@dataclass(frozen=True)
class Controls:
    """The tables behind the comparisons; `evidence` holds the headline's."""

    evidence: Evidence
    short_runs: pd.DataFrame
    """The grid of `evidence.runs` after a warm-up as long as option 1's training."""
    models: pd.DataFrame
    """Runs of other language models of the shipped one's recipe, after the full warm-up."""
    models_scores: pd.DataFrame
    models_untrained: pd.DataFrame
    trials: pd.DataFrame
    """The search of learning rates: selection scores of every cell and rate."""
    ratios_untrained: pd.DataFrame
    """Conditions without training at other widths K, on the reported split."""

    def lengths(self) -> pd.DataFrame:
        """Return F1 by objective (rows), and by start and steps of the warm-up (columns).

        Mean and standard deviation over seeds, on the best adapter and on the one as found.
        """
        e, columns = self.evidence, {}
        levels = {0: e.runs}
        levels |= {int(r["warmup_steps"].max()): r for r in (self.short_runs, e.warm_runs)}
        for adapter in (e.warmed.adapter, AS_FOUND):
            for steps, runs in levels.items():
                groups = e.select(runs, adapter=adapter).groupby("objective")["f1"]
                cells = groups.mean().map("{:.1f} ± ".format) + groups.std().map("{:.1f}".format)
                columns[f"{', '.join(adapter)}: {steps:,} steps"] = cells
        table = pd.DataFrame(columns)
        return table.loc[e.warmed.table["objective"]].rename_axis("objective").reset_index()

    def language_models(self) -> pd.DataFrame:
        """Return one row per language model and start: F1 and EM of the recommended objective."""
        w = self.evidence.warmed
        shipped = w.runs, w.scores, w.untrained.assign(language_model=FULL.language_model)
        others = self.models, self.models_scores, self.models_untrained
        rows = []
        for runs, scores, untrained in (shipped, others):
            for model, f1 in untrained.groupby("language_model", sort=False):
                f1 = f1.set_index("condition")["f1"]
                for adapter in (w.adapter, AS_FOUND):
                    rows.append(
                        {"language model": model, "ceiling": f1["embeddings"]}
                        | self.reached(runs, scores, model, adapter, f1)
                    )
        return pd.DataFrame(rows)

    def reached(
        self, runs: pd.DataFrame, scores: pd.DataFrame, model: str, adapter: tuple, f1: pd.Series
    ) -> dict:
        """Return F1 with its interval, EM and retention of the recommended objective."""
        w = self.evidence.warmed
        runs, scores = (table[table["language_model"] == model] for table in (runs, scores))
        own = w.select(runs, w.recommended, adapter)
        found = comparison.interval(w.select(scores, w.recommended, adapter))
        kept = Interval(*(retention(x, f1["embeddings"], f1[FLOORS].max()) for x in found))
        row = {"start": ", ".join(adapter), "F1": str(found), "EM": f"{own['em'].mean():.1f}"}
        return row | {"retention": str(kept), "seeds": len(own)}

    def search(self, **fields) -> pd.DataFrame:
        """Return the trials of the shipped model's own adapter, at any length of the warm-up.

        `fields` replace those of `FULL`.
        """
        same = {name: getattr(FULL, name) for name in FIELDS if name != "warmup_steps"} | fields
        return self.trials[(self.trials[list(same)] == list(same.values())).all(axis=1)]

    def best_trials(self, **fields) -> pd.DataFrame:
        """Return the best rate's trial of every objective, on the best adapter.

        Fields that are not given are those of `FULL`.
        """
        start = dict(zip(START, self.evidence.warmed.adapter, strict=True))
        trials = self.search(**{"warmup_steps": FULL.warmup_steps} | start | fields)
        return trials.loc[trials.groupby("objective")["selection_f1"].idxmax()]

    def baselines(self) -> pd.DataFrame:
        """Return the best selection F1 of what is trained in place of the adapter."""
        rows = []
        for name, fields in BASELINES.items():
            best = self.best_trials(**fields).set_index("objective")
            for objective in ("answer_ce", self.evidence.warmed.recommended):
                if objective in best.index:
                    row = best.loc[objective]
                    rate, f1 = f"{row['learning_rate']:g}", f"{row['selection_f1']:.1f}"
                    rows.append((name, objective, rate, f1))
        return pd.DataFrame(rows, columns=["trained", "objective", "rate", "selection F1"])

    def ratios(self) -> pd.DataFrame:
        """Return one row per compression ratio D/K: F1 of the recipe, option 1 and untrained."""
        untrained = self.evidence.untrained.assign(compressed_width=FULL.compressed_width)
        untrained, rows = pd.concat([self.ratios_untrained, untrained]), []
        for K, f1 in untrained.groupby("compressed_width"):
            best = self.best_trials(compressed_width=K).set_index("objective")["selection_f1"]
            f1 = f1.set_index("condition")["f1"]
            row = {"ratio": D // K, "K": K}
            for name in (self.evidence.warmed.recommended, "option1_reconstruction"):
                row[name] = best[name]
            rows.append(row | {name: f1[name] for name in ("pca_inverse", "codebook")})
        return pd.DataFrame(rows).sort_values("ratio", ignore_index=True).round(1)


def load(evidence: Evidence, folder: str = "full") -> Controls:
    """Read the tables of `records/<folder>/`. Raises RecordError for a missing one."""
    names = (
        "runs_warmup_471.csv", "runs_models.csv", "runs_models.parquet", "untrained_models.csv",
        "trials.csv", "untrained_ratios.csv",
    )  # fmt: skip
    return Controls(evidence, *(results.committed(folder, name) for name in names))
