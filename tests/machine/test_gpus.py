"""GPUs of one machine: which are visible, and that jobs never share one. Needs no GPU."""

import os
import signal
import stat
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

from stage1.config import StudyConfig
from stage1.machine import gpus
from stage1.report import notebooks

ROOT = Path(__file__).resolve().parents[2]
JOB = """
import random, sys, time
from stage1.machine import gpus
assert "torch" not in sys.modules  # it would take seconds to import
uniform = random.uniform
random.uniform = lambda low, high: uniform(low, high) / 10  # wait less between attempts
count, seconds, log = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
with gpus.claim(count) as held:
    begin = time.monotonic()
    print("claimed", flush=True)
    time.sleep(seconds)
    with open(log, "a") as file:
        file.write("".join(f"{gpu} {begin} {time.monotonic()}\\n" for gpu in held))
"""
TWO = """\
GPU 0: NVIDIA H200 (UUID: GPU-aaaa1111-0)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb2222-0)
"""
DIVIDED = """\
GPU 0: NVIDIA H200 (UUID: GPU-aaaa1111-0)
  MIG 1g.18gb     Device  0: (UUID: MIG-cccc3333-0)
  MIG 1g.18gb     Device  1: (UUID: MIG-dddd4444-0)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb2222-0)
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that sets what `nvidia-smi -L` prints and CUDA_VISIBLE_DEVICES.

    None stands for no such program and for an unset variable. Locks go to the test's own folder.
    """
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(gpus.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def set_up(listing: str | None, chosen: str | None, status: int = 0) -> None:
        if listing is not None:
            program = tmp_path / "bin/nvidia-smi"
            program.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{listing}END\nexit {status}")
            program.chmod(0o755)
        if chosen is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)

    return set_up


@pytest.mark.parametrize(
    "listing, chosen, expected",
    [
        (None, None, []),
        (None, "", []),
        (None, "-1", []),
        (None, "NoDevFiles", []),
        (None, "0,1", ["0", "1"]),
        (None, "2, 0,-1,1", ["2", "0"]),
        (None, "GPU-aaaa", ["GPU-aaaa"]),
        (TWO, None, ["GPU-aaaa1111-0", "GPU-bbbb2222-0"]),
        (TWO, "1", ["GPU-bbbb2222-0"]),
        (TWO, "1,0", ["GPU-bbbb2222-0", "GPU-aaaa1111-0"]),
        (TWO, "GPU-bbbb", ["GPU-bbbb2222-0"]),
        (TWO, "0,7,1", ["GPU-aaaa1111-0"]),
        (TWO, "0,0", ["GPU-aaaa1111-0"]),
        (TWO, "", []),
        (DIVIDED, None, ["MIG-cccc3333-0", "MIG-dddd4444-0", "GPU-bbbb2222-0"]),
        (DIVIDED, "MIG-dddd4444-0", ["MIG-dddd4444-0"]),
    ],
)
def test_visible_gpus_are_those_of_nvidia_smi_and_the_variable(machine, listing, chosen, expected):
    machine(listing, chosen)
    assert gpus.visible() == expected


def test_no_gpu_is_visible_if_nvidia_smi_finds_no_driver(machine):
    machine("NVIDIA-SMI has failed because it couldn't communicate.\n", None, status=9)
    assert gpus.visible() == []


@pytest.mark.parametrize(
    "notebook, changes, expected",
    [
        ("01_data_and_pca", {"processes": 4}, 1),
        ("02_train_adapter", {}, 1),
        ("02_train_adapter", {"processes": 4}, 4),
        ("02_train_adapter", {"processes": 4, "device": "cpu"}, 0),
        ("03_generation_eval", {"device": "cuda"}, 1),
        ("04_loss_magnitude", {"device": "cpu"}, 0),
        ("05_report", {"processes": 4}, 0),
        ("06_fault_gallery", {"processes": 4}, 0),
        ("07_english", {"processes": 4}, 0),
    ],
)
def test_only_training_needs_a_gpu_for_every_process(notebook, changes, expected):
    assert gpus.needed(notebook, StudyConfig(**changes)) == expected


@pytest.mark.parametrize("chosen, expected", [("0,1", 2), ("", 1)])
def test_a_sharded_model_needs_all_visible_gpus(machine, chosen, expected):
    machine(None, chosen)
    assert gpus.needed("03_generation_eval", StudyConfig(device="sharded")) == expected


