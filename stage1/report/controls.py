"""Comparisons around the headline: lengths of the warm-up, language models, baselines, ratios.

All of them are scored on the reported split, with intervals over articles and seeds. Only the
search of the learning rates is on the selection split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stage1 import store
from stage1.config import load_preset
from stage1.names import FLOORS
from stage1.report import results
from stage1.report.evidence import AS_FOUND, START, Evidence
from stage1.report.plots import in_order
from stage1.report.verdicts import signed
from stage1.scoring import comparison
from stage1.scoring.comparison import Difference
from stage1.scoring.intervals import Interval
from stage1.scoring.tables import retention

FULL = load_preset("full")
TRAINING = store.read_json(store.ASSETS / "almanac-lm" / "training.json")
"""How the shipped language model was trained."""
D = int(TRAINING["config"]["width"])
RECIPE_START = (FULL.initialisation, FULL.output_scaling)
FIELDS = ("language_model", "architecture", "projection", "compressed_width", "warmup_steps")
"""What tells the rows of one cell apart from others, besides objective and start."""
RECIPE = "adapter, warm-up"
PROJECTION = "adapter and trained projection, warm-up"
CONTROL = "uncompressed control (K = D)"
BASELINES: dict[str, dict[str, Any]] = {
    "affine map, warm-up": {"architecture": "affine"},
    PROJECTION: {"projection": "trained"},
    CONTROL: {"compressed_width": D, "warmup_steps": 0},
    "soft codebook, one temperature": {"architecture": "soft_codebook", "warmup_steps": 0},
}
"""What is trained in place of the adapter, by the fields in which it differs from `FULL`."""
UNTRAINED = ("pca_inverse", "codebook")
"""The conditions without training that are shown at every ratio."""


def cell(table: pd.DataFrame, names: Sequence[str] = FIELDS, **fields: Any) -> pd.DataFrame:
    """Return the rows that have these fields, and `FULL`'s values in the rest of `names`."""
    wanted = {name: getattr(FULL, name) for name in names} | fields
    return table[(table[list(wanted)] == list(wanted.values())).all(axis=1)]


