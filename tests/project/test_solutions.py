"""The solutions run as they stand, and every notebook has its two exercises."""

import os
import re
import subprocess
import sys

import nbformat
import pytest

from stage1.store import ROOT

PAGE = (ROOT / "docs" / "solutions.md").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_solution_runs(tmp_path):
    """In one process, in the order of the page: later blocks use what earlier ones made."""
    environment = os.environ | {"STAGE1_RUNS": str(tmp_path)}
    command = [sys.executable, "-c", "\n".join(BLOCKS)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert not list(tmp_path.iterdir()), "solutions leave no record"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_ends_with_two_exercises_whose_solutions_stand_on_the_page(path):
    last = nbformat.read(path, as_version=4).cells[-1].source
    assert last.startswith("## Exercises") and "docs/solutions.md" in last
    asked = re.findall(r"^\d\. (.*?)(?=\n\d\. |\n\n)", last, re.MULTILINE | re.DOTALL)
    section = next(part for part in PAGE.split("\n## ") if part.startswith(path.stem[:2]))
    solved = re.findall(r"^\*\*\d\. (.*?)\*\*", section, re.MULTILINE | re.DOTALL)
    assert len(asked) == len(solved) == section.count("```python") == 2
    flat = [" ".join(text.split()) for text in (*asked, *solved)]
    assert flat[:2] == flat[2:]
