"""Tables of the gallery: its entries, what sweeps measured, and what is said without records."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from stage1 import gallery, store
from stage1.config import load_preset
from stage1.report import fault_results
from stage1.study.fault_sweep import added
from stage1.study.rates import learning_rate

RECIPE = load_preset("recipe")
PLANNED = dict(list(added(RECIPE).items())[:3])
"""The recipe and two faults."""


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Made-up records of a sweep: F1 90 without a fault, 40 and 0 with one."""
    monkeypatch.setenv("STAGE1_RECORDS", str(tmp_path))
    rows, answers = [], []
    for config, f1 in zip(PLANNED.values(), (90.0, 40.0, 0.0), strict=True):
        for seed in (0, 1):
            key = {name: getattr(config, name) for name in fault_results.KEYS} | {"seed": seed}
            key["learning_rate"] = learning_rate(config)
            symptoms = dict.fromkeys(fault_results.SYMPTOMS, 0.5)
            rows.append(key | symptoms | {"f1": f1 + seed, "em": f1 - 10})
            for i in range(6):
                answers.append(key | {"id": str(i), "title": str(i // 2), "f1": f1 + seed})
    (tmp_path / "faults").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "faults/added.csv", index=False)
    table = pd.DataFrame(answers).astype({"faults": "category"})
    table.to_parquet(tmp_path / "faults/added.parquet", index=False)
    return tmp_path


def test_every_fault_has_an_entry():
    table = fault_results.entries()
    assert table["fault"].tolist() == list(gallery.FAULTS)
    assert table.notna().all(axis=None)


def test_a_setting_has_the_mean_of_its_own_runs(records):
    table = fault_results.measured("added", PLANNED)
    assert table["setting"].tolist() == list(PLANNED)
    assert table["f1"].tolist() == pytest.approx([90.5, 40.5, 0.5])
    assert (table["f1_low"] <= table["f1"]).all() and (table["f1"] <= table["f1_high"]).all()
    assert table["seeds"].tolist() == [2, 2, 2]


def test_a_setting_without_runs_is_named_with_the_command_that_makes_it(records):
    missing = PLANNED | {"pad_is_end": RECIPE.replace(faults="pad_is_end")}
    with pytest.raises(store.RecordError, match=r"no run of 'pad_is_end'.*fault_sweep added"):
        fault_results.measured("added", missing)


def test_a_page_shows_the_table_or_how_to_make_it(records):
    assert "90.50" in fault_results.shown("added", PLANNED).data
    assert isinstance(fault_results.ladder("added", PLANNED), Figure)
    for absent in (fault_results.shown("ladder", PLANNED), fault_results.ladder("ladder", PLANNED)):
        assert "stage1.study.fault_sweep ladder" in absent.data
