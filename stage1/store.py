"""Run folders, atomic writes, and records with their provenance; no other module builds paths."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib import metadata
from pathlib import Path

import pandas as pd

from stage1 import gallery
from stage1.config import INSTALLED, PACKAGE, StudyConfig, load_preset, presets, shipped
from stage1.fields import names_where

ROOT = Path.cwd() if INSTALLED else PACKAGE.parent
"""The repository, or the working directory of an installed package: what is written goes there."""
ASSETS = PACKAGE / "assets"
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "scipy", "pandas")


class RecordError(RuntimeError):
    """A record is missing, truncated or of another run."""


def runs_folder() -> Path:
    """Return $STAGE1_RUNS, or `runs/` in the repository, or `runs/` here if installed."""
    return Path(os.environ.get("STAGE1_RUNS", ROOT / "runs"))


def records_folder() -> Path:
    """Return $STAGE1_RECORDS, or `records/` in the repository: committed records of GPU runs."""
    return Path(os.environ.get("STAGE1_RECORDS", shipped("records", "records")))


def run_name(config: StudyConfig) -> str:
    """Return the preset's name, with a digest of the study's fields that differ from the preset.

    The name of a run that carries faults ends in `-faulty`.
    """
    preset = load_preset(config.preset).to_dict() if config.preset in presets() else {}
    values = {name: getattr(config, name) for name in names_where(config, in_run_name=True)}
    changed = {name: value for name, value in values.items() if preset.get(name) != value}
    faulty = "" if config.faults == gallery.NONE else "-faulty"
    if not changed:
        return f"{config.preset}{faulty}"
    return f"{config.preset}-{digest(changed)}{faulty}"


def digest(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def identity(config: StudyConfig) -> dict:
    """Return the fields that the config's results depend on."""
    return {name: getattr(config, name) for name in names_where(config, changes_results=True)}


def run_folder(config: StudyConfig) -> Path:
    """Return the folder of a config's records."""
    return runs_folder() / run_name(config)


def report_path(config: StudyConfig, name: str) -> Path:
    """Return the path of a report's record in the run folder.

    Criteria are not in the run's name. Where they differ from the preset's, the record has a name
    of its own and leaves the preset's alone.
    """
    criteria = names_where(config, group="criteria")
    preset = load_preset(config.preset) if config.preset in presets() else config
    changed = {n: getattr(config, n) for n in criteria if getattr(config, n) != getattr(preset, n)}
    return run_folder(config) / f"{name}{f'-{digest(changed)}' if changed else ''}.json"


def adapter_folder(config: StudyConfig, runs: Path | None = None) -> Path:
    """Return the folder of the adapter of the config's objective and seed, with its records."""
    adapter = f"{config.objective}-seed{config.seed}"
    return (runs or runs_folder()) / run_name(config) / "adapters" / adapter


def committed_adapter(config: StudyConfig) -> Path | None:
    """Return the committed folder of the trained adapter of this very run, or None."""
    folder = adapter_folder(config, records_folder())
    record = folder / "record.json"
    if not record.is_file():
        return None
    committed = config.replace(**{"faults": gallery.NONE} | read_json(record)["config"])
    return folder if identity(committed) == identity(config) else None


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Write to a temporary file beside `path`, then rename it: readers see the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextmanager
def record_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading a record into RecordError with its path and what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise RecordError(
            f"{path}: no such record; run the notebook before this one, or `make report`"
        ) from error
    except (OSError, ValueError) as error:  # malformed JSON or parquet, or a truncated character
        raise RecordError(
            f"{path}: truncated or malformed ({error}); delete it and run its step again"
        ) from error


def write_text(path: Path, text: str) -> Path:
    return write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"))


def write_csv(path: Path, table: pd.DataFrame) -> None:
    write_atomically(path, lambda temporary: table.to_csv(temporary, index=False))


def write_json(path: Path, record: dict) -> Path:
    return write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """Read a record. Raises RecordError with the path where it is missing or truncated."""
    with record_errors(path):
        return json.loads(path.read_text("utf-8"))


def write_table(path: Path, table: pd.DataFrame) -> Path:
    return write_atomically(path, lambda temporary: table.to_parquet(temporary, index=False))


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet table. Raises RecordError with the path where it is missing or truncated."""
    with record_errors(path):
        return pd.read_parquet(path)


def write_record(path: Path, config: StudyConfig, results: dict) -> Path:
    """Write results as JSON, with their config and provenance."""
    record = {"config": config.to_dict(), "results": results, "provenance": provenance()}
    return write_json(path, record)


def provenance() -> dict:
    """Return the commit, whether tracked files differ from it, package versions and the device."""
    import torch  # slow to import, and not needed where notebooks are only run and rendered

    gpu = torch.cuda.is_available()
    return {
        "commit": git("rev-parse", "HEAD"),
        "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name() if gpu else platform.machine() + " cpu",
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def traced(table: pd.DataFrame) -> pd.DataFrame:
    """Return a benchmark's table with the machine, versions, date and command that produced it."""
    made, program = provenance(), Path(sys.argv[0]).resolve()
    command = program.relative_to(ROOT) if program.is_relative_to(ROOT) else program.name
    versions = [f"{name} {made['versions'][name]}" for name in ("torch", "transformers", "numpy")]
    return table.assign(
        machine=f"{made['device']}, {os.cpu_count()} cores",
        versions=", ".join([f"python {made['python']}", *versions]),
        date=date.today().isoformat(),
        command=shlex.join(["python", str(command), *sys.argv[1:]]),
    )


def git(*arguments: str) -> str:
    """Return git's output for the repository, or "" outside one and for an installed package."""
    if INSTALLED:  # a repository around it would be another one
        return ""
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def read_checkpoint(path: Path, config: StudyConfig) -> dict:
    """Return the state that a training saved, on the CPU.

    Raises RecordError for a file that cannot be read or is no checkpoint of this config.
    """
    import torch

    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # zip, pickle and end-of-file errors alike
        raise RecordError(
            f"{path}: truncated or malformed ({error}); delete it to start again"
        ) from error
    if not isinstance(state, dict) or state.get("config") != identity(config):
        raise RecordError(f"{path}: is no checkpoint of this config; delete it to start again")
    return state
