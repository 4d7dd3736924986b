"""A sound run can never carry a fault: every way to pretend is tried, and its refusal shown."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from stage1 import gallery, store, study
from stage1.config import StudyConfig
from stage1.faults import FaultError, switched_on
from stage1.report import results


def says(faults: str) -> pd.DataFrame:
    """Return where a run with these faults says what it carries: its folder, record and page."""
    faulty = StudyConfig(faults=faults)
    page = str(results.config_table(faulty).data).partition("<details>")[0]
    for tag in ("<p>", "</p>", "<strong>", "</strong>"):
        page = page.replace(tag, "")
    told = {
        "the name of its folder": store.run_name(faulty),
        "its record": f"faults: {faulty.to_dict()['faults']}",
        "its page, above all else": page,
    }
    return pd.DataFrame(told.items(), columns=["where", "what it says"])


def refusals(faults: str) -> pd.DataFrame:
    """Return the error of every attempt to pass a faulty run off as a sound one.

    Nothing is trained, and nothing stays on disk. Raises AssertionError for an attempt that is not
    refused.
    """
    sound = StudyConfig()
    faulty = sound.replace(faults=faults)
    with tempfile.TemporaryDirectory() as folder:
        table, record = Path(folder) / "runs.csv", Path(folder) / "record.json"
        store.write_csv(table, pd.DataFrame({"faults": [gallery.NONE, faulty.faults]}))
        with switched_on(faulty.faults):
            rows = [
                ("prepare a sound run while faults are on", error_of(study.prepare, sound)),
                (
                    "write a sound run's record while faults are on",
                    error_of(store.write_record, record, sound, {}),
                ),
            ]
        rows += [
            ("take a faulty run for evidence", error_of(results.table_at, table)),
            (
                "take a faulty run's record for a sound run's",
                error_of(results.check_faults, record, faulty.faults, sound.faults),
            ),
        ]
        assert not record.exists()
    shown = [(attempt, error.replace(f"{folder}/", "")) for attempt, error in rows]
    return pd.DataFrame(shown, columns=["attempt", "refusal"])


def error_of(attempt: Callable, *arguments: object) -> str:
    """Return the error with which an attempt is refused."""
    try:
        attempt(*arguments)
    except (FaultError, store.RecordError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"{attempt.__name__} was not refused")
