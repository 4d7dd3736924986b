"""The gallery's entries, and what the sweeps over it measured, as tables and one figure."""

from pathlib import Path

import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from stage1 import gallery, names, store
from stage1.config import StudyConfig
from stage1.report import plots, results
from stage1.scoring import comparison
from stage1.study.rates import learning_rate

KEYS = ["faults", "initialisation", "learning_rate", "warmup_steps"]
"""Columns that tell the settings of these sweeps apart."""
SYMPTOMS = ["ended", "empty", "tokens", "right_first", "fvu", "norm_ratio"]


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


def measured(name: str, planned: dict[str, StudyConfig]) -> pd.DataFrame:
    """Return one row per planned setting of `records/faults/<name>.csv`, in their order.

    F1 with its interval over articles and seeds, the number of seeds, and means over seeds of what
    gives a fault away. Raises RecordError if the table or one of the settings is missing.
    """
    runs = results.committed("faults", f"{name}.csv", may_be_faulty=True)
    scores = results.committed("faults", f"{name}.parquet", may_be_faulty=True)
    rows = []
    for label, config in planned.items():
        own, answers = matching(runs, config), matching(scores, config)
        if own.empty:
            raise store.RecordError(
                f"records/faults/{name}.csv: no run of {label!r}; "
                f"`python -m stage1.study.fault_sweep {name}` makes it"
            )
        f1 = comparison.interval(answers)
        row = {"setting": label, "f1": f1.mean, "f1_low": f1.low, "f1_high": f1.high}
        row |= {"em": own["em"].mean(), "seeds": len(own)}
        rows.append(row | {name: own[name].mean() for name in SYMPTOMS})
    return pd.DataFrame(rows)


def matching(table: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """Return the rows of a config, whatever their seed."""
    values = {name: getattr(config, name) for name in KEYS} | {
        "learning_rate": learning_rate(config)
    }
    return table[(table[KEYS].astype(str) == [str(values[name]) for name in KEYS]).all(axis=1)]


def shown(name: str, planned: dict[str, StudyConfig]) -> HTML:
    """Return the measured table for a page, or the command that makes its records."""
    try:
        table = measured(name, planned)
    except store.RecordError:
        return missing(name)
    return HTML(table.style.hide().format(precision=2).to_html())


def missing(name: str) -> HTML:
    command = f"python -m stage1.study.fault_sweep {name} records/faults/{name}.csv"
    return HTML(f"<p>Not measured yet: <code>{command}</code> makes these records on a GPU.</p>")


def ladder(name: str, planned: dict[str, StudyConfig]) -> Figure | HTML:
    """Draw F1 with its interval for every step of the ladder, from the original at the top."""
    try:
        table = measured(name, planned)
    except store.RecordError:
        return missing(name)
    figure, (axis,) = plots.panels(1, width=7.0, height=0.26 * len(table) + 1.0)
    places = range(len(table))
    axis.barh(places, table["f1"], color=names.BLUE)
    spread = [table["f1"] - table["f1_low"], table["f1_high"] - table["f1"]]
    axis.errorbar(table["f1"], places, xerr=spread, fmt="none", ecolor=names.DARK, capsize=2)
    axis.set_yticks(places, [table["setting"].iloc[0], *(f"– {s}" for s in table["setting"][1:])])
    axis.invert_yaxis()
    axis.set(xlabel=plots.F1, xlim=(0, 100))
    return figure


def side_by_side(sound: Path, faulty: Path) -> pd.DataFrame:
    """Return what two records measured, one column each."""
    columns = {}
    for label, path in (("without the fault", sound), ("with it", faulty)):
        record = store.read_json(path)["results"]
        measures = record["test"] | record["reconstruction"]
        row = {name: measures[name] for name in ("f1", "em", *SYMPTOMS, "ce_first")}
        row |= {"selection_f1": record["selection"].get("f1")}
        for term, tokens in record["tokens_supervised"].items():
            row[f"{term}_tokens per step"] = tokens / record["steps"]
        columns[label] = row
    return pd.DataFrame(columns)


def symptom(faults: str) -> str:
    """Return what gives the faults away."""
    return "; ".join(gallery.FAULTS[name].symptom for name in gallery.names(faults)) or "nothing"