@pytest.mark.parametrize("chosen", ["2,5,7", None])
def test_a_claim_shows_only_its_gpus_and_restores_the_variable(machine, chosen):
    listing = None if chosen else TWO + "GPU 2: NVIDIA H200 (UUID: GPU-eeee5555-0)\n"
    machine(listing, chosen)
    with gpus.claim(2) as held:
        assert held == gpus.visible() == os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        assert len(held) == 2
    with pytest.raises(KeyError), gpus.claim(3) as held:
        assert len(held) == 3
        raise KeyError
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == chosen
    with gpus.claim(3):
        pass


@pytest.mark.parametrize("count, chosen", [(0, "0,1"), (1, ""), (2, None)])
def test_a_claim_of_no_gpu_or_without_gpus_does_nothing(machine, tmp_path, count, chosen):
    machine(None, chosen)
    with gpus.claim(count) as held:
        assert held == [] and os.environ.get("CUDA_VISIBLE_DEVICES") == chosen
    assert not list(tmp_path.glob("*.lock"))


def test_more_gpus_than_there_are_is_refused(machine):
    machine(None, "0,1")
    expected = r"processes=3: expected at most 2, one for each GPU here \(0, 1\)"
    with pytest.raises(ValueError, match=expected):
        gpus.claim(3).__enter__()


def test_every_user_of_the_machine_may_take_the_locks(machine, tmp_path):
    machine(None, "0")
    before = os.umask(0o077)
    try:
        with gpus.claim(1):
            (lock,) = tmp_path.glob("*.lock")
            assert stat.S_IMODE(lock.stat().st_mode) == 0o666
    finally:
        os.umask(before)


def start(count: int, seconds: float, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", JOB, str(count), str(seconds), str(log)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def finish(*jobs: subprocess.Popen) -> None:
    for job in jobs:
        _, errors = job.communicate(timeout=60)
        assert job.returncode == 0, errors


def claims(log: Path) -> list[tuple[str, float, float]]:
    """Return the claims in the log, by GPU and time; no two of one GPU overlap."""
    rows = [line.split() for line in log.read_text().splitlines()]
    claims = sorted((gpu, float(begin), float(end)) for gpu, begin, end in rows)
    for (gpu, _, end), (next_gpu, begin, _) in pairwise(claims):
        assert gpu != next_gpu or end <= begin, claims
    return claims


@pytest.mark.slow
@pytest.mark.parametrize("chosen, counts", [("0,1", (1, 1, 2, 1, 1, 2)), ("0,1,2", (2, 2, 2, 2))])
def test_jobs_that_contend_for_gpus_never_share_one_and_all_finish(
    machine, tmp_path, chosen, counts
):
    machine(None, chosen)
    finish(*[start(count, 0.2, tmp_path / "log") for count in counts])
    held = claims(tmp_path / "log")
    assert len(held) == sum(counts) and {gpu for gpu, _, _ in held} <= set(chosen.split(","))


def test_a_killed_job_frees_its_gpu(machine, tmp_path):
    machine(None, "0")
    holder = start(1, 600, tmp_path / "log")
    assert holder.stdout.readline() == "claimed\n", holder.communicate(timeout=60)[1]
    waiting = start(1, 0, tmp_path / "log")
    assert waiting.stderr.readline().startswith("waiting for 1 of the GPUs 0")
    time.sleep(0.5)
    assert waiting.poll() is None
    holder.send_signal(signal.SIGKILL)
    finish(waiting)
    holder.communicate(timeout=60)
    assert len(claims(tmp_path / "log")) == 1


def test_a_notebook_sees_only_the_gpus_that_it_was_given(machine, tmp_path):
    machine(None, "3,5,7")
    cells = [
        nbformat.v4.new_code_cell("preset = processes = None", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import os\nprint(os.environ.get('CUDA_VISIBLE_DEVICES'))"),
    ]
    language = {
        "language_info": {"name": "python"},
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
    }
    path, executed = tmp_path / "02_train_adapter.ipynb", tmp_path / "out.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=language), path)
    notebooks.execute(path, executed, {"preset": "smoke", "processes": 2})
    printed = nbformat.read(executed, as_version=4).cells[-1].outputs[0]["text"]
    assert printed.strip() == "3,5"


def test_training_on_more_gpus_than_there_are_fails_before_its_notebook_runs(machine, tmp_path):
    machine(None, "0")
    path, executed = tmp_path / "02_train_adapter.ipynb", tmp_path / "out.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), path)
    with pytest.raises(ValueError, match="processes=2: expected at most 1"):
        notebooks.execute(path, executed, {"preset": "smoke", "processes": 2})
    assert not executed.exists()
