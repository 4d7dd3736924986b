"""Several processes: disjoint shares, the numbers of one process, resuming after SIGKILL."""

import dataclasses
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

from stage1 import store, study
from stage1.config import StudyConfig, load_preset
from stage1.machine import processes

SMALL = load_preset("smoke").replace(
    device="cpu",
    train_examples=37,
    selection_examples=2,
    test_examples=9,
    max_new_tokens=6,
    learning_rate=1.0e-2,
    gradients_every=0,
)
LONG = SMALL.replace(processes=2, epochs=8, selection_every=0)
OBJECTIVES = ["option3_teacher_forced", "option1_reconstruction", "option2_on_policy"]
LAUNCH = """
import json, sys
from stage1.config import StudyConfig
from stage1.machine import processes
processes.launch(StudyConfig(**json.loads(sys.argv[1])))
"""
WORKER = """
import json, sys
from stage1 import study
from stage1.config import StudyConfig
from stage1.machine import processes
processes.end_with_parents()
processes.initialise(cpu=True)
configs = [StudyConfig(**values) for values in json.loads(sys.argv[1])]
prepared = study.prepare(configs[0])
for config in configs:
    study.run(config, prepared)
"""


@pytest.fixture(scope="module")
def prepared():
    return study.prepare(SMALL)


@pytest.fixture(scope="module")
def one_process(prepared, tmp_path_factory) -> Path:
    """Return a runs folder with one adapter per objective, each trained by one process."""
    folder = tmp_path_factory.mktemp("one-process")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGE1_RUNS", str(folder))
        for objective in OBJECTIVES:
            study.run(SMALL.replace(objective=objective), prepared)
    return folder


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """Return a runs folder with these adapters and `LONG`, all trained by one pair of processes."""
    folder = tmp_path_factory.mktemp("two-processes")
    (folder / "worker.py").write_text(WORKER)
    configs = [SMALL.replace(objective=name, processes=2) for name in OBJECTIVES] + [LONG]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(folder / "worker.py"), json.dumps([config.to_dict() for config in configs])]
    paths = {"STAGE1_RUNS": str(folder), "PYTHONPATH": str(store.ROOT)}
    subprocess.run(
        [sys.executable, "-m", *launcher, *arguments],
        env=os.environ | paths | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=200,
    )
    return folder


def results(runs: Path, config: StudyConfig) -> tuple[dict, pd.DataFrame, pd.DataFrame]:
    """Return the results, the curve and the answers of an adapter in a runs folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGE1_RUNS", str(runs))
        folder = store.adapter_folder(config)
    tables = (store.read_table(folder / f"{name}.parquet") for name in ("curve", "answers"))
    return store.read_json(folder / "record.json")["results"], *tables


# ---------------------------------------------------------------- collective operations


@given(n=st.integers(0, 40), count=st.integers(1, 6))
def test_shards_are_disjoint_and_leave_nothing_out(n, count):
    shards = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(count))
        for rank in range(count):
            patch.setenv("RANK", str(rank))
            shards.append(processes.shard(list(range(n))))
    assert sorted(item for shard in shards for item in shard) == list(range(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_single_process_shares_nothing_and_waits_for_nobody():
    table = pd.DataFrame({"a": [1, 2]})
    assert (processes.world_size(), processes.rank()) == (1, 0)
    assert processes.shard([3, 1, 2]) == [3, 1, 2] and processes.gather_rows(table) is table
    assert processes.all_reduce(torch.ones(2)).tolist() == [1, 1] and processes.all_true(True)
    processes.barrier()


# ---------------------------------------------------------------- launching


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    expected = "processes=3: expected at most 2, the GPUs that are visible"
    with pytest.raises(ValueError, match=expected):
        processes.launch(SMALL.replace(device="auto", processes=3))


@pytest.mark.slow
def test_a_process_that_fails_is_reported_with_its_output(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    with pytest.raises(subprocess.CalledProcessError):
        processes.launch(SMALL.replace(language_model="/no/such/folder"))
    assert "language_model='/no/such/folder'" in capfd.readouterr().out


# ---------------------------------------------------------------- two processes equal one


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_give_the_results_of_one(one_process, two_processes, objective):
    """37 questions in batches of 16 leave a last batch of 5, which no process may count twice.

    Numbers differ by the rounding of sums in another order, which AdamW carries on.
    """
    config = SMALL.replace(objective=objective)
    record, curve, answers = results(one_process, config)
    other_record, other_curve, other_answers = results(two_processes, config)
    exact = ["step", "examples", *(name for name in curve.columns if name.endswith("_tokens"))]
    pd.testing.assert_frame_equal(other_curve[exact], curve[exact])
    rounded = ["loss", "gradient_norm", "learning_rate"]
    pd.testing.assert_frame_equal(other_curve[rounded], curve[rounded], rtol=1e-3)
    assert other_record["examples_seen"] == record["examples_seen"] == 37
    assert other_answers["id"].tolist() == answers["id"].tolist()
    ce = answers["ce_first"].to_numpy()
    assert other_answers["ce_first"].to_numpy() == pytest.approx(ce, rel=1e-3)


# ---------------------------------------------------------------- resuming


def kill_after_checkpoint(
    config: StudyConfig, victim: str
) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """Launch the training and kill the caller or a worker after the first checkpoint.

    Returns the caller and its descendants.
    """
    command = [sys.executable, "-c", LAUNCH, json.dumps(config.to_dict())]
    caller = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    checkpoint = store.adapter_folder(config) / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert caller.poll() is None, "the training ended before its first checkpoint"
        assert time.monotonic() < deadline, "no checkpoint within 120 s"
        time.sleep(0.02)
    descendants = psutil.Process(caller.pid).children(recursive=True)
    workers = {child.environ().get("RANK"): child.pid for child in descendants}
    os.kill({"caller": caller.pid, "worker": workers["1"]}[victim], signal.SIGKILL)
    return caller, descendants


def assert_all_end(descendants: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(descendants, timeout=30)
    assert descendants and not alive, "processes outlived the killed one and would hold its GPUs"


@pytest.mark.slow
def test_a_training_ends_with_its_caller(monkeypatch, tmp_path):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    caller, descendants = kill_after_checkpoint(LONG, "caller")
    assert_all_end(descendants)
    assert caller.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_training_of_which_one_process_is_killed_ends_resumes_and_gives_the_same(
    prepared, two_processes, monkeypatch, tmp_path
):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    caller, descendants = kill_after_checkpoint(LONG, "worker")
    assert_all_end(descendants)
    _, reported = caller.communicate(timeout=30)
    assert caller.returncode == 1 and "CalledProcessError" in reported
    folder = store.adapter_folder(LONG)
    assert not (folder / "record.json").exists()
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert 0 < checkpoint["progress"]["step"] < 24
    study.obtain(dataclasses.replace(prepared, config=LONG))
    record, curve, _ = results(tmp_path, LONG)
    expected_record, expected_curve, _ = results(two_processes, LONG)
    columns = ["loss", "gradient_norm", "examples"]
    pd.testing.assert_frame_equal(curve[columns], expected_curve[columns], rtol=1e-6)
    assert len(curve) == 24 and record["test"]["f1"] == expected_record["test"]["f1"]


@pytest.mark.slow
def test_a_finished_training_is_left_as_it_is(one_process, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(one_process))
    config = SMALL.replace(objective="option1_reconstruction")
    path = store.adapter_folder(config) / "record.json"
    written = path.stat().st_mtime_ns
    assert study.run(config) == path and path.stat().st_mtime_ns == written
