"""The jobs of `several_gpus.py` that start processes of their own: a sweep, a killed training.

    python benchmarks/several_gpus_study.py JOB OPTIONS

The pool of a sweep imports this file before its processes take their GPUs, so no import may ask for
a GPU: CUDA would then see them all.
"""

import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import torch
from several_gpus_jobs import SMALL, Job, relative, run_job

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.machine import processes
from stage1.study import sweep


def adapters(job: Job) -> None:
    """Train a grid in a pool with one process per GPU; half of the grid shares passes."""
    base = load_preset("full" if job.device == "cuda" else "smoke").replace(
        device=job.device, gradients_every=0, selection_every=0, warmup_steps=200, epochs=1
    )
    if job.device == "cuda":
        base = base.replace(train_examples=9_600, selection_examples=200)
    configs = [
        base.replace(objective="answer_ce", learning_rate=1.0e-3, seed=seed)
        for seed in range(job.adapters)
    ]
    table, size = job.folder / "trials.csv", math.ceil(job.adapters / 2)
    begin = time.perf_counter()
    sweep.sweep("trials", configs, table, job.gpus, size)
    seconds = time.perf_counter() - begin
    training = pd.read_csv(table)["seconds"].sum() / job.gpus
    rates = {"per_minute": 60 * len(configs) / seconds}
    rates["per_minute_training"] = 60 * len(configs) / training
    case = f"{job.adapters} adapters, {size} in a pass"
    job.emit(case=case, gpus=job.gpus, seconds=seconds, **rates)


def trained_to_the_end(config: StudyConfig, runs: Path) -> dict[str, torch.Tensor]:
    os.environ["STAGE1_RUNS"] = str(runs)
    processes.launch(config)
    folder = store.adapter_folder(config)
    curve = store.read_table(folder / "curve.parquet")
    return {"loss": torch.tensor(curve["loss"].to_numpy())}


def kill(job: Job) -> None:
    """SIGKILL one of the processes after a checkpoint; run the same command again to the end."""
    epochs = 10 if job.device == "cuda" else 4
    changes = {"train_examples": 160, "epochs": epochs, "checkpoint_every": 10}
    config = SMALL.replace(device=job.device, processes=job.gpus, **changes)
    runs = job.folder / "killed"
    os.environ["STAGE1_RUNS"] = str(runs)
    with ThreadPoolExecutor(1) as thread:
        launched = thread.submit(processes.launch, config)
        checkpoint = store.adapter_folder(config) / "checkpoint.pt"
        workers = wait_for_workers(checkpoint, launched)
        begin = time.perf_counter()
        workers[-1].send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=60)
        gone = time.perf_counter() - begin
        failed = launched.exception()
    assert failed is not None, "the launcher reported no failure"
    step = torch.load(checkpoint, weights_only=True)["progress"]["step"]
    case = "SIGKILL of one training process, until the others are gone"
    job.emit(case=case, gpus=job.gpus, seconds=gone, alive=len(alive), resumes_at=step)
    resumed = trained_to_the_end(config, runs)["loss"]
    whole = trained_to_the_end(config, job.folder / "whole")["loss"]
    assert len(resumed) == len(whole), f"{len(resumed)} steps, expected {len(whole)}"
    case = "resumed after SIGKILL: loss of every step"
    job.emit(case=case, gpus=job.gpus, difference=relative(whole, resumed), tolerance=1e-3)


def wait_for_workers(checkpoint: Path, launched) -> list[psutil.Process]:
    """Return the training processes, by rank, once there is a checkpoint."""
    while not checkpoint.exists():
        assert not launched.done(), f"no checkpoint: {launched.exception()}"
        time.sleep(0.01)
    found = {}
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # a child that has just ended
            if rank := child.environ().get("RANK"):
                found[rank] = child
    return [found[rank] for rank in sorted(found)]


def main() -> None:
    run_job([adapters, kill])


if __name__ == "__main__":
    main()
