"""Find the files of the package that a notebook depends on, from its imports and theirs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat

from stage1.store import ROOT


def imported(source: str) -> Iterator[str]:
    """Yield the dotted names under `stage1` that source code imports: modules or their members."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stage1":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "stage1")


def files_of(name: str) -> list[Path]:
    """Return the files that importing a dotted name reads: its module and its packages."""
    folder, files = ROOT, []
    for part in name.split("."):
        folder = folder / part
        candidates = (folder / "__init__.py", folder.with_suffix(".py"))
        files += [path for path in candidates if path.is_file()]
    return files


def from_root(path: Path) -> str:
    """Return the path relative to the repository if it lies there."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def package_files(notebook: Path) -> list[str]:
    """Return the files that the notebook imports, directly or not, and those that render it.

    Paths are relative to the repository.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    names = [*imported(code), "stage1.report.notebooks"]
    files: set[Path] = set()
    while names:
        for path in files_of(names.pop()):
            if path not in files:
                files.add(path)
                names += imported(path.read_text("utf-8"))
    return sorted(map(from_root, files))
