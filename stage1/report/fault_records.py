"""What the sweeps over the gallery measured: `records/faults/`, one row per setting.

A diverged run has a row but no scores. Its setting's means are those of the seeds that are left,
beside the number of seeds that are not.
"""

import math
from dataclasses import dataclass
from functools import cache

import pandas as pd

from stage1 import store
from stage1.config import StudyConfig
from stage1.report import results
from stage1.scoring import comparison
from stage1.scoring.comparison import Difference, Finding
from stage1.scoring.intervals import Interval
from stage1.study.fault_sweep import command, planned
from stage1.study.rates import learning_rate

KEYS = ["faults", "initialisation", "learning_rate", "warmup_steps"]
"""Columns that tell the settings of one sweep apart."""
RATE = "{:.6g}"
SYMPTOMS = ["ended", "empty", "tokens", "right_first", "fvu", "norm_ratio"]
GIVEN_AWAY_BY = {
    "no_end_token": ["tokens_cross_entropy", "ended"],
    "begin_token_in_answer": ["right_first", "em"],
    "right_truncation": ["right_first"],
    "duplicate_articles": ["f1", "selection_f1"],
    "selection_is_test": ["f1", "selection_f1"],
    "unit_rms_output": ["fvu", "norm_ratio"],
    "labels_on_prompt": ["tokens_cross_entropy"],
    "labels_on_padding": ["tokens_cross_entropy"],
    "gap_before_answer": ["right_first"],
    "mask_of_ones": ["ended"],
    "right_padded_generation": ["ended"],
    "slice_of_generated_ids": ["empty", "tokens"],
    "oracle_norm": ["norm_ratio"],
    "f1_on_sets": ["f1", "em"],
    "first_gold_only": ["f1", "em"],
    "no_normalisation": ["f1", "em"],
}
"""Columns of a run that show the symptom of a fault; the others' symptoms need another reading."""
NO_DIFFERENCE = Difference(math.nan, math.nan, math.nan, p=1.0, p_margin=1.0)
"""Where one side has no scores."""
EXACT = 0.005
"""An F1 in percent below this is shown as 0.00."""


@dataclass(frozen=True)
class FaultRecords:
    """One table of `records/faults/` and the scores of its answers, with the column `setting`."""

    name: str
    settings: list[str]
    """In the order of the plan; the first is what the others are compared with."""
    runs: pd.DataFrame
    scores: pd.DataFrame

    def own(self, setting: str) -> pd.DataFrame:
        """Return the scores of a setting's answers; none if all of its runs diverged."""
        return self.scores[self.scores["setting"] == setting]

    def f1(self, setting: str) -> Interval:
        """Return F1 with its interval over articles and seeds; nan if all runs diverged."""
        scores = self.own(setting)
        return (
            comparison.interval(scores) if len(scores) else Interval(math.nan, math.nan, math.nan)
        )

    def is_zero(self, setting: str) -> bool:
        """Return whether no answer of any run scored anything."""
        scores = self.own(setting)
        return len(scores) > 0 and bool(scores["f1"].max() < EXACT)

    def table(self) -> pd.DataFrame:
        """Return one row per setting: F1 and its interval, EM, seeds, means of symptoms."""
        rows = []
        for setting in self.settings:
            own, f1 = self.runs[self.runs["setting"] == setting], self.f1(setting)
            row = {"setting": setting, "f1": f1.mean, "f1_low": f1.low, "f1_high": f1.high}
            row |= {"em": own["em"].mean(), "seeds": len(own)}
            row |= {"diverged": int(own["f1"].isna().sum())}
            rows.append(row | {name: own[name].mean() for name in SYMPTOMS})
        return pd.DataFrame(rows)

    def given_away(self, setting: str) -> str:
        """Return the means that show a fault's symptom, in the first setting and with it."""
        first, own = (
            self.runs[self.runs["setting"] == each] for each in (self.settings[0], setting)
        )
        pairs = [(name, first[name].mean(), own[name].mean())
                 for name in GIVEN_AWAY_BY.get(setting, [])]  # fmt: skip
        return ", ".join(f"`{name}` {one:,.4g} to {other:,.4g}" for name, one, other in pairs)

    def effects(self, margin: float = StudyConfig().equivalence_margin) -> pd.DataFrame:
        """Return the difference of every setting to the first one; see `compared`."""
        first = self.own(self.settings[0])
        return compared({name: (self.own(name), first) for name in self.settings[1:]}, margin)


def compared(
    sides: dict[str, tuple[pd.DataFrame, pd.DataFrame]], margin: float = 2.0
) -> pd.DataFrame:
    """Return first minus second in F1 by name, question by question, with the finding.

    Columns: the fields of `Difference`, p values adjusted by Holm's method, and `finding`. Where
    one side has no scores the difference is nan and nothing is found.
    """
    rows = {}
    for name, (first, second) in sides.items():
        found = NO_DIFFERENCE
        if len(first) and len(second):
            found = comparison.difference(first, second, margin=margin)
        rows[name] = found._asdict()
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(Difference._fields))
    for p in ("p", "p_margin"):
        table[p] = comparison.holm(table[p].tolist())
    table["finding"] = list(map(Finding.of, table["p"], table["p_margin"]))
    return table


def load(name: str) -> FaultRecords:
    """Return a table of `records/faults/`.

    Raises RecordError with the command that makes it if the table or one of its settings is
    missing.
    """
    remedy = f"`{command(name)}` makes it"
    files = [f"{name}.{kind}" for kind in ("csv", "parquet")]
    for file in files:
        if not (store.records_folder() / "faults" / file).is_file():
            raise store.RecordError(f"records/faults/{file}: no such table; {remedy}")
    read = (results.committed("faults", file, may_be_faulty=True) for file in files)
    runs, scores = (labelled(table, name) for table in read)
    plan = list(settings(name)["setting"])
    missing = [setting for setting in plan if setting not in set(runs["setting"])]
    if missing:
        error = f"records/faults/{name}.csv: no run of {missing[0]!r}; {remedy}"
        raise store.RecordError(error)
    return FaultRecords(name, plan, runs, scores)


def labelled(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of planned settings, whatever their seed, with the column `setting`."""
    text = {"faults": "str", "initialisation": "str"}
    plain = table.astype(text).assign(learning_rate=table["learning_rate"].map(RATE.format))
    return plain.merge(settings(name), on=KEYS, how="inner")


@cache
def settings(name: str) -> pd.DataFrame:
    """Return the planned settings of a table, with what tells each from the others: `KEYS`."""
    rows = []
    for setting, config in planned(name).items():
        rate = RATE.format(learning_rate(config))  # as text: a CSV may change a last digit
        row = {key: getattr(config, key) for key in KEYS}
        rows.append(row | {"learning_rate": rate, "setting": setting})
    return pd.DataFrame(rows)
