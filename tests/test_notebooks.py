"""Every notebook: its form, a run under papermill, a run under nbval, misspelled parameters, missing inputs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import made_up
import nbformat
import papermill
import pytest
from nbclient.exceptions import DeadKernelError

from stage1 import store
from stage1.config import load_preset
from stage1.report import notebooks, pages, results
from stage1.study import study

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
DATA, TRAIN, EVAL, LOSS, REPORT = NOTEBOOKS
RECORDS = {
    DATA: "smoke/01_data_and_pca.json",
    TRAIN: "smoke/adapters/option3_teacher_forced-seed0/record.json",
    EVAL: "smoke/03_generation_eval.json",
    LOSS: "smoke/04_loss_magnitude.json",
    REPORT: "smoke/05_report.json",
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


@pytest.fixture(scope="module")
def executed(trained) -> dict[Path, Path]:
    """Every notebook, executed by papermill at the smoke preset in their order, each reading the records before it."""
    copies = {path: trained / "smoke/notebooks" / path.name for path in NOTEBOOKS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGE1_RUNS", str(trained))
        for path, copy in copies.items():
            notebooks.execute(path, copy, {"preset": "smoke"})
    return copies


@each
def test_runs_under_papermill_and_renders(path, tmp_path, runs, executed):
    pages.render(executed[path], tmp_path / "page.html")
    record = store.read_json(runs / RECORDS[path])
    assert record["config"]["preset"] == "smoke" and record["results"]
    page = (tmp_path / "page.html").read_text()
    assert "What we found" in page and ("data:image/png;base64" in page or "<svg" in page)
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="http', page), (
        "the page needs the network"
    )


def nbval(notebook: Path, timeout: int = 120) -> subprocess.CompletedProcess:
    """Run the cells again, one by one, and compare every output but images with the one in the notebook."""
    sanitize = Path(__file__).with_name("nbval_sanitize.cfg")
    options = [
        "--nbval",
        "--nbval-current-env",
        f"--nbval-cell-timeout={timeout}",
        f"--nbval-sanitize-with={sanitize}",
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *options,
        "-p",
        "no:cacheprovider",
        "-q",
        str(notebook),
    ]
    return subprocess.run(command, cwd=notebook.parent, capture_output=True, text=True)


@each
def test_gives_the_same_outputs_again_under_nbval(path, runs, executed):
    run = nbval(executed[path])
    assert run.returncode == 0, run.stdout[-3_000:]
    assert f"{len(code_cells(executed[path]))} passed" in run.stdout


def test_nbval_catches_a_wrong_number_in_a_real_notebook(tmp_path, runs, executed):
    notebook = nbformat.read(executed[REPORT], as_version=4)
    (answer,) = [
        cell
        for cell in notebook.cells
        if cell.source.startswith("Markdown") and "decision.answer" in cell.source
    ]
    shown = answer.outputs[0]["data"]["text/markdown"]
    number = re.search(r"F1 (\d+\.\d)", shown)[1]
    answer.outputs[0]["data"]["text/markdown"] = shown.replace(
        number, f"{float(number) + 0.1:.1f}", 1
    )
    nbformat.write(notebook, tmp_path / "planted.ipynb")
    run = nbval(tmp_path / "planted.ipynb")
    assert run.returncode == 1 and "1 failed" in run.stdout, run.stdout[-3_000:]


PLANTED = {
    "an exception": "1 / 0",
    "a dead kernel": "import os\nos._exit(1)",
    "a magic that does not exist": "%nosuchmagic",
}


@pytest.mark.parametrize("source", PLANTED.values(), ids=PLANTED)
def test_papermill_and_nbval_catch(source, tmp_path):
    """The good notebook is executed first, so that nbval has outputs to compare with."""
    cells = [nbformat.v4.new_code_cell("preset = 'smoke'", metadata={"tags": ["parameters"]})]
    language = {
        "language_info": {"name": "python"},
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
    }
    good = nbformat.v4.new_notebook(
        cells=[*cells, nbformat.v4.new_code_cell("1 + 1")], metadata=language
    )
    nbformat.write(good, tmp_path / "good.ipynb")
    notebooks.execute(tmp_path / "good.ipynb", tmp_path / "planted.ipynb", {"preset": "smoke"})
    assert nbval(tmp_path / "planted.ipynb", timeout=20).returncode == 0
    bad = nbformat.read(tmp_path / "planted.ipynb", as_version=4)
    bad.cells[-1].source = source + "\n1 + 1"
    nbformat.write(bad, tmp_path / "planted.ipynb")
    assert nbval(tmp_path / "planted.ipynb", timeout=20).returncode != 0
    with pytest.raises((papermill.PapermillExecutionError, DeadKernelError, notebooks.MagicError)):
        notebooks.execute(tmp_path / "planted.ipynb", tmp_path / "out.ipynb", {"preset": "smoke"})


def test_the_report_recommends_what_its_records_say(tmp_path, runs, executed, monkeypatch):
    """Made-up records in which option 1 wins: the rendered page says so, and the committed ones' winner is gone."""
    made_up.write(tmp_path, f1={"option1_reconstruction": 95.0})
    (tmp_path / "quick").symlink_to(tmp_path / "full")
    monkeypatch.setenv("STAGE1_RECORDS", str(tmp_path))
    notebooks.execute(REPORT, tmp_path / "made_up.ipynb", {"preset": "smoke"})
    pages.render(tmp_path / "made_up.ipynb", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Prefer option 1 (reconstruction alone)" in page and "Train with option 1" in page
    pages.render(executed[REPORT], tmp_path / "committed.html")
    assert "Prefer option 1" not in (tmp_path / "committed.html").read_text()


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
def test_bad_parameters_stop_before_any_work(
    path, parameter, value, message, tmp_path, monkeypatch
):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(
            path, tmp_path / "out.ipynb", {"preset": "smoke", parameter: value}
        )
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
    assert f"reaches F1 {results['ceiling']['f1']:.1f}" in json.dumps(
        nbformat.read(executed, as_version=4)
    )
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
        papermill.execute_notebook(
            TRAIN, tmp_path / "out.ipynb", {"preset": "smoke", "objective": "distil"}
        )
    assert (
        "objective='distil'" in error.value.evalue
        and "did you mean 'distill'?" in error.value.evalue
    )
    assert not (tmp_path / "runs").exists()


def test_evaluation_notebook_names_the_command_that_makes_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(EVAL, tmp_path / "out.ipynb", {"preset": "smoke"})
    assert "as_found-seed0/record.json: this adapter has not been trained yet" in error.value.evalue
    assert (
        "papermill notebooks/02_train_adapter.ipynb out.ipynb -p preset smoke -p objective as_found"
        in (error.value.evalue)
    )


def test_evaluation_notebook_shows_every_condition_of_its_records(tmp_path, runs):
    notebooks.execute(EVAL, tmp_path / "out.ipynb", {"preset": "smoke"})
    rows = {
        row["condition"]: row for row in store.read_json(runs / RECORDS[EVAL])["results"]["table"]
    }
    assert len(rows) == 14
    for folder in (runs / "smoke/adapters").iterdir():
        test = store.read_json(folder / "record.json")["results"]["test"]
        assert rows[test["condition"]]["f1"] == pytest.approx(test["f1"])
    assert rows["text"]["f1"] == rows["embeddings"]["f1"] == rows["codebook"]["f1"]
    assert rows["embeddings"]["retention"] == pytest.approx(100)
