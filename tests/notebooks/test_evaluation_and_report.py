"""Notebooks that read earlier records, under papermill, with every adapter of preset smoke."""

import re

import made_up
import nbformat
import pytest

from stage1 import store
from stage1.report import notebooks

RECORDS = {
    "03_generation_eval": "smoke/03_generation_eval.json",
    "04_loss_magnitude": "smoke/04_loss_magnitude.json",
    "05_report": "smoke/05_report.json",
}
pytestmark = pytest.mark.slow


@pytest.fixture
def executed(trained, execute):
    """Return a function that executes a notebook after those whose records it reads."""

    def executed(stem: str):
        if stem == "05_report":
            execute("03_generation_eval")
        return execute(stem)

    return executed


@pytest.mark.parametrize("stem", RECORDS)
def test_runs_under_papermill_and_renders(stem, runs, executed, check_page):
    check_page(executed(stem))
    record = store.read_json(runs / RECORDS[stem])
    assert record["config"]["preset"] == "smoke" and record["results"]


def test_the_evaluation_notebook_shows_every_condition_of_its_records(runs, executed):
    executed("03_generation_eval")
    table = store.read_json(runs / RECORDS["03_generation_eval"])["results"]["table"]
    rows = {row["condition"]: row for row in table}
    assert len(rows) == 14
    for folder in (runs / "smoke/adapters").iterdir():
        test = store.read_json(folder / "record.json")["results"]["test"]
        assert rows[test["condition"]]["f1"] == pytest.approx(test["f1"])
    assert rows["text"]["f1"] == rows["embeddings"]["f1"] == rows["codebook"]["f1"]
    assert rows["embeddings"]["retention"] == pytest.approx(100)


def test_nbval_repeats_the_report_and_catches_one_wrong_number(tmp_path, executed, nbval):
    """A number is changed in the answer; every other cell gives the same outputs again."""
    notebook = nbformat.read(executed("05_report"), as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (number,) = (i for i, cell in enumerate(cells) if "decision.beyond(c)" in cell.source)
    data = cells[number].outputs[0]["data"]
    f1 = re.search(r"F1 (\d+\.\d)", data["text/markdown"])[1]
    data["text/markdown"] = data["text/markdown"].replace(f1, f"{float(f1) + 0.1:.1f}", 1)
    nbformat.write(notebook, tmp_path / "planted.ipynb")
    run = nbval(tmp_path / "planted.ipynb")
    assert f"1 failed, {len(cells) - 1} passed" in run.stdout, run.stdout[-3_000:]
    assert f"planted.ipynb::Cell {number}" in run.stdout


def test_the_report_recommends_what_its_records_say(tmp_path, executed, check_page, monkeypatch):
    """Where option 1 wins in made-up records, the page recommends it."""
    assert "then train with option 1" not in check_page(executed("05_report"))
    made_up.write(tmp_path, f1={"option1_reconstruction": 95.0})
    (tmp_path / "quick").symlink_to(tmp_path / "full")
    (tmp_path / "english").symlink_to(store.ROOT / "records" / "english")
    monkeypatch.setenv("STAGE1_RECORDS", str(tmp_path))
    original = store.ROOT / "notebooks/05_report.ipynb"
    notebooks.execute(original, tmp_path / "made_up.ipynb", {"preset": "smoke"})
    page = check_page(tmp_path / "made_up.ipynb")
    assert "then train with option 1 (reconstruction alone)" in page
    assert "Objective:</strong> option 1 (reconstruction alone)" in page
