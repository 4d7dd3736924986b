"""Several processes that train one adapter together: who reads what, and how results come together again.

Processes are started by `torch.distributed.run`, one a GPU (or a share of the CPU), and talk through `accelerate`. A
process that was started alone is the only one, and nothing here costs it anything.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import pandas as pd
import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor

from stage1.config import StudyConfig

PARENT = "STAGE1_PARENT"
"""Environment variable with the process id of whoever called `launch`."""


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Of this process, from 0; the first one writes what all of them found."""
    return int(os.environ.get("RANK", "0"))


def device_index() -> int:
    """Of this process's GPU among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def initialise(cpu: bool) -> None:
    """Meet the other processes, if there are any."""
    if world_size() > 1:
        PartialState(cpu=cpu)


def barrier() -> None:
    """Until every process has come here."""
    if world_size() > 1:
        PartialState().wait_for_everyone()


def shard(ordered: Sequence[int]) -> list[int]:
    """This process's part of some places, every `world_size()`-th of them: no two processes share one."""
    return list(ordered[rank() :: world_size()])


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    return reduce(tensor, "sum") if world_size() > 1 else tensor


def all_true(yes: bool) -> bool:
    """Whether it holds in every process."""
    return all(gather_object([yes])) if world_size() > 1 else yes


def gather_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of all processes, in the order of the index."""
    return pd.concat(gather_object([table])).sort_index() if world_size() > 1 else table


def launch(config: StudyConfig) -> None:
    """Train and test the config's adapter in `config.processes` processes; returns when its record is written.

    Raises ValueError where a GPU for each is wanted and there are fewer, and CalledProcessError where one failed; what
    they said is on standard output.
    """
    gpus = torch.cuda.device_count() if config.device != "cpu" else 0
    if gpus and config.processes > gpus:
        raise ValueError(
            f"processes={config.processes}: expected at most {gpus}, the GPUs that are visible"
        )
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={config.processes}"]
    command = [
        sys.executable,
        "-m",
        *launcher,
        "-m",
        "stage1.study.worker",
        json.dumps(config.to_dict()),
    ]
    cores = os.environ.get(
        "OMP_NUM_THREADS", "1"
    )  # Snakemake gives the job a core for each process
    environment = os.environ | {
        "OMP_NUM_THREADS": str(max(1, int(cores) // config.processes)),
        PARENT: str(os.getpid()),
    }
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        try:
            for line in running.stdout:
                print(line, end="", flush=True)
        except BaseException:  # an interrupted notebook leaves nobody training
            running.terminate()
            raise
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)


def end_with_parents() -> None:
    """End this process soon after the launcher, or whoever called `launch`, is gone: a killed notebook must not leave
    processes behind that hold its GPUs."""
    launcher, caller = os.getppid(), int(os.environ.get(PARENT, "0"))

    def watch() -> None:
        while os.getppid() == launcher and (not caller or psutil.pid_exists(caller)):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
