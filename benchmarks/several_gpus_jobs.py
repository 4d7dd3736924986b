"""What the jobs of `several_gpus.py` share: their options, and the rows and tensors they leave."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stage1.config import load_preset
from stage1.machine import processes

SMALL = load_preset("smoke").replace(
    objective="option3_teacher_forced",
    learning_rate=1.0e-3,
    warmup_steps=0,
    gradients_every=0,
    selection_every=0,
)


class Job:
    """One job's options, where its rows go and what it saves for a comparison."""

    def __init__(self, options: dict):
        self.folder = Path(options["folder"])
        self.device: str = options["device"]
        self.preset: str = options["preset"]
        self.batches: list[int] = options["batches"]
        self.steps: int = options["steps"]
        self.adapters: int = options["adapters"]
        self.gpus: int = options["gpus"]
        """Processes of a training or of a pool, and devices of a sharded model."""

    def emit(self, **row) -> None:
        """Append a row."""
        if processes.rank() == 0:
            with (self.folder / "rows.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def save(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        if processes.rank() == 0:
            torch.save({key: x.detach().cpu() for key, x in tensors.items()}, self.folder / name)


def relative(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Return the norm of the difference over that of the expected."""
    expected, found = expected.double(), found.double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


def run_job(jobs: Sequence[Callable[[Job], None]]) -> None:
    """Run the one that the first argument names, with the options of the second, in JSON."""
    processes.end_with_parents()
    by_name = {job.__name__: job for job in jobs}
    by_name[sys.argv[1]](Job(json.loads(sys.argv[2])))
