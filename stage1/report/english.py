"""Real English beside the almanac: the reader that ships, its adapters, and what carries over.

Tables are read from `records/english/`; `docs/readers.md` has the commands that made them.
"""

from dataclasses import dataclass

import pandas as pd

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.names import FLOORS, OBJECTIVES
from stage1.report import results
from stage1.report.controls import TRAINING as ALMANAC
from stage1.report.evidence import AS_FOUND, START, Evidence
from stage1.report.verdicts import adapter_name, signed
from stage1.scoring import comparison, criteria
from stage1.scoring.comparison import Difference
from stage1.scoring.intervals import Interval
from stage1.scoring.tables import retention

FOLDER = "english"
TRAINING = store.read_json(store.ASSETS / "english-lm" / "training.json")
"""How the English language model was trained, and what it scored."""
PCA_INVERSE = ("pca_inverse", "calibrated")
STARTS = (PCA_INVERSE, AS_FOUND)


@dataclass(frozen=True)
class English:
    """The tables of the runs on the English language model."""

    config: StudyConfig
    runs: pd.DataFrame
    """One row per objective, start and seed, after a reconstruction warm-up."""
    scores: pd.DataFrame
    """The scores of every answer of these runs."""
    untrained: pd.DataFrame
    """The conditions that need no training."""
    trials: pd.DataFrame
    """Trials of learning rates, scored on the selection split."""

    def untrained_f1(self, condition: str) -> Interval:
        row = self.untrained.set_index("condition").loc[condition]
        return Interval(row["f1"], row["f1_low"], row["f1_high"])

    @property
    def ceiling(self) -> float:
        return self.untrained_f1("embeddings").mean

    @property
    def floor(self) -> float:
        return max(self.untrained_f1(name).mean for name in FLOORS)

    def retention(self, f1: Interval) -> Interval:
        return Interval(*(retention(x, self.ceiling, self.floor) for x in f1))

    def select(self, table: pd.DataFrame, objective: str, start: tuple) -> pd.DataFrame:
        own = (table[START] == list(start)).all(axis=1) & (table["objective"] == objective)
        return table[own]

    def objective(self, almanac: Evidence) -> str:
        """Return the almanac's recommended objective, or else this model's best on selection."""
        name = almanac.warmed.recommended
        starts = self.runs.groupby("objective")["initialisation"].nunique()
        if starts.get(name, 0) == len(STARTS):
            return name
        runs = self.runs[self.runs["objective"].isin(starts[starts == len(STARTS)].index)]
        return str(runs.groupby("objective")["selection_f1"].mean().idxmax())

    def f1(self, objective: str, start: tuple = PCA_INVERSE) -> Interval:
        return comparison.interval(self.select(self.scores, objective, start))

    def table(self) -> pd.DataFrame:
        """Return one row per objective and start, the best first."""
        rows = []
        for (objective, *start), runs in self.runs.groupby(["objective", *START]):
            f1 = self.f1(objective, tuple(start))
            row = {"objective": objective, "start": adapter_name(tuple(start)), **f1._asdict()}
            row |= {"em": runs["em"].mean(), "retention": self.retention(f1).mean}
            rows.append(row | {"fvu": runs["fvu"].mean(), "seeds": len(runs)})
        table = pd.DataFrame(rows).rename(
            columns={"mean": "f1", "low": "f1_low", "high": "f1_high"}
        )
        return table.sort_values("f1", ascending=False, ignore_index=True)

    def on_selection(self) -> pd.DataFrame:
        """Return selection F1 by objective, start and warm-up: the best trial, or else the runs'.

        `rates` says how many learning rates were tried, and `seeds` how many runs a mean is over.
        """
        columns = ["objective", *START, "warmup_steps"]
        groups = self.trials.groupby(columns)
        found = groups["selection_f1"].max().to_frame()
        found["rates"], found["seeds"] = groups["learning_rate"].nunique(), 1
        groups = self.runs.groupby(columns)
        means = groups["selection_f1"].mean().to_frame()
        means["rates"], means["seeds"] = groups["learning_rate"].nunique(), groups.size()
        table = pd.concat([found, means[~means.index.isin(found.index)]]).reset_index()
        return table.sort_values("selection_f1", ascending=False, ignore_index=True)


def load() -> English:
    """Read `records/english/`. Raises RecordError for a missing table."""
    names = ("runs_warmup.csv", "runs_warmup.parquet", "untrained.csv", "trials.csv")
    return English(load_preset("squad"), *(results.committed(FOLDER, name) for name in names))


def models(english: English, almanac: Evidence) -> pd.DataFrame:
    """Return one row per language model: its size, what it read, and what it scores."""
    shape, own = TRAINING["shape"], ALMANAC["config"]
    rows = [
        ("english", TRAINING["parameters"], shape["width"], shape["vocabulary"], "SQuAD"),
        ("shipped", ALMANAC["parameters"], own["width"], own["vocabulary"], "almanac"),
    ]
    table = pd.DataFrame(rows, columns=["language model", "parameters", "D", "V", "questions"])
    return table.assign(
        ceiling=[english.ceiling, almanac.ceiling], floor=[english.floor, almanac.floor]
    )


