"""Every notebook: its form, a run under papermill, a run under nbval, misspelled parameters, missing inputs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from stage1 import notebooks, results, store, study
from stage1.config import load_preset

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
DATA, TRAIN, EVAL = NOTEBOOKS
RECORDS = {
    DATA: "smoke/01_data_and_pca.json",
    TRAIN: "smoke/adapters/option3_teacher_forced-seed0/record.json",
    EVAL: "smoke/03_generation_eval.json",
}
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A runs folder with every adapter of the smoke preset, as the training notebook leaves them."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGE1_RUNS", str(folder))
        prepared = study.prepare(load_preset("smoke"))
        for config in results.planned(prepared.config):
            study.run(config, prepared)
    return folder


@pytest.fixture
def runs(trained, monkeypatch) -> Path:
    monkeypatch.setenv("STAGE1_RUNS", str(trained))
    return trained


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
def test_runs_under_papermill_and_renders(path, tmp_path, runs):
    (runs / RECORDS[path]).unlink(missing_ok=True)
    notebooks.execute(path, tmp_path / path.name, {"preset": "smoke"})
    notebooks.render(tmp_path / path.name, tmp_path / "page.html")
    record = store.read_json(runs / RECORDS[path])
    assert record["config"]["preset"] == "smoke" and record["results"]
    page = (tmp_path / "page.html").read_text()
    assert "What we found" in page and "data:image/png;base64" in page
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="http', page), "the page needs the network"


@each
def test_passes_nbval(path, tmp_path, runs):
    """Cells run one by one without an error; a dead kernel ends at the time-out instead of hanging."""
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
    notebooks.execute(DATA, executed, {"preset": "smoke"})
    results = store.read_json(tmp_path / "smoke/01_data_and_pca.json")["results"]
    answers = store.read_table(tmp_path / "smoke/01_data_and_pca.parquet")
    chosen = answers[(answers["condition"] == "embeddings") & (answers["names"] == "unseen")]
    assert results["ceiling"]["f1"] == pytest.approx(chosen["f1"].mean())
    assert results["agree"] == results["asked"] == 48
    assert f"reaches F1 {results['ceiling']['f1']:.1f}" in json.dumps(nbformat.read(executed, as_version=4))
    lookups = [row for row in results["widths"] if row["condition"] == "codebook"]
    assert [row["K"] for row in lookups] == [6, 12, 24, 48, 96, 192]
    assert len({row["f1"] for row in lookups}) == 1, "lookup is exact at any K"


def test_training_notebook_trains_what_it_is_told_to(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    given = {"preset": "smoke", "objective": "distill", "seed": 3, "learning_rate": 0.02}
    notebooks.execute(TRAIN, tmp_path / "out.ipynb", given)
    (path,) = tmp_path.rglob("record.json")
    record = store.read_json(path)
    assert path.parent.name == "distill-seed3" and path.parents[2].name.startswith("smoke-")
    assert record["results"]["learning_rate"] == 0.02
    assert set(record["results"]["tokens_supervised"]) == {"kl"}
    assert "def distill(" in (tmp_path / "out.ipynb").read_text()
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_training_notebook_refuses_an_unknown_objective_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(TRAIN, tmp_path / "out.ipynb", {"preset": "smoke", "objective": "distil"})
    assert "objective='distil'" in error.value.evalue and "did you mean 'distill'?" in error.value.evalue
    assert not (tmp_path / "runs").exists()


def test_evaluation_notebook_names_the_command_that_makes_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(EVAL, tmp_path / "out.ipynb", {"preset": "smoke"})
    assert "as_found-seed0/record.json: this adapter has not been trained yet" in error.value.evalue
    assert "papermill notebooks/02_train_adapter.ipynb out.ipynb -p preset smoke -p objective as_found" in (
        error.value.evalue
    )


def test_evaluation_notebook_shows_every_condition_of_its_records(tmp_path, runs):
    notebooks.execute(EVAL, tmp_path / "out.ipynb", {"preset": "smoke"})
    rows = {row["condition"]: row for row in store.read_json(runs / RECORDS[EVAL])["results"]["table"]}
    assert len(rows) == 14
    for folder in (runs / "smoke/adapters").iterdir():
        test = store.read_json(folder / "record.json")["results"]["test"]
        assert rows[test["condition"]]["f1"] == pytest.approx(test["f1"])
    assert rows["text"]["f1"] == rows["embeddings"]["f1"] == rows["codebook"]["f1"]
    assert rows["embeddings"]["retention"] == pytest.approx(100)
