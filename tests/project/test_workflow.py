"""The DAG resumes after a kill, reruns what changed, and asks for the GPUs it needs."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil
import pytest

from stage1.names import OBJECTIVES
from stage1.report.dependencies import package_files
from stage1.store import ROOT

SNAKEMAKE = [sys.executable, "-m", "snakemake"]
LOCAL = [*SNAKEMAKE, "--cores", "1", "--nolock", "--rerun-incomplete", "--config"]
NOTEBOOK = "notebooks/01_data_and_pca.ipynb"
RECORD, PAGE = "runs/tiny/01_data_and_pca.json", "reports/tiny/01_data_and_pca.html"
TINY = "train_examples: 20\nselection_examples: 4\ntest_examples: 4\nbatch_size: 4\n"
NEEDS_GPU = ("explore", "data_and_pca", "train_adapter", "generation_eval", "loss_magnitude")
PATIENCE = 300
"""Seconds to wait for a command; the longest takes 20 on an idle machine."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def presets(checkout) -> None:
    """Add two presets to the checkout."""
    (checkout / "configs/tiny.yaml").write_text(TINY)
    (checkout / "configs/on_cpu.yaml").write_text("device: cpu\nprocesses: 2\n")


@pytest.fixture(scope="module")
def start(checkout) -> Callable[..., subprocess.Popen]:
    """Return a function that starts a command in the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "STAGE1_RUNS"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return lambda *command: subprocess.Popen(command, cwd=checkout, env=environment, **streams)


@pytest.fixture(scope="module")
def finish(start) -> Callable[..., str]:
    """Return a function that runs a command in the checkout and returns its output."""

    def finish(*command: str, succeeds: bool = True) -> str:
        process = start(*command)
        output, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode == 0) == succeeds, f"{' '.join(command)}\n{output}"
        return output

    return finish


@pytest.fixture(scope="module")
def plan(finish) -> Callable[..., str]:
    """Return a function that returns the dry run of a local report, made once per configuration."""
    return cache(lambda *options: finish(*LOCAL, *options, "--dry-run", "--printshellcmds"))


def running_step(snakemake: subprocess.Popen, executed: Path) -> psutil.Process:
    """Return the process of the step once it executes its notebook (5 s when idle)."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for child in psutil.Process(snakemake.pid).children(recursive=True):
            is_step = child.cmdline()[1:3] == ["-m", "stage1.report.notebooks"]
            if is_step and executed.exists():
                return child
        assert snakemake.poll() is None, f"snakemake ended early: {snakemake.communicate()[0]}"
        time.sleep(0.1)
    raise AssertionError(f"waited {PATIENCE} s for the step to write {executed}")


def test_a_killed_step_leaves_nothing_half_written_and_the_next_run_finishes(
    checkout, start, finish
):
    snakemake = start(*LOCAL, "preset=tiny", "--", RECORD)
    step = running_step(snakemake, checkout / "runs/tiny/notebooks/01_data_and_pca.ipynb")
    step.send_signal(signal.SIGKILL)
    output, _ = snakemake.communicate(timeout=PATIENCE)
    assert snakemake.returncode != 0, output
    first, *rest = output.splitlines()
    assert first == "step 1 of 1, data and pca"
    failed = [line for line in rest if line.startswith("FAILED: data and pca")]
    assert failed and "runs/tiny/notebooks/01_data_and_pca.ipynb" in failed[0]
    assert not (checkout / RECORD).exists() and not (checkout / PAGE).exists()
    finish(*LOCAL, "preset=tiny", "--", RECORD)
    assert (checkout / RECORD).exists() and (checkout / PAGE).exists()
    hidden = [path for folder in ("runs", "reports") for path in (checkout / folder).rglob(".*")]
    assert not hidden, "temporary files are left"


def test_a_finished_step_is_redone_only_where_its_inputs_changed(checkout, finish):
    """Preset, notebook and a module imported indirectly are inputs; other modules are not."""
    finish(*LOCAL, "preset=tiny", "--", RECORD)
    unrelated, deep = "stage1/ask/reader.py", "stage1/scoring/squad.py"
    assert deep in package_files(ROOT / NOTEBOOK)

    def dry_run_after_editing(*names: str) -> str:
        for name in names:
            (checkout / name).write_text((checkout / name).read_text() + "\n")
        return finish(*LOCAL, "preset=tiny", "--dry-run", "--", RECORD)

    assert "Nothing to be done" in dry_run_after_editing(unrelated)
    changed = {deep, "configs/tiny.yaml", NOTEBOOK}
    (reason,) = re.findall(r"reason: Updated input files: (.*)", dry_run_after_editing(*changed))
    assert set(reason.split(", ")) == changed


