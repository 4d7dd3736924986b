"""Check that notebooks are executed and clean: `python tests/check_notebooks.py FILE...`."""

import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

PROGRESS = re.compile(r"(\d+)%\|")


def problems(notebook: NotebookNode) -> list[str]:
    """Return what keeps a notebook from being committed, one line per problem."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    found = []
    if tags.count("parameters") != 1:
        found.append(f"{tags.count('parameters')} cells tagged `parameters`: expected one")
    if "injected-parameters" in tags:
        found.append("papermill's injected parameters: commit the notebook, not its output")
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("not executed in order: restart the kernel and run all cells")
    for number, cell in enumerate(cells, 1):
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"cell {number}: an error among its outputs")
        if unfinished_progress(cell):
            found.append(f"cell {number}: a progress bar that did not reach 100 %")
    return found


def unfinished_progress(cell: NotebookNode) -> bool:
    """Return whether a progress bar in the cell's output stops before 100 %."""
    text = "".join(output.get("text", "") for output in cell.outputs)
    final = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return any((bar := PROGRESS.search(line)) and bar[1] != "100" for line in final)


def main() -> None:
    lines = [
        f"{path}: {problem}"
        for path in sys.argv[1:]
        for problem in problems(nbformat.read(Path(path), as_version=4))
    ]
    for line in lines:
        print(line)
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
