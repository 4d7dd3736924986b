"""The order of imports within the package, and what must import without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stage1

PACKAGE = Path(stage1.__file__).parent
ORDER = [
    "names", "fields", "gallery", "config", "store", "machine", "scoring", "corpus", "model",
    "compress", "baselines", "adapter", "loss_parts", "objectives", "training", "evaluation",
    "faults", "study", "ask", "check", "report", "pretrain",
]  # fmt: skip
"""Modules and packages of `stage1`; each imports only from itself and those before it."""


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports; a program that it runs is not imported."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_module_has_a_place_in_the_order():
    modules = {path.stem for path in PACKAGE.glob("[!_.]*.py")}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert modules | packages == set(ORDER)


@pytest.mark.parametrize("importer", ORDER)
def test_a_package_imports_only_from_those_before_it(importer):
    allowed = ORDER[: ORDER.index(importer) + 1]
    for path in [*PACKAGE.glob(f"{importer}.py"), *PACKAGE.glob(f"{importer}/**/*.py")]:
        for name in imported(path):
            root, _, rest = name.partition(".")
            ours = root == "stage1"
            assert not ours or rest.split(".")[0] in allowed, f"{path} imports {name}"


def test_names_config_and_store_import_no_torch():
    code = "import sys, stage1.names, stage1.config, stage1.store; sys.exit('torch' in sys.modules)"
    # Half a second on an idle machine, most of it for pandas.
    subprocess.run([sys.executable, "-c", code], check=True, timeout=10)