def test_the_report_trains_every_objective_in_one_process(plan):
    report = plan("preset=smoke")
    for name in OBJECTIVES:
        assert f"runs/smoke/adapters/{name}-seed0/record.json" in report
    pages = ["index", *(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))]
    for page in set(pages) - {"02_train_adapter"}:
        assert f"reports/smoke/{page}.html" in report
    assert "-p processes" not in report


def test_a_preset_outside_the_checkout_has_folders_of_its_own(plan, tmp_path):
    """They are not those of a preset in the checkout with the same name."""
    path = tmp_path / "my own" / "smoke.yaml"
    path.parent.mkdir()
    path.write_text(TINY)
    report = plan(f"preset={path}")
    (run,) = set(re.findall(r"log: runs/(.*)/notebooks/01_data_and_pca.ipynb", report))
    assert re.fullmatch(r"smoke-[0-9a-f]{8}", run)
    assert f"input: notebooks/01_data_and_pca.ipynb, {path}, stage1/" in report
    assert f"{NOTEBOOK} '{path}' reports/{run}/01_data_and_pca.html" in report
    assert f"output: reports/{run}/index.html" in report and "runs/smoke/" not in report


def requested(plan: str, resource: str) -> dict[str, set[str]]:
    """Return what the jobs of each rule request of a resource in a dry run."""
    jobs = re.findall(
        r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", plan, re.MULTILINE
    )
    amounts: dict[str, set[str]] = {}
    for rule, resources in jobs:
        amounts.setdefault(rule, set()).update(re.findall(rf"\b{resource}=(\w+)", resources))
    return amounts


def test_the_slurm_profile_requests_gpus_memory_and_time_per_job(finish):
    command = [*SNAKEMAKE, "--profile", "profiles/slurm", "--dry-run", "--config", "preset=smoke"]
    single = finish(*command)
    gpu, memory, minutes = (requested(single, name) for name in ("gpu", "mem_mb", "runtime"))
    no_gpu: dict[str, set[str]] = {
        rule: set() for rule in ("report", "fault_gallery", "english", "index", "all")
    }
    assert gpu == {rule: {"1"} for rule in NEEDS_GPU} | no_gpu
    assert {rule: memory[rule] for rule in NEEDS_GPU} == {rule: {"32000"} for rule in NEEDS_GPU}
    assert memory["report"] == {"8000"} and minutes["train_adapter"] == {"240"}
    double = finish(*command, "processes=2", "--cores", "8")  # a dry run plans one core otherwise
    assert requested(double, "gpu")["train_adapter"] == {"2"}
    assert requested(double, "gpu")["generation_eval"] == {"1"}
    assert requested(double, "mem_mb")["train_adapter"] == {"64000"}


@pytest.mark.parametrize("present, expected", [(0, "0"), (4, "2")])
def test_jobs_request_no_more_gpus_than_the_machine_has(plan, present, expected):
    report = plan("preset=smoke", "processes=2", "--resources", f"gpu={present}")
    assert requested(report, "gpu")["train_adapter"] == {expected}


def test_only_the_training_notebook_gets_the_number_of_processes(plan):
    report = plan("preset=smoke", "processes=2", "--resources", "gpu=4")
    told = re.findall(r"-m stage1.report.notebooks (\S+) .* -p processes 2$", report, re.MULTILINE)
    assert set(told) == {"notebooks/02_train_adapter.ipynb"}
    assert report.count("-p processes") == len(OBJECTIVES)


def test_a_preset_on_the_cpu_requests_no_gpu(plan):
    gpu = requested(plan("preset=on_cpu"), "gpu")
    assert {rule: gpu[rule] for rule in NEEDS_GPU} == {rule: {"0"} for rule in NEEDS_GPU}


@pytest.mark.parametrize(
    "given, message",
    [
        ("processes=0", "processes=0: expected one or more"),
        ("preset=quik", "did you mean 'quick'?"),
    ],
)
def test_an_impossible_study_stops_the_report_and_names_the_value(finish, given, message):
    output = finish(*LOCAL, "preset=smoke", given, succeeds=False)
    assert given.split("=")[0] in output and message in output


def test_make_report_uses_the_gpus_of_this_machine_or_the_cluster(finish):
    command = ["make", "--dry-run", "--old-file=.venv/made", "report"]
    local = finish(*command, "PROCESSES=2")
    assert "--resources gpu=$(.venv/bin/python -m stage1.machine.gpus)" in local
    assert "preset=quick processes=2" in local
    cluster = finish(*command, "PROFILE=profiles/slurm")
    assert "--profile profiles/slurm" in cluster and "--cores" not in cluster


def test_the_command_that_counts_gpus_obeys_cuda_visible_devices():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-m", "stage1.machine.gpus"]
    count = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert count.stdout == "0\n"
