"""Runs a notebook through papermill and renders it: one step of the DAG in the Snakefile.

    python -m stage1.report.notebooks notebooks/02_train_adapter.ipynb quick reports/quick/02_distill.html -p objective distill

The executed notebook goes to `runs/<preset>/notebooks/` under the page's name, cell by cell, so a failed run can be
looked at; the HTML page appears whole, at the end. A lock per step keeps a second run waiting, also for a run whose
parent was killed; locks on GPUs keep jobs of one machine apart.
"""

import argparse
import sys
from pathlib import Path

import nbformat
import papermill
import yaml
from filelock import FileLock, Timeout

from stage1 import store
from stage1.config import load_preset
from stage1.machine import gpus
from stage1.report import pages


class MagicError(RuntimeError):
    """A cell uses a magic that does not exist: IPython prints that and goes on."""


def check_magics(executed: Path) -> None:
    """Raise MagicError with IPython's own message where a cell's magic was not found."""
    for cell in nbformat.read(executed, as_version=4).cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr" and "UsageError" in output["text"]:
                raise MagicError(f"{executed}: {output['text'].strip()}")


def gpus_needed(notebook: Path, parameters: dict) -> int:
    """GPUs that the notebook asks for with these parameters; all the others are the notebook's own to check."""
    given = {
        name: parameters[name]
        for name in ("device", "processes")
        if parameters.get(name) is not None
    }
    return gpus.needed(
        notebook.stem, load_preset(parameters.get("preset", "quick")).replace(**given)
    )


def execute(notebook: Path, executed: Path, parameters: dict) -> None:
    """Execute the notebook with the parameters, on GPUs of its own where there are any.

    Raises ValueError or TypeError for a preset, device or number of processes that cannot be, papermill's
    PapermillExecutionError where a cell fails, nbclient's DeadKernelError where the kernel dies, and MagicError.
    """
    count = gpus_needed(notebook, parameters)
    executed.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(executed.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(
            f"{executed}: another run of this step is still going; waiting for it to end",
            file=sys.stderr,
        )
        lock.acquire()
    try:
        with gpus.claim(count):
            papermill.execute_notebook(
                notebook, executed, parameters, kernel_name="python3", progress_bar=False
            )
    finally:
        lock.release()
    check_magics(executed)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stage1.report.notebooks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("preset")
    parser.add_argument("page", type=Path, help="where the HTML page goes")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters"
    )
    arguments = parser.parse_args()
    executed = store.runs_folder() / arguments.preset / "notebooks" / f"{arguments.page.stem}.ipynb"
    given = {name: yaml.safe_load(value) for name, value in arguments.parameters}
    execute(arguments.notebook, executed, {"preset": arguments.preset} | given)
    pages.render(executed, arguments.page)


if __name__ == "__main__":
    main()
