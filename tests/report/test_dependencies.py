"""Files of the package that a notebook depends on: found through imports, and without torch."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from stage1.report import dependencies
from stage1.store import ROOT

NOTEBOOKS = {path.stem[:2]: path for path in (ROOT / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize(
    "notebook, needed, not_needed",
    [
        ("01", ["model/token_batch.py", "corpus/almanac.py", "report/pages.py"], "pretrain/"),
        ("02", ["objectives.py", "training/loop.py", "machine/processes.py"], ""),
        ("03", ["evaluation/conditions.py", "scoring/tables.py", "report/plots.py"], ""),
        ("04", ["training/observer.py", "report/report_plots.py", "study/references.py"], ""),
        ("05", ["report/evidence.py", "scoring/comparison.py", "__init__.py"], "model/"),
    ],
)
def test_a_notebook_depends_on_what_it_imports_and_what_renders_it(notebook, needed, not_needed):
    files = dependencies.package_files(NOTEBOOKS[notebook])
    assert {f"stage1/{name}" for name in [*needed, "report/formulas.py"]} <= set(files)
    assert all((ROOT / file).is_file() for file in files) and files == sorted(set(files))
    assert not not_needed or not [file for file in files if f"stage1/{not_needed}" in file]


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package in which a notebook imports `top`, which imports `deep` inside a function."""
    monkeypatch.setattr(dependencies, "ROOT", tmp_path)
    for name, source in {
        "stage1/__init__.py": "",
        "stage1/inner/__init__.py": "from stage1 import loop",
        "stage1/loop.py": "import stage1.inner",
        "stage1/top.py": "def f():\n    from stage1.inner.deep import value",
        "stage1/inner/deep.py": "import os, numpy\nvalue = 1",
        "stage1/other.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    cells = [
        nbformat.v4.new_markdown_cell("import stage1.other"),
        nbformat.v4.new_code_cell("from stage1.top import f"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebook.ipynb")
    return tmp_path


def test_imports_are_followed_to_the_end_and_round_a_circle(package):
    files = dependencies.package_files(package / "notebook.ipynb")
    names = ["__init__", "inner/__init__", "inner/deep", "loop", "top"]
    assert files == [f"stage1/{name}.py" for name in names]


@pytest.mark.parametrize("source", ["from stage1 import other", "import stage1.other as o"])
def test_an_edit_of_a_deep_module_brings_its_new_imports(package, source):
    before = dependencies.package_files(package / "notebook.ipynb")
    (package / "stage1/inner/deep.py").write_text(source)
    after = dependencies.package_files(package / "notebook.ipynb")
    assert sorted([*before, "stage1/other.py"]) == after


@pytest.mark.slow
def test_the_report_imports_no_torch():
    modules = "claims, decision, evidence, plots, report_plots, results, pages, notebooks"
    code = f"import sys\nfrom stage1.report import {modules}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
