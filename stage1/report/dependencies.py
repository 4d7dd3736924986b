"""Which files of the package a notebook depends on, read from its imports and theirs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat

from stage1.store import ROOT


def imported(source: str) -> Iterator[str]:
    """Dotted names under `stage1` that Python source imports; a name may be of a module or of something in one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stage1":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "stage1")


def files_of(name: str) -> list[Path]:
    """The files that importing a dotted name reads: its module, and the `__init__` of every package on the way."""
    folder, files = ROOT, []
    for part in name.split("."):
        folder = folder / part
        candidates = (folder / "__init__.py", folder.with_suffix(".py"))
        files += [path for path in candidates if path.is_file()]
    return files


def package_files(notebook: Path) -> list[str]:
    """Files of the package that the notebook imports, directly or not, and those that run and render it.

    Paths are relative to the repository.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    waiting = [*imported(code), "stage1.report.notebooks"]
    found: dict[Path, None] = {}
    while waiting:
        for path in files_of(waiting.pop()):
            if path not in found:
                found[path] = None
                waiting += imported(path.read_text("utf-8"))
    return sorted(str(path.relative_to(ROOT)) for path in found)
