"""Notebooks that read no earlier record, under papermill and nbval; what both tools catch."""

import json

import nbformat
import papermill
import pytest
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_notebook, new_output

from stage1 import store
from stage1.report import notebooks

READ_RECORDS = {"03_generation_eval", "04_loss_magnitude", "05_report"}
STEMS = sorted({path.stem for path in (store.ROOT / "notebooks").glob("*.ipynb")} - READ_RECORDS)
TWICE = ["01_data_and_pca", "02_train_adapter", "06_fault_gallery"]
"""Notebooks that are executed once more; what 00 and 07 show live is tested by itself."""
each = pytest.mark.parametrize("stem", STEMS)
pytestmark = pytest.mark.slow


@each
def test_runs_under_papermill_and_renders(stem, execute, check_page):
    check_page(execute(stem))


@pytest.mark.parametrize("stem", TWICE)
def test_gives_the_same_outputs_again_under_nbval(stem, execute, nbval):
    executed = execute(stem)
    again = nbval(executed)
    assert again.returncode == 0, again.stdout[-3_000:]
    cells = nbformat.read(executed, as_version=4).cells
    assert f"{sum(cell.cell_type == 'code' for cell in cells)} passed" in again.stdout


def test_the_first_notebook_records_what_it_shows(runs, execute):
    executed = execute("01_data_and_pca")
    record = store.read_json(runs / "smoke/01_data_and_pca.json")
    assert record["config"]["preset"] == "smoke"
    results = record["results"]
    answers = store.read_table(runs / "smoke/01_data_and_pca.parquet")
    chosen = answers[(answers["condition"] == "embeddings") & (answers["names"] == "unseen")]
    assert results["ceiling"]["f1"] == pytest.approx(chosen["f1"].mean())
    assert results["agree"] == results["asked"] == 48
    shown = json.dumps(nbformat.read(executed, as_version=4))
    assert f"reaches F1 {results['ceiling']['f1']:.1f}" in shown
    lookups = [row for row in results["widths"] if row["condition"] == "codebook"]
    assert [row["K"] for row in lookups] == [6, 12, 24, 48, 96, 192]
    assert len({row["f1"] for row in lookups}) == 1, "lookup is exact at any K"


def test_the_training_notebook_trains_with_its_parameters(runs, execute):
    executed = execute("02_train_adapter")
    (path,) = runs.glob("smoke-*/adapters/distill-seed3/record.json")
    record = store.read_json(path)
    assert record["config"]["preset"] == "smoke"
    assert record["results"]["learning_rate"] == 0.02
    assert set(record["results"]["tokens_supervised"]) == {"kl"}
    assert "def distill(" in executed.read_text()
    assert not (path.parent / "checkpoint.pt").exists()


PLANTED = {
    "%nosuchmagic": (papermill.PapermillExecutionError, notebooks.MagicError),
    "1 / 0": papermill.PapermillExecutionError,
    "import os\nos._exit(1)": DeadKernelError,
}


def planted_notebook(*sources: str) -> nbformat.NotebookNode:
    """Return an executed notebook in which every cell claims to have shown 2."""
    outputs = [new_output("execute_result", {"text/plain": "2"}, execution_count=1)]
    cells = [new_code_cell("preset = 'smoke'", metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(f"{source}\n1 + 1", outputs=outputs) for source in sources]
    for number, cell in enumerate(cells, 1):
        cell.execution_count = number
    kernel = {"name": "python3", "display_name": "Python 3"}
    metadata = {"language_info": {"name": "python"}, "kernelspec": kernel}
    return new_notebook(cells=cells, metadata=metadata)


def test_nbval_catches_a_missing_magic_an_exception_and_a_dead_kernel(tmp_path, nbval):
    nbformat.write(planted_notebook("", *PLANTED), tmp_path / "planted.ipynb")
    run = nbval(tmp_path / "planted.ipynb", cell_timeout=3)
    assert "3 failed, 2 passed" in run.stdout, run.stdout[-3_000:]


@pytest.mark.parametrize("source", PLANTED)
def test_papermill_stops_at(source, tmp_path):
    nbformat.write(planted_notebook(source), tmp_path / "planted.ipynb")
    with pytest.raises(PLANTED[source]):
        notebooks.execute(tmp_path / "planted.ipynb", tmp_path / "out.ipynb", {"preset": "smoke"})
