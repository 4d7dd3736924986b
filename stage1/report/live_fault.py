"""One fault, live: the same small training without it and with it."""

from pathlib import Path

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from stage1 import check, gallery, store, study
from stage1.config import StudyConfig
from stage1.report import plots
from stage1.report.fault_records import SYMPTOMS

SHOWN = 6
"""Answers that the page shows."""
TABLES = ("curve", "selection")
SIDES = ("without the fault", "with it")


class LiveFault:
    """Two runs of a config, without faults and with some; without any fault, nothing is trained."""

    def __init__(self, config: StudyConfig, faults: str):
        """Train and test both runs now, unless they are among the committed ones.

        Raises PreflightError for a language model that cannot do the task even without the faults.
        """
        self.faulty = config.replace(faults=faults)
        self.records: tuple[Path, ...] = ()
        if self.faulty.faults != gallery.NONE:
            sound = study.prepare(config)
            check.preflight(sound, timing=False)
            self.records = tuple(map(study.obtain, (sound, study.prepare(self.faulty))))

    def side_by_side(self) -> Styler | Markdown:
        """Return what the two records measured, one column each."""
        if not self.records:
            return nothing()
        results = [store.read_json(path)["results"] for path in self.records]
        columns = dict(zip(SIDES, map(measures, results), strict=True))
        return pd.DataFrame(columns).style.format(precision=3, na_rep="–")

    def training(self) -> Figure | Markdown:
        """Draw the faulty run's training."""
        if not self.records:
            return nothing()
        folder = self.records[1].parent
        curve, selection = (store.read_table(folder / f"{n}.parquet") for n in TABLES)
        return plots.training(curve, selection, self.faulty.objective)

    def answers(self) -> Styler | Markdown:
        """Return the first test questions' answers by both runs, with their F1."""
        if not self.records:
            return nothing()
        tables = (store.read_table(path.parent / "answers.parquet") for path in self.records)
        sound, faulty = (table.set_index("id") for table in tables)
        columns = {
            "gold": sound["golds"].str[0],
            SIDES[0]: sound["prediction"],
            SIDES[1]: faulty["prediction"],
            "F1 without": sound["f1"],
            "F1 with": faulty["f1"],
        }
        shown = pd.DataFrame(columns).loc[sound.index[:SHOWN]]
        return shown.style.hide().format(precision=0)

    def found(self) -> Markdown:
        """Say in words what the fault changed and what gives it away."""
        if not self.records:
            return nothing()
        sound, faulty = (store.read_json(path)["results"]["test"] for path in self.records)
        first = [100 * side["right_first"] for side in (sound, faulty)]
        return Markdown(
            f"- **Live.** `{self.faulty.faults}` turns F1 {sound['f1']:.1f} into "
            f"{faulty['f1']:.1f} and EM {sound['em']:.1f} into {faulty['em']:.1f} on "
            f"{faulty['questions']} questions; {100 * faulty['empty']:.0f} % of its answers are "
            f"empty, and {first[1]:.1f} % of first answer tokens are right under teacher forcing "
            f"({first[0]:.1f} % without the fault).\n"
            f"- **What gives it away:** {symptom(self.faulty.faults)}."
        )


def measures(results: dict) -> dict[str, float]:
    """Return a record's scores, symptoms and supervised tokens per step."""
    whole = results["test"] | results["reconstruction"]
    row = {name: whole[name] for name in ("f1", "em", *SYMPTOMS, "ce_first")}
    row |= {"selection_f1": results["selection"].get("f1")}
    for term, tokens in results["tokens_supervised"].items():
        row[f"{term}_tokens per step"] = tokens / results["steps"]
    return row


def nothing() -> Markdown:
    return Markdown(
        "No fault was named, so nothing was trained: `-p fault NAME` runs one of the gallery's."
    )


def symptom(faults: str) -> str:
    """Return what gives the faults away."""
    return "; ".join(gallery.FAULTS[name].symptom for name in gallery.names(faults))
