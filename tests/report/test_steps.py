"""A line per step with the time that is left, errors in full, and nothing else."""

import io
import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from stage1.report import steps

STATS = {"data_and_pca": 1, "train_adapter": 3, "index": 1, "all": 1, "total": 6}


class Time:
    """A clock that a test sets."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def clock(tmp_path, time) -> steps.Clock:
    return steps.Clock(tmp_path / "seconds.json", time)


class Run:
    """A report whose events a test plays, as Snakemake logs them."""

    def __init__(self, clock: steps.Clock, time: Time):
        self.steps, self.time = steps.Steps(clock, Path("reports/my/index.html")), time
        self.notebook = clock.path.with_name("x.ipynb")

    def log(
        self, event: str | None, level: int = logging.INFO, message: str = "", **fields
    ) -> None:
        record = logging.LogRecord("snakemake", level, __file__, 1, message, (), None)
        vars(record).update(fields, event=event)
        self.steps.emit(record)

    def start(self, job: int, rule: str, at: float, **wildcards) -> None:
        self.time.seconds = at
        self.log("job_info", jobid=job, rule_name=rule, wildcards=wildcards)

    def finish(self, job: int, at: float) -> None:
        self.time.seconds = at
        self.log("job_finished", job_id=job)

    def fail(self, job: int, rule: str) -> None:
        fields = {"log": [str(self.notebook)], "shellcmd": "python -m x"}
        self.log("job_error", logging.ERROR, jobid=job, rule_name=rule, **fields)


@pytest.fixture
def run(clock, time) -> Run:
    return Run(clock, time)


def play(run: Run) -> None:
    """Two steps side by side from 0 to 60 s, then the second adapter alone, and so on."""
    run.log("run_info", stats=STATS)
    run.start(1, "data_and_pca", 0)
    run.start(2, "train_adapter", 0, objective="distill", seed="0")
    run.finish(1, 60)
    run.finish(2, 60 + 90)
    run.start(3, "train_adapter", 150, objective="as_found", seed="0")
    run.finish(3, 270)
    run.start(4, "train_adapter", 270, objective="distill", seed="1")
    run.finish(4, 390)
    run.start(5, "index", 390)
    run.finish(5, 391)
    run.start(6, "all", 391)
    run.finish(6, 391)


def test_a_first_run_tells_the_time_once_it_knows_it_and_ends_with_the_index(run, capsys):
    play(run)
    assert capsys.readouterr().err.splitlines() == [
        "step 1 of 5, data and pca",
        "step 2 of 5, adapter distill",
        "step 3 of 5, adapter as_found, about 4 minutes left",
        "step 4 of 5, adapter distill, seed 1, about 2 minutes left",
        "step 5 of 5, index, less than a minute left",
        "reports/my/index.html",
    ]


def test_the_next_run_tells_it_from_the_first_line(run, clock, time, capsys):
    play(run)
    time.seconds = 0.0
    again = Run(steps.Clock(clock.path, time), time)
    capsys.readouterr()
    again.log("run_info", stats=STATS)
    again.start(1, "data_and_pca", 0)
    assert capsys.readouterr().err == "step 1 of 5, data and pca, about 6 minutes left\n"


def test_shares_of_steps_side_by_side_add_up_to_the_time_that_passed(run, clock):
    play(run)
    saved = json.loads(clock.path.read_text())
    assert saved == {"data_and_pca": 30.0, "train_adapter": 120.0}
    assert 30 + 3 * 120 == 390


def test_a_rule_that_never_ran_makes_it_a_lower_bound(clock, time):
    clock.start(1, "train_adapter")
    time.seconds = 100
    clock.stop(1, succeeded=True)
    assert clock.left(Counter(train_adapter=2)) == (200, True)
    assert clock.left(Counter(train_adapter=2, report=1)) == (200, False)
    assert steps.time_left(200.0, is_all=False) == ", at least 3 minutes left"


def test_a_failed_step_is_named_with_its_notebook_and_is_no_measurement(run, clock, capsys):
    run.log("run_info", stats=STATS)
    run.start(2, "train_adapter", 0, objective="distill", seed="0")
    run.time.seconds = 50
    run.fail(2, "train_adapter")
    assert "FAILED: adapter distill\n" in capsys.readouterr().err, "it has written no notebook"
    run.notebook.touch()
    run.fail(2, "train_adapter")
    error = f"FAILED: adapter distill; its notebook up to the error: {run.notebook}\n"
    assert error in capsys.readouterr().err
    assert not clock.path.exists() and not clock.running
    run.start(2, "train_adapter", 60, objective="distill", seed="0")
    assert capsys.readouterr().err == "step 1 of 5, adapter distill\n"


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.0, "less than a minute left"),
        (60.0, "about 1 minute left"),
        (170.0, "about 3 minutes left"),
        (5000.0, "about 83 minutes left"),
        (10800.0, "about 3 hours left"),
    ],
)
def test_durations_are_round(seconds, text):
    assert steps.time_left(seconds, is_all=True) == f", {text}"


def test_messages_of_snakemake_are_dropped_but_warnings_and_errors_are_not(run, capsys):
    for event in (None, "shellcmd", "progress", "resources_info"):
        run.log(event, message="Select jobs to execute...")
    assert capsys.readouterr().err == ""
    run.log(None, logging.WARNING, "disk full")
    run.log("error", logging.ERROR, "no such rule")
    run.log(None, message="Nothing to be done (all requested files are present)")
    assert capsys.readouterr().err == (
        "disk full\nno such rule\nnothing to do: reports/my/index.html\n"
    )


def test_only_the_terminals_handler_falls_silent(tmp_path):
    logger, terminal = logging.Logger("snakemake"), io.StringIO()
    logger.addHandler(logging.StreamHandler(terminal))
    logger.addHandler(logging.FileHandler(tmp_path / "log"))
    steps.attach(logger, tmp_path, tmp_path)
    logger.info("Building DAG of jobs...")
    assert terminal.getvalue() == ""
    assert (tmp_path / "log").read_text() == "Building DAG of jobs...\n"
