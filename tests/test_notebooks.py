"""Every notebook: its form, a run under papermill, a run under nbval, and misspelled parameters."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from stage1 import notebooks, store

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@each
def test_form(path):
    cells = code_cells(path)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in cells)
    for cell in cells:
        assert not re.search(r"^\s*(def|class) |lambda", cell.source, re.MULTILINE), cell.source
        assert len(cell.source.splitlines()) <= 25, cell.source
        assert not any(output.output_type == "error" for output in cell.outputs)


@each
def test_committed_as_executed_in_order(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@each
def test_runs_under_papermill_and_renders(path, tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    notebooks.execute(path, "smoke", tmp_path / "smoke/notebooks" / path.name)
    notebooks.render(tmp_path / "smoke/notebooks" / path.name, tmp_path / "page.html")
    record = store.read_json(tmp_path / "smoke" / f"{path.stem}.json")
    assert record["config"]["preset"] == "smoke" and record["results"]
    page = (tmp_path / "page.html").read_text()
    assert "What we found" in page and "data:image/png;base64" in page
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="http', page), "the page needs the network"


@each
def test_passes_nbval(path, tmp_path, monkeypatch):
    """Cells run one by one without an error; a dead kernel ends at the time-out instead of hanging."""
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    copy = tmp_path / path.name
    papermill.execute_notebook(path, copy, {"preset": "smoke"}, prepare_only=True)
    options = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=120", "-p", "no:cacheprovider", "-q"]
    command = [sys.executable, "-m", "pytest", *options, str(copy)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert f"{len(code_cells(copy))} passed" in run.stdout


@each
@pytest.mark.parametrize(
    "parameter, value, message",
    [
        ("sead", 1, "unknown parameter 'sead'; did you mean 'seed'?"),
        ("seed", "1", "seed='1' is a str: expected int"),
        ("test_examples", -1, "test_examples=-1: expected one or more"),
        ("preset", "quik", "did you mean 'quick'?"),
    ],
)
def test_bad_parameters_stop_before_any_work(path, parameter, value, message, tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(path, tmp_path / "out.ipynb", {"preset": "smoke", parameter: value})
    assert message in error.value.evalue
    assert not (tmp_path / "runs").exists()


def test_first_notebook_records_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    executed = tmp_path / "smoke/notebooks/01.ipynb"
    notebooks.execute(NOTEBOOKS[0], "smoke", executed)
    results = store.read_json(tmp_path / "smoke/01_data_and_pca.json")["results"]
    answers = store.read_table(tmp_path / "smoke/01_data_and_pca.parquet")
    chosen = answers[(answers["condition"] == "embeddings") & (answers["names"] == "unseen")]
    assert results["ceiling"]["f1"] == pytest.approx(chosen["f1"].mean())
    assert results["agree"] == results["asked"] == 48
    assert f"reaches F1 {results['ceiling']['f1']:.1f}" in json.dumps(nbformat.read(executed, as_version=4))