def beside(english: English, almanac: Evidence) -> pd.DataFrame:
    """Return what both language models were asked, one quantity a row."""
    w, name = almanac.warmed, english.objective(almanac)
    own, other = (e.untrained.set_index("condition") for e in (english, almanac))
    shown, kept = w.f1(name), english.retention(english.f1(name))
    shares = kept, Interval(*map(almanac.retention, shown))
    gains = [signed(start_gain(e, name)) for e in (english, almanac.warmed)]

    def pair(condition: str, column: str = "f1") -> list[float]:
        return [table.loc[condition, column] for table in (own, other)]

    rows = {
        "PCA inverse, untrained: F1": [f"{f1:.1f}" for f1 in pair("pca_inverse")],
        "lookup, untrained: F1": [f"{f1:.1f}" for f1 in pair("codebook")],
        "variance that PCA keeps": [f"{1 - fvu:.2f}" for fvu in pair("pca_inverse", "fvu")],
        f"{name}: F1": [str(english.f1(name)), str(shown)],
        f"{name}: retention": [f"{share} %" for share in shares],
        "adapter as found instead of PCA inverse: F1 gained": gains,
    }
    table = pd.DataFrame(rows, index=["English", "almanac"]).T
    return table.rename_axis("after the warm-up unless untrained").reset_index()


def summary(english: English, almanac: Evidence) -> str:
    """Say what to do, and what it keeps on both language models."""
    w, name = almanac.warmed, english.objective(almanac)
    kept = english.retention(english.f1(name)), Interval(*map(almanac.retention, w.f1(name)))
    agree = kept[0].high >= kept[1].low and kept[1].high >= kept[0].low
    return (
        "**Warm the adapter up on reconstruction, then train it with "
        f"{OBJECTIVES[name].label}.** At 8x compression this keeps {kept[0]} % of what a language "
        f"model of real English can do, and {kept[1]} % for one of generated text: the two "
        f"{'agree' if agree else 'disagree on what 8x costs'}."
    )


def answer(english: English, almanac: Evidence) -> list[str]:
    """Say what the recipe does on real English, and where the almanac says something else."""
    w, name = almanac.warmed, english.objective(almanac)
    found = [english.f1(name, start) for start in STARTS]
    kept = [english.retention(f1) for f1 in found]
    limits = criteria.retention_thresholds(almanac.config, english.floor)
    runs = english.select(english.runs, name, PCA_INVERSE)
    searched = "" if name in set(english.trials["objective"]) else ", which was not searched"
    return [
        f"On real English: a language model of {TRAINING['parameters'] / 1e6:.1f}M parameters, "
        "trained here from scratch, answers SQuAD at F1 "
        f"{english.untrained_f1('embeddings')}, and at {english.floor:.1f} without the passage. "
        f"After a warm-up, {OBJECTIVES[name].label} reaches F1 {found[0]} from the PCA inverse and "
        f"{found[1]} from the adapter as found ({len(runs)} seeds, learning rate "
        f"{runs['learning_rate'].iloc[0]:g}{searched}). That is {kept[0]} % and {kept[1]} % of the "
        f"way from floor to ceiling; at {limits['target']:.0f} %: "
        f"{criteria.verdict_over(kept[0], limits)}. {difference_of(kept[0], w, name)}",
        f"{reconstruction_alone(english)} {starts(english, almanac)}",
    ]


def difference_of(kept: Interval, w: Evidence, name: str) -> str:
    """Compare what the English model keeps with what the almanac's keeps, in percent."""
    other = w.retention(w.f1(name).mean)
    costs = "as much, within the interval"
    if not kept.low <= other <= kept.high:
        costs = "more" if kept.high < other else "less"
    return f"The almanac's model keeps {other:.0f} %: on real English, 8x costs {costs}."


def starts(english: English, almanac: Evidence) -> str:
    """Say what the start is worth after a warm-up, on both."""
    name = english.objective(almanac)
    gains = [signed(start_gain(e, name)) for e in (english, almanac.warmed)]
    return (
        f"The adapter as found instead of the PCA inverse gains {gains[0]} points there, and "
        f"{gains[1]} on the almanac."
    )


def start_gain(e: English | Evidence, objective: str) -> Difference:
    """Return the F1 of the adapter as found minus that of the PCA inverse."""
    one, other = (e.select(e.scores, objective, start) for start in (AS_FOUND, PCA_INVERSE))
    return comparison.difference(one, other, margin=e.config.equivalence_margin)


def reconstruction_alone(english: English) -> str:
    """Compare reconstruction with what reads through the language model, on the selection split."""
    table = english.on_selection()
    warm = table[table["warmup_steps"] > 0].groupby("objective")["selection_f1"].max()
    alone, best = warm["option1_reconstruction"], warm.drop("option1_reconstruction")
    return (
        f"On the selection split, reconstruction alone ends at F1 {alone:.1f} after the same "
        f"warm-up, and {best.idxmax()} at {best.max():.1f}."
    )
