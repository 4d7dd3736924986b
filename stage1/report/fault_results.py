"""The page of the gallery: its entries, and what the sweeps over it measured.

Where records are missing, the page says which command makes them.
"""

import re
from collections.abc import Callable
from functools import wraps

import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from stage1 import gallery, names, store
from stage1.report import fault_records, fault_takeaways, plots
from stage1.report.fault_records import FaultRecords
from stage1.report.verdicts import signed
from stage1.scoring.comparison import Finding
from stage1.scoring.intervals import Interval
from stage1.study import fault_sweep

SHORT = {
    Finding.DIFFERENT: "different",
    Finding.SLIGHTLY_DIFFERENT: "slightly different",
    Finding.EQUIVALENT: "equivalent",
    Finding.UNDECIDED: "undecided",
}
"""Findings in a narrow column."""
BAR = 0.26
"""Inches of a figure's height for one setting."""


def or_command(show: Callable) -> Callable:
    """Return a function that shows, where records are missing, the command that makes them."""

    @wraps(show)
    def shown(*arguments):
        try:
            return show(*arguments)
        except store.RecordError as error:
            return Markdown(f"Not measured yet: {error}.")

    return shown


def entries() -> pd.DataFrame:
    """Return the gallery, one row per fault."""
    rows = [
        {
            "fault": name,
            "stage": fault.stage,
            "what it does": fault.sentence,
            "found": fault.found,
            "what gives it away": fault.symptom,
        }
        for name, fault in gallery.FAULTS.items()
    ]
    return pd.DataFrame(rows)


def takeaways() -> Markdown:
    """Return what a team lead should take away, in words that follow from the records."""
    return Markdown("\n\n".join(fault_takeaways.sentences()))


@or_command
def settings(name: str) -> HTML:
    """Return one row per setting of a sweep: F1 with its interval, and means of symptoms."""
    return as_html(rows(fault_records.load(name)))


@or_command
def effects(name: str) -> HTML:
    """Return the same with the difference to the first setting, and whether it is real.

    For faults that are added, the symptoms are those of each fault, in the first setting and in it.
    """
    records = fault_records.load(name)
    found, table = records.effects(), rows(records)
    if fault_sweep.TABLES[name].kind == "added":
        away = [records.given_away(setting) or "–" for setting in records.settings]
        table = table[["setting", "F1", "seeds"]].assign(**{"symptom in the records": away})
    table.insert(2, "difference", ["–", *intervals(found)])
    table.insert(3, "finding", ["–", *found["finding"].map(SHORT)])
    return as_html(table.drop(columns="tokens", errors="ignore"))  # 0 where `empty` is 1


@or_command
def pads() -> HTML:
    """Return F1 with the trained pad token beside F1 where the end token pads, by fault added."""
    own, ends = (fault_records.load(name) for name in ("added", "added_pad_is_end"))
    both = [name for name in ends.settings if name in own.settings]
    found = fault_records.compared({name: (ends.own(name), own.own(name)) for name in both})
    columns = {
        "fault": both,
        "trained pad token": [str(own.f1(name)) for name in both],
        "end token": [str(ends.f1(name)) for name in both],
        "difference": intervals(found),
        "finding": found["finding"].map(SHORT),
    }
    return as_html(pd.DataFrame(columns))


def intervals(effects: pd.DataFrame) -> list[str]:
    return [signed(tuple(row)) for row in effects[["mean", "low", "high"]].to_numpy()]


def rows(records: FaultRecords) -> pd.DataFrame:
    """Return the table of a sweep with F1 and its interval, and the seeds, in a column each."""
    table = records.table()
    f1 = table[["f1", "f1_low", "f1_high"]].to_numpy()
    table.insert(1, "F1", [str(Interval(*row)) for row in f1])
    table["seeds"] = table["seeds"].astype(str)
    some = table["diverged"] > 0
    left = (table["seeds"].astype(int) - table["diverged"]).astype(str)
    table.loc[some, "seeds"] = left[some] + " of " + table["seeds"][some]
    if records.name == "ladder":
        table["setting"] = repairs(table["setting"])
    return table.drop(columns=["f1", "f1_low", "f1_high", "em", "diverged"])


def repairs(steps: pd.Series) -> list[str]:
    """Return the steps of the ladder with a dash before what each repairs."""
    return [steps.iloc[0], *(f"– {step}" for step in steps.iloc[1:])]


def as_html(table: pd.DataFrame) -> HTML:
    """Return a table for a page, with `words` set as code."""
    html = table.style.hide().format(precision=2, na_rep="–").to_html()
    return HTML(re.sub("`([^`<]+)`", r"<code>\1</code>", html))


@or_command
def ladder() -> Figure:
    """Draw F1 with its interval for every step of the ladder, from the original at the top."""
    table = fault_records.load("ladder").table()
    figure, (axis,) = plots.panels(1, width=7.0, height=BAR * len(table) + 1.0)
    places = range(len(table))
    axis.barh(places, table["f1"], color=names.BLUE)
    spread = [table["f1"] - table["f1_low"], table["f1_high"] - table["f1"]]
    axis.errorbar(table["f1"], places, xerr=spread, fmt="none", ecolor=names.DARK, capsize=2)
    for place, f1, high in zip(places, table["f1"], table["f1_high"], strict=True):
        axis.annotate(f"{f1:.1f}", (high, place), (5, 0), textcoords="offset points", va="center")
    axis.set_yticks(places, repairs(table["setting"]))
    axis.set(xlabel=plots.F1, xlim=(0, 105), ylim=(len(table) - 0.4, -0.6))
    return figure


def ladder_table() -> pd.DataFrame:
    """Return the ladder for a document. Raises RecordError if its records are missing."""
    table = rows(fault_records.load("ladder"))[["setting", "F1", "empty", "fvu", "seeds"]]
    return table.round(2).rename(columns={"setting": "step, one repair each"})
