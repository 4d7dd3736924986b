"""The only module that knows folders: run names, atomic writes, and records that say where they come from."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path

import pandas as pd

from stage1.config import StudyConfig, load_preset, presets
from stage1.fields import names_where

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(__file__).resolve().parent / "assets"
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "scipy", "pandas")


class RecordError(RuntimeError):
    """A record is missing, truncated or not what was asked for."""


def runs_folder() -> Path:
    """`runs/` in the repository, or $STAGE1_RUNS."""
    return Path(os.environ.get("STAGE1_RUNS", ROOT / "runs"))


def records_folder() -> Path:
    """`records/` in the repository, the committed records of runs that took a GPU, or $STAGE1_RECORDS."""
    return Path(os.environ.get("STAGE1_RECORDS", ROOT / "records"))


def run_name(config: StudyConfig) -> str:
    """The preset's name, and where fields of the whole study differ from the preset a digest of them."""
    preset = load_preset(config.preset).to_dict() if config.preset in presets() else {}
    values = {name: getattr(config, name) for name in names_where(config, in_run_name=True)}
    changed = {name: value for name, value in values.items() if preset.get(name) != value}
    if not changed:
        return config.preset
    return f"{config.preset}-{hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]}"


def identity(config: StudyConfig) -> dict:
    """The fields of a config that its results depend on."""
    return {name: getattr(config, name) for name in names_where(config, changes_results=True)}


def run_folder(config: StudyConfig) -> Path:
    """Where the records of a config go."""
    return runs_folder() / run_name(config)


def adapter_folder(config: StudyConfig) -> Path:
    """Where the adapter of the config's objective and seed goes, with its records."""
    return run_folder(config) / "adapters" / f"{config.objective}-seed{config.seed}"


def committed_adapter(config: StudyConfig) -> Path | None:
    """Where the repository holds the trained adapter of this very run, or None."""
    folder = (
        records_folder() / run_name(config) / "adapters" / f"{config.objective}-seed{config.seed}"
    )
    record = folder / "record.json"
    same = record.is_file() and identity(config) == identity(
        config.replace(**read_json(record)["config"])
    )
    return folder if same else None


def write_atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old file or the new one."""
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


def write_json(path: Path, record: dict) -> Path:
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"))


def read_json(path: Path) -> dict:
    """The record. Raises RecordError with the path where it is missing or truncated."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise RecordError(
            f"{path}: no such record; run the notebook before this one, or `make report`"
        ) from error
    except ValueError as error:  # malformed JSON, or bytes cut within a character
        raise RecordError(
            f"{path}: truncated or malformed ({error}); delete it and run its step again"
        ) from error


def write_table(path: Path, table: pd.DataFrame) -> Path:
    return write_atomically(path, lambda temporary: table.to_parquet(temporary, index=False))


def read_table(path: Path) -> pd.DataFrame:
    """The parquet table. Raises RecordError with the path where it is missing or truncated."""
    if not path.is_file():
        raise RecordError(
            f"{path}: no such table; run the notebook before this one, or `make report`"
        )
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise RecordError(
            f"{path}: truncated or malformed ({error}); delete it and run its step again"
        ) from error


def write_record(path: Path, config: StudyConfig, results: dict) -> Path:
    """Results as JSON, with the config that gave them and their provenance."""
    return write_json(
        path, {"config": config.to_dict(), "results": results, "provenance": provenance()}
    )


def provenance() -> dict:
    """What a record needs to be traced: the commit, whether files differ from it, versions and the machine."""
    import torch  # seconds to import, and a process that only runs and renders notebooks writes no record

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "commit": git("rev-parse", "HEAD"),
        "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": versions,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.machine() + " cpu",
    }


def traced(table: pd.DataFrame) -> pd.DataFrame:
    """A benchmark's results with the machine, the versions, the date and the command that gave them beside."""
    made, program = provenance(), Path(sys.argv[0]).resolve()
    program = program.relative_to(ROOT) if program.is_relative_to(ROOT) else program.name
    versions = {"python": made["python"]} | {
        name: made["versions"][name] for name in ("torch", "transformers", "numpy")
    }
    return table.assign(
        machine=f"{made['device']}, {os.cpu_count()} cores",
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        date=date.today().isoformat(),
        command=shlex.join(["python", str(program), *sys.argv[1:]]),
    )


def git(*arguments: str) -> str:
    """Git's answer about the repository, or "" outside one."""
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
