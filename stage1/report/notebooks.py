"""Run a notebook through papermill and render it: one step of the DAG in the Snakefile.

    python -m stage1.report.notebooks notebooks/02_train_adapter.ipynb quick \\
        reports/quick/02_distill.html -p objective distill

The executed notebook goes to `runs/<preset>/notebooks/` under the page's name and is written cell
by cell, so a failed run can be inspected. The HTML page is written at the end, in one piece. A lock
per step keeps a second run waiting, even if the parent of the first was killed; locks on GPUs keep
the jobs of one machine apart.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import nbformat
import papermill
import yaml
from filelock import FileLock, Timeout
from jupyter_client import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError
from traitlets import default

from stage1 import store
from stage1.config import load_preset
from stage1.machine import gpus
from stage1.report import pages

PAUSE = 0.3
"""Seconds until an idle kernel has also finished its last reply."""


class KernelManager(AsyncKernelManager):
    """Starts kernels that have nothing to warn about."""

    @default("transport_encryption")
    def _default_encryption(self) -> str:
        """Kernels talk over TCP, where other users of the machine could listen."""
        return "auto"

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:  # type: ignore[override]
        """Shutting down begins with an interrupt, which a busy kernel reports as an error."""
        await asyncio.sleep(PAUSE)
        await super().shutdown_kernel(now=now, restart=restart)


class MagicError(RuntimeError):
    """A cell uses an unknown magic. IPython prints a message and goes on."""


def check_magics(executed: Path) -> None:
    """Raise MagicError with IPython's message if a cell used an unknown magic."""
    for cell in nbformat.read(executed, as_version=4).cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr" and "UsageError" in output["text"]:
                raise MagicError(f"{executed}: {output['text'].strip()}")


def gpus_needed(notebook: Path, parameters: dict) -> int:
    """Return how many GPUs the notebook needs; it checks its other parameters itself."""
    named = {name: parameters.get(name) for name in ("device", "processes")}
    given = {name: value for name, value in named.items() if value is not None}
    config = load_preset(parameters.get("preset", "quick")).replace(**given)
    return gpus.needed(notebook.stem, config)


def execute(notebook: Path, executed: Path, parameters: dict) -> None:
    """Execute the notebook with the parameters, on GPUs of its own where there are any.

    Raises ValueError or TypeError for an impossible preset, device or number of processes;
    papermill's PapermillExecutionError if a cell fails; nbclient's DeadKernelError if the kernel
    dies; and MagicError.
    """
    count = gpus_needed(notebook, parameters)
    executed.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(executed.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{executed}: waiting for another run of this step to end", file=sys.stderr)
        lock.acquire()
    try:
        with gpus.claim(count):
            papermill.execute_notebook(
                notebook,
                executed,
                parameters,
                kernel_name="python3",
                progress_bar=False,
                kernel_manager_class=KernelManager,
            )
    finally:
        lock.release()
    check_magics(executed)


def main() -> None:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m stage1.report.notebooks", description=summary)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("preset")
    parser.add_argument("page", type=Path, help="where the HTML page goes")
    pair = ("NAME", "VALUE")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=pair, dest="given")
    arguments = parser.parse_args()
    run = store.runs_folder() / store.run_name(load_preset(arguments.preset))
    executed = run / "notebooks" / f"{arguments.page.stem}.ipynb"
    given = {name: yaml.safe_load(value) for name, value in arguments.given}
    try:
        execute(arguments.notebook, executed, {"preset": arguments.preset} | given)
    except PapermillExecutionError as error:  # its text is the traceback in the kernel
        raise SystemExit(f"{executed}: a cell failed{error}") from error
    pages.render(executed, arguments.page)


if __name__ == "__main__":
    main()
