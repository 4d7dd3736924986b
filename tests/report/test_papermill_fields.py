"""papermill takes every field of the config as a parameter, and warns about other names."""

import os
import subprocess
import sys
import tomllib

import pytest

from stage1 import config
from stage1.store import ROOT

ENTRY_POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]


@pytest.fixture
def papermill(tmp_path):
    """Return a function that runs papermill where the package's entry points are installed."""
    installed = tmp_path / "installed" / "stage1_entry-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: stage1_entry\nVersion: 0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in targets.items())
        for group, targets in ENTRY_POINTS.items()
    ]
    (installed / "entry_points.txt").write_text("".join(lines))
    path = os.pathsep.join([str(installed.parent), str(ROOT)])

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "papermill", *arguments]
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout + done.stderr

    return run


def test_only_a_name_that_is_no_field_warns(papermill):
    notebook = str(ROOT / "notebooks/02_train_adapter.ipynb")
    given = ["-p", "weight_decay", "0.0", "-p", "sead", "1", "-p", "epochs", "1"]
    shown = papermill(notebook, "out.ipynb", "--prepare-only", *given)
    assert "Passed unknown parameter: sead" in shown
    assert shown.count("unknown parameter") == 1


def test_the_help_of_a_notebook_lists_every_field_once(papermill):
    shown = papermill(str(ROOT / "notebooks/02_train_adapter.ipynb"), "--help-notebook")
    listed = [line.split(":")[0].strip() for line in shown.splitlines() if ": " in line]
    for name in config.StudyConfig.__dataclass_fields__:
        assert listed.count(name) == 1, name


def test_a_notebook_without_the_config_is_left_alone(papermill, tmp_path):
    notebook = (
        '{"cells": [{"cell_type": "code", "execution_count": null, "id": "a", "outputs": [],'
        '"metadata": {"tags": ["parameters"]}, "source": "x = 1"}], "nbformat": 4,'
        '"nbformat_minor": 5, "metadata": {"kernelspec": {"name": "python3", "language": "python",'
        '"display_name": "Python 3"}}}'
    )
    (tmp_path / "other.ipynb").write_text(notebook)
    shown = papermill("other.ipynb", "out.ipynb", "--prepare-only", "-p", "weight_decay", "0.0")
    assert "unknown parameter: weight_decay" in shown
