"""What the benchmarks share: their options, provenance, a clock and peak memory."""

import argparse
import os
import resource
import shlex
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from stage1 import store

RESULTS = Path(__file__).parent / "results"


def parser(doc: str, out: str, **defaults) -> argparse.ArgumentParser:
    """Return a parser with these options, of their defaults' types, and `--out`."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--out", type=Path, default=RESULTS / out, help="default: %(default)s")
    for name, value in defaults.items():
        option, kind = f"--{name.replace('_', '-')}", type(value)
        if kind is bool:
            made.add_argument(option, action="store_true")
        elif kind is list:
            made.add_argument(option, nargs="+", type=type(value[0]), default=value)
        else:
            made.add_argument(option, type=kind, default=value, help="default: %(default)s")
    return made


def write_provenance(out: Path) -> None:
    """Write command, date, machine, versions and commit to the JSON file beside `out`."""
    command = shlex.join(["python", *sys.argv])
    date = datetime.now(UTC).isoformat(timespec="minutes")
    about = {"command": command, "date": date, "cores": os.cpu_count()}
    store.write_json(out.with_suffix(".json"), about | {"provenance": store.provenance()})


def clock(device: torch.device) -> float:
    """Return the time in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(device: torch.device, call: Callable, *arguments) -> float:
    begin = clock(device)
    call(*arguments)
    return clock(device) - begin


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(device: torch.device) -> float:
    """Return the peak in bytes: of GPU memory since its reset, or of this process's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def timed(device: torch.device, call: Callable, *arguments) -> tuple[Any, dict]:
    """Return the call's result, and its `seconds` and `peak_GB`."""
    reset_peak(device)
    begin = clock(device)
    result = call(*arguments)
    return result, {"seconds": clock(device) - begin, "peak_GB": peak(device) / 1e9}
