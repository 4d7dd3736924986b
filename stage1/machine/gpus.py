"""Claim GPUs of one machine: every job holds file locks on those it runs on.

    python -m stage1.machine.gpus     # prints how many GPUs this process may use

The locks lie in the system's temporary folder, one per GPU, so all users and presets of a machine
agree. The operating system releases them when their process ends. Nothing here imports torch, which
takes seconds.
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
"""A GPU in the output of `nvidia-smi -L`; a GPU divided by MIG counts as its parts."""
VARIABLE = "CUDA_VISIBLE_DEVICES"
READ_RECORDS = ("05_report", "06_fault_gallery", "07_english")
"""Notebooks that train nothing in a report."""


def needed(notebook: str, config: StudyConfig) -> int:
    """Return the number of GPUs a notebook runs on, on a machine that has any.

    That is `processes` to train an adapter, none for notebooks that only read records or on a CPU,
    and all that are visible for a sharded model.
    """
    if config.device == "cpu" or notebook in READ_RECORDS:
        return 0
    if config.device == "sharded":
        return max(1, len(visible()))
    return config.processes if notebook == "02_train_adapter" else 1


def installed() -> list[str]:
    """Return the UUIDs of the machine's GPUs; empty without nvidia-smi or a driver."""
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode:
        return []
    return [whole or part for whole, part in LISTED.findall(answer.stdout)]


def visible() -> list[str]:
    """Return ids of the GPUs this process may use: those in CUDA_VISIBLE_DEVICES, or else all.

    Ids are UUIDs, because an index means another GPU in every Slurm job. Without nvidia-smi they
    are the entries of the variable.
    """
    present, chosen = installed(), os.environ.get(VARIABLE)
    if chosen is None:
        return present
    ids = (resolve(entry.strip(), present) for entry in chosen.split(","))
    # CUDA, too, stops at the first entry that names no GPU.
    return list(dict.fromkeys(takewhile(bool, ids)))


def resolve(entry: str, present: list[str]) -> str:
    """Return the GPU named by an index or the beginning of a UUID; "" if there is none."""
    if not present:
        return entry if entry.isdecimal() or entry.startswith(("GPU-", "MIG-")) else ""
    if entry.isdecimal():
        return present[int(entry)] if int(entry) < len(present) else ""
    return next((gpu for gpu in present if entry and gpu.startswith(entry)), "")


def lock(gpu: str) -> FileLock:
    """Return the GPU's lock, which every user of the machine may acquire."""
    name = f"stage1-gpu-{gpu.replace('/', '-')}.lock"
    return FileLock(Path(tempfile.gettempdir()) / name, mode=0o666)


def try_acquire(count: int, ids: list[str]) -> dict[str, FileLock]:
    """Lock `count` of the GPUs, or none: holding some while waiting could deadlock two jobs."""
    held: dict[str, FileLock] = {}
    for gpu in ids:
        gpu_lock = lock(gpu)
        try:
            gpu_lock.acquire(blocking=False)
        except Timeout:
            continue
        held[gpu] = gpu_lock
        if len(held) == count:
            return held
    release(held)
    return {}


def acquire(count: int, ids: list[str]) -> dict[str, FileLock]:
    """Lock `count` of the GPUs, waiting until so many are free."""
    held = try_acquire(count, ids)
    if not held:
        message = f"waiting for {count} of the GPUs {', '.join(ids)}: other jobs hold them"
        print(message, file=sys.stderr, flush=True)
    while not held:
        time.sleep(random.uniform(0.1, 1))  # jobs that wait together try at different times
        held = try_acquire(count, ids)
    return held


def release(held: dict[str, FileLock]) -> None:
    for gpu_lock in held.values():
        gpu_lock.release()


@contextmanager
def claim(count: int) -> Iterator[list[str]]:
    """Hold `count` GPUs that no other job holds, and yield their ids.

    Meanwhile they are the only ones in CUDA_VISIBLE_DEVICES. Waits until they are free, and says so
    on stderr. Does nothing without a GPU or for a count of 0. Raises ValueError if fewer GPUs are
    visible.
    """
    ids = visible()
    if count == 0 or not ids:
        yield []
        return
    allowed = f"at most {len(ids)}, one for each GPU here ({', '.join(ids)})"
    require(count <= len(ids), "processes", count, allowed)
    held = acquire(count, ids)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = ",".join(held)
    try:
        yield list(held)
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
        release(held)


def take_turn(counter, ids: list[str]) -> None:
    """Give this process the next of the GPUs, in turn; `counter` is shared by a pool of them."""
    with counter.get_lock():
        turn, counter.value = counter.value, counter.value + 1
    if ids:
        os.environ[VARIABLE] = ids[turn % len(ids)]


if __name__ == "__main__":
    print(len(visible()))
