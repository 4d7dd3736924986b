"""Data parallelism: processes that train one adapter together, and their collective operations.

`torch.distributed.run` starts the processes, one per GPU or share of the CPU; they communicate
through `accelerate`. In a process started alone, every operation here returns its input.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection

import pandas as pd
import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor

from stage1.config import StudyConfig
from stage1.fields import require

PARENT = "STAGE1_PARENT"
"""Environment variable with the id of the process that called `launch`."""


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's rank, counting from 0; rank 0 writes the results of all."""
    return int(os.environ.get("RANK", "0"))


def device_index() -> int:
    """Return the index of this process's GPU on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def initialise(cpu: bool) -> None:
    """Join the process group, if there are several processes."""
    if world_size() > 1:
        PartialState(cpu=cpu)


def barrier() -> None:
    """Wait until every process has called this."""
    if world_size() > 1:
        PartialState().wait_for_everyone()


def shard(ordered: Sequence[int]) -> list[int]:
    """Return this process's share: every `world_size()`-th item, starting at its rank."""
    return list(ordered[rank() :: world_size()])


def all_reduce(tensor: Tensor) -> Tensor:
    """Return the sum over all processes."""
    return reduce(tensor, "sum") if world_size() > 1 else tensor


@torch.no_grad()
def broadcast(tensors: Sequence[Tensor]) -> None:
    """Give every process the tensors of the first one, in place."""
    if world_size() > 1:
        for tensor in tensors:
            tensor.copy_(all_reduce(tensor * (rank() == 0)))


def all_true(condition: bool) -> bool:
    """Return whether the condition holds in every process."""
    return all(gather_object([condition])) if world_size() > 1 else condition


def gather_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of all processes, ordered by index."""
    return pd.concat(gather_object([table])).sort_index() if world_size() > 1 else table


def launch(config: StudyConfig) -> None:
    """Train and test the config's adapter in `config.processes` processes.

    Forwards their output to stdout and returns when the record is written. Raises ValueError if
    there are fewer GPUs than processes, and CalledProcessError if a process fails.
    """
    gpus = torch.cuda.device_count() if config.device != "cpu" else 0
    enough = not gpus or config.processes <= gpus
    require(enough, "processes", config.processes, f"at most {gpus}, the GPUs that are visible")
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={config.processes}"]
    worker = ["stage1.study.worker", json.dumps(config.to_dict())]
    command = [sys.executable, "-m", *launcher, "-m", *worker]
    cores = int(os.environ.get("OMP_NUM_THREADS", "1"))  # Snakemake's share for the whole job
    threads = max(1, cores // config.processes)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), PARENT: str(os.getpid())}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        assert job.stdout is not None
        try:
            for line in job.stdout:
                print(line, end="", flush=True)
        except BaseException:  # an interrupted notebook must not leave a training behind
            job.terminate()
            raise
    if job.returncode:
        raise subprocess.CalledProcessError(job.returncode, command)


def end_with_parents() -> None:
    """End this process soon after its launcher or the caller of `launch` is gone.

    A killed notebook must not leave processes behind that hold its GPUs.
    """
    launcher, caller = os.getppid(), int(os.environ.get(PARENT, "0"))

    def watch() -> None:
        while os.getppid() == launcher and (not caller or psutil.pid_exists(caller)):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_pool() -> None:
    """End this process of a pool as soon as the process that made the pool is gone."""
    maker = multiprocessing.parent_process()
    assert maker is not None, "not in a process of a pool"

    def watch() -> None:
        connection.wait([maker.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