def edge(trials: pd.DataFrame) -> float | None:
    """Return the best learning rate of a cell if it is the smallest or the largest tried."""
    rates = trials.set_index("learning_rate")["selection_f1"]
    at_edge = rates.idxmax() in (rates.index.min(), rates.index.max())
    return float(rates.idxmax()) if at_edge else None


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
    ratio_scores: pd.DataFrame
    """The scores of every answer of the recipe and of option 1 at other widths K."""
    ratios_untrained: pd.DataFrame
    """Conditions without training at other widths K."""
    baseline_scores: pd.DataFrame
    """The scores of every answer of what is trained in place of the adapter."""
    untrained_scores: pd.DataFrame
    """The scores of every answer of the conditions without training, at `FULL`'s width."""

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

    def search(self) -> pd.DataFrame:
        """Return the trials of the shipped model's own adapter, at any length of the warm-up."""
        return cell(self.trials, [name for name in FIELDS if name != "warmup_steps"])

    def recipe(self, objective: str = FULL.objective) -> pd.DataFrame:
        """Return the scores of an objective by the recipe of `FULL`: its start, after a warm-up."""
        w = self.evidence.warmed
        return w.select(w.scores, objective, RECIPE_START)

    def ceiling(self, scores: pd.DataFrame) -> pd.DataFrame:
        """Return the scores from the original embeddings, once for every seed of `scores`."""
        own = self.untrained_scores[self.untrained_scores["condition"] == "embeddings"]
        return own.merge(scores[["seed"]].drop_duplicates(), how="cross")

    def baseline(self, name: str, objective: str = FULL.objective) -> pd.DataFrame:
        """Return the scores of an objective on one of `BASELINES`."""
        own = cell(self.baseline_scores, **BASELINES[name])
        return own[own["objective"] == objective]

    def gain(self, scores: pd.DataFrame, other: pd.DataFrame) -> Difference:
        """Return the F1 of `scores` minus that of `other`, on the same questions and seeds."""
        margin = self.evidence.config.equivalence_margin
        return comparison.difference(scores, other, margin=margin)

    def beyond_half(self) -> Difference:
        """Return how far the trained projection is past the middle of recipe and ceiling (F1)."""
        trained, recipe = self.baseline(PROJECTION), self.recipe()
        both = pd.concat([recipe, self.ceiling(recipe)])
        middle = both.groupby(["id", "title", "seed"], observed=True)["f1"].mean().reset_index()
        return self.gain(trained, middle)

    def baselines(self) -> pd.DataFrame:
        """Return one row per kind of adapter and objective.

        F1, the F1 gained over the recipe with the same objective and over the original embeddings,
        each with its interval, and the number of seeds.
        """
        e, rows = self.evidence, []
        for name in in_order(self.baseline_scores["objective"]):
            kinds = {"adapter, no warm-up": e.select(e.scores, name, RECIPE_START)}
            kinds |= {RECIPE: self.recipe(name)}
            kinds |= {kind: self.baseline(kind, name) for kind in BASELINES}
            rows += [self.compared(kind, name, own) for kind, own in kinds.items() if len(own)]
        return pd.DataFrame(rows)

    def compared(self, kind: str, objective: str, scores: pd.DataFrame) -> dict:
        """Return one row of `baselines`."""
        recipe = self.recipe(objective)
        return {
            "trained": kind,
            "objective": objective,
            "F1": str(comparison.interval(scores)),
            "over the recipe": "–" if kind == RECIPE else signed(self.gain(scores, recipe)),
            "over the ceiling": signed(self.gain(scores, self.ceiling(scores))),
            "seeds": scores["seed"].nunique(),
        }

    def ratios(self) -> pd.DataFrame:
        """Return one row per compression ratio D/K and condition, with the interval of its F1.

        The recipe and option 1, which have seeds, and `UNTRAINED`, which have none.
        """
        names = in_order(self.ratio_scores["objective"])
        scores = pd.concat([self.ratio_scores, *map(self.recipe, names)])
        rows = [
            (K, name, *comparison.interval(own), own["seed"].nunique())
            for name in names
            for K, own in scores[scores["objective"] == name].groupby("compressed_width")
        ]
        usual = self.evidence.untrained.assign(compressed_width=FULL.compressed_width)
        untrained = pd.concat([self.ratios_untrained, usual]).set_index("condition")
        bounds = ["compressed_width", "f1", "f1_low", "f1_high"]
        for name in UNTRAINED:
            found = untrained.loc[[name], bounds].astype(object)
            rows += [(K, name, *f1, 0) for K, *f1 in found.itertuples(index=False)]
        columns = ["K", "condition", "f1", "f1_low", "f1_high", "seeds"]
        table = pd.DataFrame(rows, columns=columns)
        table.insert(0, "ratio", D // table["K"])
        return table.sort_values("ratio", kind="stable", ignore_index=True)

    def open_ratios(self) -> list[int]:
        """Return the ratios at which the recipe's best learning rate is at the edge of its grid."""
        start = dict(zip(START, RECIPE_START, strict=True)) | {"objective": FULL.objective}
        widths = sorted(set(self.ratios()["K"].tolist()), reverse=True)
        tried = {K: cell(self.trials, compressed_width=K, **start) for K in widths}
        return [D // K for K, trials in tried.items() if edge(trials) is not None]


def load(evidence: Evidence, folder: str = "full") -> Controls:
    """Read the tables of `records/<folder>/`. Raises RecordError for a missing one."""
    names = (
        "runs_warmup_471.csv", "runs_models.csv", "runs_models.parquet", "untrained_models.csv",
        "trials.csv", "runs_ratios.parquet", "untrained_ratios.csv", "runs_baselines.parquet",
        "untrained.parquet",
    )  # fmt: skip
    return Controls(evidence, *(results.committed(folder, name) for name in names))
