"""The page of the gallery: its entries, what sweeps measured, and what is said without records."""

import shutil

import made_up_faults
import pandas as pd
import pytest
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from stage1 import gallery, store
from stage1.report import fault_records, fault_results
from stage1.study import fault_sweep


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    made_up_faults.write_all(folder)
    return folder


@pytest.fixture
def records(made_up, tmp_path, monkeypatch):
    """Made-up records of all sweeps."""
    monkeypatch.setenv("STAGE1_RECORDS", str(tmp_path))
    shutil.copytree(made_up, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def no_records(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RECORDS", str(tmp_path))


# ---------------------------------------------------------------- records


def test_a_setting_has_the_mean_of_its_own_runs(records):
    table = fault_records.load("added").table().set_index("setting")
    assert list(table.index) == ["recipe", *gallery.FAULTS]
    assert table.loc["recipe", "f1"] == pytest.approx(90, abs=1)
    assert table.loc["no_end_token", "f1"] == pytest.approx(60, abs=1)
    assert table.loc["slice_of_generated_ids", ["f1", "f1_low", "f1_high"]].tolist() == [0, 0, 0]
    assert (table["f1_low"] <= table["f1"]).all() and (table["f1"] <= table["f1_high"]).all()
    assert (table["seeds"] == made_up_faults.SEEDS).all()


def test_the_keys_tell_the_settings_of_every_sweep_apart():
    for name in fault_sweep.TABLES:
        table = fault_records.settings(name)
        assert not table[fault_records.KEYS].duplicated().any(), name
        assert len(table) == len(fault_sweep.planned(name))


def test_a_diverged_run_is_counted_and_has_no_part_in_the_mean(records):
    added = fault_records.load("added")
    row = added.table().set_index("setting").loc["xavier_start"]
    assert (row["seeds"], row["diverged"]) == (3, 1) and row["f1"] == pytest.approx(90, abs=1)
    assert "2 of 3" in fault_results.effects("added").data
    assert added.effects().loc["xavier_start", "mean"] == pytest.approx(0, abs=1e-6)


def test_a_setting_whose_runs_all_diverged_is_neither_zero_nor_worse(records):
    path = records / "faults/added.parquet"
    scores = pd.read_parquet(path)
    scores[scores["faults"] != "mask_of_ones"].to_parquet(path, index=False)
    added = fault_records.load("added")
    assert not added.is_zero("mask_of_ones")
    row = added.effects().loc["mask_of_ones"]
    assert pd.isna(row["mean"]) and str(row["finding"]) == "undecided"
    assert isinstance(fault_results.effects("added"), HTML)


@pytest.mark.parametrize("lost", ["added.csv", "added.parquet"])
def test_a_missing_table_is_named_with_the_command_that_makes_it(records, lost):
    (records / "faults" / lost).unlink()
    message = rf"records/faults/{lost}: no such table; `python -m stage1.study.fault_sweep added"
    with pytest.raises(store.RecordError, match=message):
        fault_records.load("added")


def test_a_setting_without_runs_is_named_with_the_command_that_makes_it(records):
    path = records / "faults/added.csv"
    rows = pd.read_csv(path)
    rows[rows["faults"] != "pad_is_end"].to_csv(path, index=False)
    with pytest.raises(store.RecordError, match=r"no run of 'pad_is_end'; .*fault_sweep added"):
        fault_records.load("added")


# ---------------------------------------------------------------- the page


def test_every_fault_has_an_entry():
    table = fault_results.entries()
    assert table["fault"].tolist() == list(gallery.FAULTS)
    assert table.notna().all(axis=None)
    assert "<code>" in fault_results.as_html(table).data


SHOWN = {
    "ladder": lambda: fault_results.settings("ladder"),
    "added": lambda: fault_results.effects("added"),
    "removed": lambda: fault_results.effects("removed"),
    "unsliced": lambda: fault_results.effects("unsliced"),
    "added_pad_is_end": fault_results.pads,
}
"""What the page shows of every table."""


@pytest.mark.parametrize("name", fault_sweep.TABLES)
def test_the_page_shows_every_setting_of_a_table(records, name):
    page = SHOWN[name]().data
    for setting in fault_sweep.planned(name):
        assert f"{setting}<" in page
    assert page.count("<tr>") == len(fault_sweep.planned(name)) + 1


def test_the_page_shows_differences_and_findings(records):
    page = fault_results.effects("added").data
    assert "-30.0 [-30.0, -30.0]" in page and "different" in page and "equivalent" in page
    pads = fault_results.pads().data
    assert "-35.0 [-35.0, -35.0]" in pads


def test_a_fault_is_shown_with_the_symptom_that_gives_it_away(records):
    added = fault_records.load("added")
    assert added.given_away("slice_of_generated_ids").startswith("`empty` 0 to 1, `tokens` 0.5")
    assert added.given_away("pad_is_end") == ""
    assert "<code>empty</code> 0 to 1" in fault_results.effects("added").data
    assert set(fault_records.GIVEN_AWAY_BY) <= set(gallery.FAULTS)


def test_the_ladder_is_drawn_with_a_bar_per_step(records):
    figure = fault_results.ladder()
    assert isinstance(figure, Figure)
    (axis,) = figure.axes
    steps = list(fault_sweep.planned("ladder"))
    assert [text.get_text().removeprefix("– ") for text in axis.get_yticklabels()] == steps
    widths = [bar.get_width() for bar in axis.patches]
    assert widths == sorted(widths) and len(widths) == len(steps) and widths[0] == 0


@pytest.mark.parametrize("show", [*SHOWN.values(), fault_results.ladder, fault_results.takeaways])
def test_without_records_the_page_says_which_command_makes_them(no_records, show):
    shown = show()
    assert isinstance(shown, Markdown) and "Not measured yet" in shown.data
    assert "fault_sweep" in shown.data or "docs/original.md" in shown.data
