"""What the benchmarks share: their options, provenance, a clock and peak memory."""

import argparse
import gc
import os
import resource
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
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


class Rows:
    """A table that is written after every row; a row that fails or comes too late says so."""

    def __init__(self, out: Path, budget: float, finish: Callable[[pd.DataFrame], pd.DataFrame]):
        """`finish` adds what compares rows; none begins later than `budget` seconds from now."""
        self.out, self.budget, self.finish = out, budget, finish
        self.end, self.rows = time.perf_counter() + budget, []
        write_provenance(out)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.end - time.perf_counter()

    @property
    def table(self) -> pd.DataFrame:
        return self.finish(pd.DataFrame(self.rows))

    def add(self, about: dict, measure: Callable[[], dict]) -> dict:
        """Add a row of what it is about and what is measured, write the table, return the row."""
        row = {"note": f"not run: {self.budget:g} s were over"}
        if self.left > 0:
            try:
                row = measure()
            except torch.OutOfMemoryError:
                row = {"note": "out of memory"}
            except Exception as error:  # the other rows are still worth having
                row = {"note": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
                traceback.print_exc()
            gc.collect()
            torch.cuda.empty_cache()
        self.rows.append(about | row)
        store.traced(self.table).to_csv(self.out, index=False, float_format="%.5g")
        print(self.rows[-1], flush=True)
        return self.rows[-1]
