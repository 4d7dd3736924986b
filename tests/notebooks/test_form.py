"""The committed notebooks: their form, and parameters that stop them before any work."""

import re
from itertools import pairwise
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from check_notebooks import problems
from nbformat.v4 import new_code_cell, new_notebook, new_output

from stage1 import store

NOTEBOOKS = sorted((store.ROOT / "notebooks").glob("*.ipynb"))
PATHS = {path.stem: path for path in NOTEBOOKS}
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def run_cells(path, count: int, **parameters) -> None:
    """Execute the first code cells in this process, with parameters set as papermill sets them."""
    namespace: dict = {}
    for cell in code_cells(path)[:count]:
        exec(cell.source, namespace)
        if "parameters" in cell.metadata.get("tags", []):
            namespace.update({"preset": "smoke"} | parameters)


@each
def test_is_executed_and_clean(path):
    assert problems(nbformat.read(path, as_version=4)) == []


@each
def test_has_short_cells_without_definitions(path):
    for cell in code_cells(path):
        assert not re.search(r"^\s*(def|class) |lambda", cell.source, re.MULTILINE), cell.source
        assert len(cell.source.splitlines()) <= 25, cell.source


LOADS = re.compile(r"(study\.prepare|model\.load|reader\.make)\(")


@pytest.mark.parametrize("name", [name for name in PATHS if name < "05"])
def test_a_notebook_that_loads_a_model_checks_it_first(name):
    sources = [cell.source for cell in code_cells(PATHS[name])]
    loads = next(i for i, source in enumerate(sources) if LOADS.search(source))
    checks = next(i for i, source in enumerate(sources) if "check.preflight(" in source)
    assert checks <= loads + 1


@pytest.mark.parametrize(
    "context, question, reads, expected",
    [("A.", "B?", False, ("A.", "B?")), (None, "B?", True, ("C.", "B?"))],
)
def test_a_question_of_ones_own_needs_the_data_only_without_a_passage(
    context, question, reads, expected
):
    sources = [cell.source for cell in code_cells(PATHS["00_explore"])]
    (source,) = (source for source in sources if "first_question(" in source)
    reader = SimpleNamespace(first_question=lambda config: ("C.", "D?", [])) if reads else None
    names = {"context": context, "question": question, "config": None, "reader": reader}
    names["Markdown"] = str
    exec(source, names)
    assert (names["context"], names["question"]) == expected


def test_each_figure_of_the_report_names_its_record_and_command():
    cells = nbformat.read(PATHS["05_report"], as_version=4).cells
    figures = [i for i, cell in enumerate(cells) if "report_plots.save(" in cell.source]
    assert len(figures) == 5
    for i in figures:
        caption, line = cells[i + 1].source.split("\n\n")[:2]
        assert caption and line.startswith("Record: ") and "`make full`" in line, line
        assert "python -m stage1.study.sweep" in line
        paths = re.findall(r"`((?:records|figures)/[\w/.]+)`", line)
        assert len(paths) >= 2 and all((store.ROOT / path).is_file() for path in paths), paths


@each
def test_each_figure_names_its_record_and_command_below_its_caption(path):
    cells = nbformat.read(path, as_version=4).cells
    for cell, below in pairwise(cells):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            caption, line = below.source.split("\n\n")[:2]
            assert below.cell_type == "markdown" and caption and line.startswith("Record: "), line
            assert re.search(r"`(make|papermill|python -m stage1)[^`]+`", line), line
            named = re.findall(r"`((?:records|figures|stage1)/[\w./-]+)`", line)
            assert all((store.ROOT / name).is_file() for name in named), named


PROGRESS = "\r  0%|          | 0/4\r 50%|#####     | 2/4"
PLANTED = {
    "cells tagged `parameters`": lambda cells: cells[0].metadata.clear(),
    "injected": lambda cells: cells[1].metadata.update(tags=["injected-parameters"]),
    "not executed in order": lambda cells: cells[1].update(execution_count=3),
    "an error among its outputs": lambda cells: cells[1].outputs.append(new_output("error")),
    "did not reach 100 %": lambda cells: cells[1].outputs[0].update(text=PROGRESS),
}


@pytest.mark.parametrize("message", PLANTED)
def test_the_check_finds(message):
    finished = new_output("stream", text=PROGRESS + "\r100%|##########| 4/4\n")
    cells = [
        new_code_cell("preset = 1", metadata={"tags": ["parameters"]}, execution_count=1),
        new_code_cell("train()", outputs=[finished], execution_count=2),
    ]
    notebook = new_notebook(cells=cells)
    assert problems(notebook) == []
    PLANTED[message](notebook.cells)
    (problem,) = problems(notebook)
    assert message in problem


@each
@pytest.mark.parametrize(
    "parameter, value, message",
    [
        ("sead", 1, "unknown parameter 'sead'; did you mean 'seed'?"),
        ("preset", "quik", "did you mean 'quick'?"),
        ("test_examples", -1, "test_examples=-1: expected one or more"),
    ],
)
def test_a_bad_parameter_stops_the_second_cell(path, parameter, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run_cells(path, 2, **{parameter: value})


def test_the_training_notebook_refuses_an_unknown_objective_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    with pytest.raises(ValueError, match=r"objective='distil'.*did you mean 'distill'\?"):
        run_cells(PATHS["02_train_adapter"], 4, objective="distil")
    assert not (tmp_path / "runs").exists()


def test_the_evaluation_notebook_names_the_command_that_makes_a_missing_adapter(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    with pytest.raises(store.RecordError) as error:
        run_cells(PATHS["03_generation_eval"], 3)
    assert "as_found-seed0/record.json: this adapter has not been trained yet" in str(error.value)
    assert (
        "papermill notebooks/02_train_adapter.ipynb out.ipynb -p preset smoke -p objective as_found"
        in str(error.value)
    )


@pytest.mark.slow
def test_papermill_stops_at_a_bad_parameter_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    given = {"preset": "smoke", "seed": "1"}
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(PATHS["02_train_adapter"], tmp_path / "out.ipynb", given)
    assert "seed='1' is a str: expected int" in error.value.evalue
    assert not (tmp_path / "runs").exists()
