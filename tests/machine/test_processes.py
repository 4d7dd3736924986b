"""Several processes: shares that never overlap, the numbers of one process from two, and resuming after SIGKILL."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.machine import processes
from stage1.study import study

SMALL = load_preset("smoke").replace(
    device="cpu", train_examples=37, learning_rate=1.0e-2, gradients_every=0
)
START = "import sys, json; from stage1 import processes; from stage1.config import StudyConfig; "
START += "processes.launch(StudyConfig(**json.loads(sys.argv[1])))"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A runs folder of this test's own; the processes it starts inherit it."""
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    return tmp_path


def results(config: StudyConfig) -> tuple[dict, pd.DataFrame, pd.DataFrame]:
    folder = store.adapter_folder(config)
    tables = (store.read_table(folder / f"{name}.parquet") for name in ("curve", "answers"))
    return store.read_json(folder / "record.json")["results"], *tables


# ---------------------------------------------------------------- shares


@given(n=st.integers(0, 40), count=st.integers(1, 6))
def test_shares_never_overlap_and_leave_nothing_out(n, count):
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(count))
        for rank in range(count):
            patch.setenv("RANK", str(rank))
            taken.append(processes.shard(list(range(n))))
    assert sorted(place for part in taken for place in part) == list(range(n))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_alone_nothing_is_shared_and_nobody_is_waited_for():
    table = pd.DataFrame({"a": [1, 2]})
    assert (processes.world_size(), processes.rank()) == (1, 0)
    assert processes.shard([3, 1, 2]) == [3, 1, 2] and processes.gather_rows(table) is table
    assert processes.all_reduce(torch.ones(2)).tolist() == [1, 1] and processes.all_true(True)
    processes.barrier()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        ValueError, match="processes=3: expected at most 2, the GPUs that are visible"
    ):
        processes.launch(SMALL.replace(device="auto", processes=3))


def test_a_process_that_fails_is_reported_with_what_it_said(runs, capfd):
    with pytest.raises(subprocess.CalledProcessError):
        processes.launch(SMALL.replace(processes=2, language_model="/no/such/folder"))
    assert "language_model='/no/such/folder'" in capfd.readouterr().out


# ---------------------------------------------------------------- two processes are as good as one


@pytest.mark.parametrize(
    "objective", ["option3_teacher_forced", "option1_reconstruction", "option2_on_policy"]
)
def test_two_processes_come_to_what_one_comes_to(runs, objective):
    """37 questions in batches of 16 leave a last batch of 5: no process may count it twice. The numbers differ by the
    rounding of sums taken in another order, and AdamW carries that on."""
    config = SMALL.replace(objective=objective)
    alone = study.prepare(config)
    study.obtain(alone)
    record, curve, answers = results(config)
    study.obtain(study.replace(alone, config=config.replace(processes=2)))
    again, both, shared = results(config)
    exact = ["step", "examples", *(name for name in curve.columns if name.endswith("_tokens"))]
    pd.testing.assert_frame_equal(both[exact], curve[exact])
    numbers = ["loss", "gradient_norm", "learning_rate"]
    pd.testing.assert_frame_equal(both[numbers], curve[numbers], rtol=1e-3)
    assert again["examples_seen"] == record["examples_seen"] == 37
    assert shared["id"].tolist() == answers["id"].tolist()
    assert shared["ce_first"].to_numpy() == pytest.approx(answers["ce_first"].to_numpy(), rel=1e-3)


# ---------------------------------------------------------------- SIGKILL in the middle


def descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_after_checkpoint(config: StudyConfig) -> list[psutil.Process]:
    """Start the training and kill whoever started it as soon as a checkpoint is there; returns who was left."""
    command = [sys.executable, "-c", START, json.dumps(config.to_dict())]
    starter = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint, left = store.adapter_folder(config) / "checkpoint.pt", []
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert starter.poll() is None and time.monotonic() < deadline, (
            "ended before its first checkpoint"
        )
        time.sleep(0.02)
    left = descendants(psutil.Process(starter.pid))
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    return left


def test_a_distributed_training_killed_in_the_middle_resumes_and_ends_the_same(
    runs, monkeypatch, tmp_path
):
    config = SMALL.replace(
        processes=2, epochs=10, checkpoint_every=3, selection_every=0, train_examples=48
    )
    left = kill_after_checkpoint(config)
    _, alive = psutil.wait_procs(left, timeout=30)
    assert left and not alive, "processes outlived whoever started them, and would hold its GPUs"
    assert not (store.adapter_folder(config) / "record.json").exists()
    reached = torch.load(store.adapter_folder(config) / "checkpoint.pt", weights_only=True)[
        "progress"
    ]["step"]
    assert 0 < reached < 30
    processes.launch(config)
    resumed = results(config)
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "undisturbed"))
    processes.launch(config)
    undisturbed = results(config)
    exact = ["loss", "gradient_norm", "examples"]
    pd.testing.assert_frame_equal(resumed[1][exact], undisturbed[1][exact], rtol=1e-6)
    assert len(resumed[1]) == 30 and resumed[0]["test"]["f1"] == undisturbed[0]["test"]["f1"]


def test_a_finished_training_is_left_as_it_is(runs):
    config: StudyConfig = SMALL.replace(objective="option1_reconstruction")
    path = study.run(config)
    written = Path(path).stat().st_mtime_ns
    assert study.run(config) == path and path.stat().st_mtime_ns == written
