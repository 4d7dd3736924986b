"""The benchmark of two GPUs, rehearsed on the CPU."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from stage1 import store


@pytest.mark.slow
def test_a_rehearsal_leaves_a_row_per_reading_and_one_per_failure(tmp_path):
    options = ["--preset", "smoke", "--batch", "4", "--steps", "1", "--out", str(tmp_path)]
    program = [sys.executable, "benchmarks/several_gpus.py", *options]
    run = {"cwd": store.ROOT, "check": True, "timeout": 200, "stdout": subprocess.DEVNULL}
    run["env"] = os.environ | {"PYTHONPATH": str(store.ROOT), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*program, "--parts", "step"], **run)
    subprocess.run([*program, "--parts", "kill", "--timeout", "1"], **run)
    table = pd.read_csv(tmp_path / "several_gpus.csv")
    steps = table[table["case"] == "training step"]
    measured = steps[["gpus", "batch"]].to_numpy().tolist()
    assert measured == [[1, 4], [1, 2], [2, 4], [2, 8]]
    assert (steps[["seconds", "examples_per_s", "peak_GB", "times_one_gpu"]] > 0).all(axis=None)
    assert (steps.loc[steps["gpus"] == 2, ["seconds_alone", "all_reduce_s"]] > 0).all(axis=None)
    compared = table[table["tolerance"].notna()]
    assert len(compared) == 5 and (compared["difference"] < 1e-4).all()
    failed = table[table["error"].notna()]
    assert failed["part"].tolist() == ["kill"] and "after 1 s" in failed["error"].item()
    runs = store.read_json(tmp_path / "several_gpus.json")["results"]["runs"]
    assert [run["parts"] for run in runs] == [["step"], ["kill"]]
    assert str(tmp_path) not in runs[0]["command"]
