"""Hands out the GPUs of one machine: every job holds file locks on those it runs on.

    python -m stage1.machine.gpus     # how many this process may use

The locks lie in the system's temporary folder, one per GPU, so all users and presets of a machine agree; they die with
the process that holds them. Nothing here imports torch, which takes seconds.
"""

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from filelock import FileLock, Timeout

from stage1.config import StudyConfig
from stage1.fields import require

LISTED = re.compile(
    r"^GPU \d+:.*UUID: (GPU-[^)\s]+)\)(?!\n +MIG)|^ +MIG .*UUID: (MIG-[^)\s]+)\)", re.MULTILINE
)
"""A GPU in the output of `nvidia-smi -L`; one that is divided counts as its parts."""


def needed(notebook: str, config: StudyConfig) -> int:
    """GPUs a notebook runs on where there are any: `processes` to train an adapter, none for the report or on a CPU,
    and all that are visible for a model spread over them."""
    if config.device == "cpu" or notebook == "05_report":
        return 0
    if config.device == "sharded":
        return max(1, len(visible()))
    return config.processes if notebook == "02_train_adapter" else 1


def installed() -> list[str]:
    """UUIDs of the machine's GPUs as nvidia-smi lists them; none without nvidia-smi."""
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return (
        [whole or part for whole, part in LISTED.findall(answer.stdout)]
        if answer.returncode == 0
        else []
    )


def visible() -> list[str]:
    """Ids of the GPUs this process may use, of those installed the ones in CUDA_VISIBLE_DEVICES; empty without a GPU.

    Ids are UUIDs, as an index means another GPU in every Slurm job; without nvidia-smi they are what the variable says.
    """
    present, chosen = installed(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return present
    named = (meant(entry.strip(), present) for entry in chosen.split(","))
    return list(
        dict.fromkeys(takewhile(bool, named))
    )  # CUDA, too, stops at the first entry that names no GPU


def meant(entry: str, present: list[str]) -> str:
    """The GPU that an entry of CUDA_VISIBLE_DEVICES means, an index or the beginning of a UUID; "" for none."""
    if not present:
        return entry if entry.isdecimal() or entry.startswith(("GPU-", "MIG-")) else ""
    if entry.isdecimal():
        return present[int(entry)] if int(entry) < len(present) else ""
    return next((gpu for gpu in present if entry and gpu.startswith(entry)), "")


def lock(gpu: str) -> FileLock:
    """The GPU's lock, which every user of the machine may take."""
    name = f"stage1-gpu-{gpu.replace('/', '-')}.lock"
    return FileLock(Path(tempfile.gettempdir()) / name, mode=0o666)


def take(count: int, ids: list[str]) -> dict[str, FileLock]:
    """Locks on `count` of the GPUs, or none at all: a job that kept some while it waits could deadlock with another."""
    held = {}
    for gpu in ids:
        own = lock(gpu)
        try:
            own.acquire(blocking=False)
        except Timeout:
            continue
        held[gpu] = own
        if len(held) == count:
            return held
    release(held)
    return {}


def release(held: dict[str, FileLock]) -> None:
    for each in held.values():
        each.release()


@contextmanager
def claim(count: int) -> Iterator[list[str]]:
    """Hold `count` GPUs that no other job holds, the only ones in CUDA_VISIBLE_DEVICES meanwhile; yields their ids.

    Waits for them, and says so on stderr. Without a GPU, or for a count of 0, it does nothing. Raises ValueError where
    fewer are visible than asked for.
    """
    ids = visible()
    if count == 0 or not ids:
        yield []
        return
    require(
        count <= len(ids),
        "processes",
        count,
        f"at most {len(ids)}, one for each GPU here ({', '.join(ids)})",
    )
    held = wait(count, ids)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
    try:
        yield list(held)
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        release(held)


def wait(count: int, ids: list[str]) -> dict[str, FileLock]:
    """Locks on `count` of the GPUs, as soon as so many are free."""
    held = take(count, ids)
    if not held:
        print(
            f"waiting for {count} of the GPUs {', '.join(ids)}: other jobs hold them",
            file=sys.stderr,
            flush=True,
        )
    while not held:
        time.sleep(
            random.uniform(0.1, 1)
        )  # at random, so that jobs which wait together do not collide each time
        held = take(count, ids)
    return held


if __name__ == "__main__":
    print(len(visible()))
