"""Say which step of a report starts and how long the rest takes, instead of Snakemake's messages.

    step 3 of 12, adapter distill, about 2 minutes left

The Snakefile attaches `Steps` to Snakemake's logger. All that Snakemake has to say still goes to
its log file in `.snakemake/log/`.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from stage1 import store

INSTANT = ("index", "all")
"""Rules without a notebook; they take about a second."""


class Clock:
    """How long the steps of each rule take: in this run, or else in the previous one.

    A second in which two steps run counts half for each. The shares of all steps thus add up to the
    time that the user waits, however many run side by side.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic):
        """`path` is the JSON file that keeps the seconds per step of each rule."""
        self.path, self.now, self.last = path, now, now()
        self.previous: dict[str, float] = store.read_json(path) if path.is_file() else {}
        self.running: dict[int, str] = {}
        self.spent: dict[int, float] = {}
        self.finished: dict[str, list[float]] = {}

    def tick(self) -> None:
        """Share the time since the last call among the running steps."""
        now = self.now()
        for job in self.running:
            self.spent[job] += (now - self.last) / len(self.running)
        self.last = now

    def start(self, job: int, rule: str) -> None:
        self.tick()
        self.running[job] = rule
        self.spent[job] = 0.0  # a second attempt starts again

    def stop(self, job: int, succeeded: bool) -> None:
        """End a step, and keep its time if it succeeded."""
        self.tick()
        rule = self.running.pop(job)
        if succeeded and rule not in INSTANT:
            self.finished.setdefault(rule, []).append(self.spent[job])
            store.write_json(self.path, self.seconds())

    def seconds(self) -> dict[str, float]:
        """Return the mean seconds per step of the rules that ever ran."""
        finished = {rule: round(fmean(shares), 2) for rule, shares in self.finished.items()}
        return self.previous | finished

    def left(self, waiting: Counter[str]) -> tuple[float, bool]:
        """Return the seconds that are left, given how many steps of each rule wait, and whether
        that is all: a rule that never ran adds none."""
        self.tick()
        mean = self.seconds() | dict.fromkeys(INSTANT, 0.0)
        rules = set(self.running.values()) | set(waiting)
        known = [job for job, rule in self.running.items() if rule in mean]
        rest = sum(max(0.0, mean[self.running[job]] - self.spent[job]) for job in known)
        rest += sum(mean[rule] * count for rule, count in waiting.items() if rule in mean)
        return rest, rules <= set(mean)


def duration(seconds: float) -> str:
    """Return a duration in words, rounded to minutes or hours."""
    amount, unit = (seconds / 60, "minute") if seconds < 90 * 60 else (seconds / 3600, "hour")
    return f"{amount:.0f} {unit}{'s' if round(amount) != 1 else ''}"


def time_left(seconds: float, is_all: bool) -> str:
    """Return the time that is left as the end of a sentence, or "" where too little is known."""
    if seconds < 45:
        return ", less than a minute left" if is_all else ""
    return f", {'about' if is_all else 'at least'} {duration(seconds)} left"


def label(rule: str, wildcards: dict[str, str]) -> str:
    """Return what a step is called: `adapter distill, seed 1`, or the words of its rule."""
    if rule != "train_adapter":
        return rule.replace("_", " ")
    seed = "" if wildcards["seed"] == "0" else f", seed {wildcards['seed']}"
    return f"adapter {wildcards['objective']}{seed}"


class Steps(logging.Handler):
    """Prints a line per step, and errors and warnings in full.

    Reads the events that Snakemake attaches to its messages; their fields are those that logger
    plugins get, as in https://github.com/snakemake/snakemake-interface-logger-plugins.
    """

    def __init__(self, clock: Clock, index: Path):
        super().__init__()
        self.clock, self.index = clock, index
        self.waiting: Counter[str] = Counter()
        self.labels: dict[int, str] = {}
        """The steps that started, in order, by Snakemake's number of the job."""
        self.total = 0
        self.acts = {
            "run_info": self.plan,
            "job_info": self.start,
            "job_finished": self.finish,
            "job_error": self.fail,
        }

    def emit(self, record: logging.LogRecord) -> None:
        try:
            act = self.acts.get(str(getattr(record, "event", "")))
            if act:
                act(record)
            elif record.levelno >= logging.WARNING:
                self.say(record.getMessage())
            elif record.getMessage().startswith("Nothing to be done"):
                self.say(f"nothing to do: {self.index}")
        except Exception:
            self.handleError(record)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def plan(self, record) -> None:
        self.waiting = Counter({k: n for k, n in record.stats.items() if k not in ("all", "total")})
        self.total = self.waiting.total()

    def start(self, record) -> None:
        job, rule = record.jobid, record.rule_name
        self.clock.start(job, rule)
        if rule == "all":
            return
        if job not in self.labels:
            self.waiting[rule] -= 1
            self.labels[job] = label(rule, record.wildcards)
        number = list(self.labels).index(job) + 1
        left = time_left(*self.clock.left(+self.waiting))
        self.say(f"step {number} of {self.total}, {self.labels[job]}{left}")

    def finish(self, record) -> None:
        self.clock.stop(record.job_id, succeeded=True)
        if self.labels.get(record.job_id) == "index":
            self.say(str(self.index))

    def fail(self, record) -> None:
        """Name the step that failed; the error itself was printed by its process."""
        if record.jobid in self.clock.running:  # Snakemake repeats its errors at the end
            self.clock.stop(record.jobid, succeeded=False)
        name = self.labels.get(record.jobid, record.rule_name)
        written = [path for path in record.log if Path(path).is_file()]
        logs = f"; its notebook up to the error: {', '.join(written)}" if written else ""
        self.say(f"FAILED: {name}{logs}\n    {record.shellcmd}")


def attach(logger: logging.Logger, run: Path, report: Path) -> None:
    """Let `Steps` print in place of the logger's other handlers of the terminal."""
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not hasattr(handler, "baseFilename"):
            handler.setLevel(logging.CRITICAL + 1)
    logger.addHandler(Steps(Clock(run / "seconds.json"), report / "index.html"))
