"""Notebooks executed once for all workers, and nbval."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from stage1 import store, study
from stage1.config import load_preset
from stage1.report import notebooks, pages, results

SANITIZE = Path(__file__).resolve().parents[1] / "nbval_sanitize.cfg"
PARAMETERS = {
    "02_train_adapter": {"objective": "distill", "seed": 3, "learning_rate": 0.02},
    "06_fault_gallery": {
        "fault": "slice_of_generated_ids",
        "train_examples": 60, "selection_examples": 24, "test_examples": 24, "warmup_steps": 4
    },
}  # fmt: skip
"""What a notebook is given besides the preset."""
CELL_TIMEOUT = 60
"""Seconds; the slowest cell takes 5 on an idle machine."""


@pytest.fixture
def runs(tmp_path_factory, monkeypatch) -> Path:
    """Return the folder of records that all workers share; kernels use one thread each."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    monkeypatch.setenv("STAGE1_RUNS", str(folder / "notebook-runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder / "notebook-runs"


@pytest.fixture
def once(runs) -> Callable:
    """Return a function that does a step unless this or another worker has done it."""

    def once(name: str, step: Callable[[], object]) -> None:
        runs.mkdir(exist_ok=True)
        done = runs / f"{name}.done"
        with FileLock(runs / f"{name}.lock"):
            if not done.exists():
                step()
                done.touch()

    return once


@pytest.fixture
def trained(runs, once) -> Path:
    """Return the folder of records, with every adapter of the smoke preset trained."""

    def train() -> None:
        prepared = study.prepare(load_preset("smoke"))
        for config in results.planned(prepared.config):
            study.run(config, prepared)

    once("trained", train)
    return runs


@pytest.fixture
def execute(runs, once) -> Callable[[str], Path]:
    """Return a function that executes a notebook at preset smoke and returns the copy."""

    def execute(stem: str) -> Path:
        notebook = store.ROOT / "notebooks" / f"{stem}.ipynb"
        copy = runs / "smoke" / "notebooks" / notebook.name
        parameters = {"preset": "smoke"} | PARAMETERS.get(stem, {})
        once(stem, lambda: notebooks.execute(notebook, copy, parameters))
        return copy

    return execute


@pytest.fixture
def check_page(tmp_path) -> Callable[[Path], str]:
    """Return a function that renders an executed notebook, checks the page and returns it."""

    def check_page(executed: Path) -> str:
        pages.render(executed, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert "What we found" in page and ("data:image/png;base64" in page or "<svg" in page)
        network = re.search(r'<(script|link|img)[^>]+(src|href)="http', page)
        assert not network, f"the page needs the network: {network}"
        return page

    return check_page


@pytest.fixture
def nbval() -> Callable:
    """Return a function that executes a notebook again and compares all outputs but images."""

    def nbval(notebook: Path, cell_timeout: int = CELL_TIMEOUT) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval"]
        command += ["--nbval-current-env", f"--nbval-cell-timeout={cell_timeout}"]
        command += [f"--nbval-sanitize-with={SANITIZE}", str(notebook)]
        return subprocess.run(command, cwd=notebook.parent, capture_output=True, text=True)

    return nbval
