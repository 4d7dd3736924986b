"""Two GPUs of one machine: data-parallel training, a sharded model, a sweep, a killed process.

    python benchmarks/several_gpus.py                                      # two GPUs, the 8B shape
    python benchmarks/several_gpus.py --parts step --preset llama32_1b     # one part
    python benchmarks/several_gpus.py --preset smoke --batch 8 --steps 2 --adapters 2 --out /tmp/try

With fewer GPUs than `--gpus`, all of it is rehearsed by processes on the CPU. The parts:

- `step`: the step of `train_step.py`'s "packed, compiled" in one process and in several, at equal
  global batch and at equal batch per GPU; loss and gradient of both, also of an uneven batch.
- `agreement`: a short training of the shipped model's adapter in float32, its last batch uneven.
- `sharded`: the same step with the model's layers spread over the GPUs, in one process.
- `adapters`: adapters a minute of a sweep that sees one GPU, and of one that sees all.
- `kill`: SIGKILL of one training process, and what the same command then makes of its checkpoint.

Every job is a subprocess with a time limit; one that fails leaves a row with its error. Writes
`several_gpus.csv` after every row, and provenance to `several_gpus.json`. Rows of parts that are
not run again stay.
"""

import datetime
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import pandas as pd
import torch
from several_gpus_jobs import relative
from several_gpus_worker import of_step

from stage1 import store
from stage1.machine import gpus as machine
from stage1.machine import processes
from stage1.report import several_gpus as report
from stage1.scoring.tables import markdown_table

WORKER, STUDY = (
    Path(__file__).with_name(f"several_gpus_{name}.py") for name in ("worker", "study")
)
OF_BFLOAT16 = {"loss": 1e-3, "gradient": 0.1}
"""Twice the step's relative error against float32, in `train_step_agreement.csv`."""
OF_FLOAT32 = {"loss": 1e-5, "gradient": 1e-4, "parameters": 1e-4}


class Bench:
    """The table, and the jobs that fill it."""

    def __init__(self, given: Namespace, folder: Path):
        self.given, self.folder = given, folder
        self.device = "cuda" if torch.cuda.device_count() >= given.gpus else "cpu"
        self.rows = earlier_rows(given.out / "several_gpus.csv", given.parts)
        self.spent: dict[str, float] = {}

    def add(self, part: str, row: dict) -> None:
        """Add a row and write the table; `times_one_gpu` compares rates with one GPU's."""
        self.rows.append({"part": part} | row)
        print(self.rows[-1], flush=True)
        self.given.out.mkdir(parents=True, exist_ok=True)
        table = report.with_times(pd.DataFrame(self.rows))
        table.to_csv(self.given.out / "several_gpus.csv", index=False, float_format="%.5g")

    def environment(self, count: int, hidden: bool) -> dict[str, str]:
        """Return this environment; with `hidden`, only `count` GPUs are visible in it."""
        chosen = {"PYTHONPATH": os.pathsep.join([str(store.ROOT), *sys.path[:1]])}
        chosen |= {processes.PARENT: str(os.getpid())}
        chosen |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() // 2))}
        ids = machine.visible() or [str(index) for index in range(self.given.gpus)]
        if self.device == "cpu":
            chosen |= {machine.VARIABLE: ""}
        elif hidden:
            chosen |= {machine.VARIABLE: ",".join(ids[:count])}
        return os.environ | chosen

    def run(self, part: str, job: str, count: int, workers: int = 1, **options) -> Path:
        """Run a job in `workers` processes and add its rows; return the folder of what it saved.

        `count` is the number of GPUs it is for. A job that fails or takes too long leaves a row.
        """
        folder = self.folder / f"{part}-{job}-{count}"
        folder.mkdir()
        given = {"folder": str(folder), "device": self.device, "gpus": count}
        given |= {name: getattr(self.given, name) for name in ("preset", "steps", "adapters")}
        given |= {"batches": [self.given.batch]} | options
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        launcher = launcher if workers > 1 else []
        program = STUDY if job in ("adapters", "kill") else WORKER
        command = [sys.executable, *launcher, str(program), job, json.dumps(given)]
        begin, environment = time.perf_counter(), self.environment(count, job == "adapters")
        error = run_limited(command, environment, folder / "log.txt", self.given.timeout)
        self.spent[folder.name] = time.perf_counter() - begin
        rows = folder / "rows.jsonl"
        for line in rows.read_text().splitlines() if rows.exists() else []:
            self.add(part, json.loads(line))
        if error:
            self.add(part, {"case": job, "gpus": count, "error": error})
        return folder

    def compare(self, part: str, case: str, one: Path, several: Path, tolerances: dict) -> None:
        """Add the relative differences of what two jobs saved; of counts, none is tolerated."""
        for path in sorted(one.glob("*.pt")):
            if not (several / path.name).exists():
                continue  # the row of the job that failed says why
            expected, found = (torch.load(x / path.name, weights_only=True) for x in (one, several))
            for name, values in expected.items():
                row = {"case": f"{case}: {name}, {path.stem}", "gpus": self.given.gpus}
                tolerance = tolerances.get(name, 0.0)
                difference = relative(values, found[name])
                self.add(part, row | {"difference": difference, "tolerance": tolerance})


def earlier_rows(path: Path, parts: list[str]) -> list[dict]:
    """Return the rows of other parts that an earlier run left."""
    if not path.exists():
        return []
    table = pd.read_csv(path)
    kept = table[~table["part"].isin(parts)].to_dict("records")
    return [{name: value for name, value in row.items() if pd.notna(value)} for row in kept]


def earlier_runs(path: Path) -> list[dict]:
    return store.read_json(path)["results"]["runs"] if path.exists() else []


def command() -> str:
    """Return the command of this run, without the folder of its results."""
    words = ["python", *sys.argv]
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    return shlex.join(words)


def run_limited(command: list[str], environment: dict, log: Path, limit: float) -> str:
    """Run a command and all that it starts for `limit` seconds at most; return its error, or ""."""
    with log.open("w") as file:
        options = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
        job = subprocess.Popen(command, env=environment, **options)
        try:
            code, error = job.wait(limit), ""
        except subprocess.TimeoutExpired:
            code, error = 1, f"not finished after {limit:.0f} s"
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    if not code:
        return ""
    text = log.read_text(errors="replace")
    print(text[-4_000:], flush=True)
    found = re.findall(r"^(?:\[rank\d+\]: ?)?([\w.]*(?:Error|Exception)\b.*)$", text, re.MULTILINE)
    own = [line for line in found if "ChildFailedError" not in line]
    return error or (own[0] if own else f"exit status {code}")[:300]


def step(bench: Bench) -> None:
    batch, several = bench.given.batch, bench.given.gpus
    one = bench.run("step", "training_step", 1, batches=[batch, batch // several])
    sizes = [batch, batch * several]
    all_of = bench.run("step", "training_step", several, workers=several, batches=sizes)
    bench.compare("step", "one process and several", one, all_of, OF_BFLOAT16)


def agreement(bench: Bench) -> None:
    several = bench.given.gpus
    with ThreadPoolExecutor(2) as threads:  # nothing is timed
        jobs = [
            threads.submit(bench.run, "agreement", "small_training", count, count)
            for count in (1, several)
        ]
        one, all_of = (job.result() for job in jobs)
    bench.compare("agreement", "almanac-lm in float32", one, all_of, OF_FLOAT32)


def sharded(bench: Bench) -> None:
    one = bench.folder / "step-training_step-1"
    several = bench.run("sharded", "sharded", bench.given.gpus)
    bench.compare("sharded", "one GPU and sharded", one, several, OF_BFLOAT16)


def adapters(bench: Bench) -> None:
    for count in (1, bench.given.gpus):
        bench.run("adapters", "adapters", count)


def kill(bench: Bench) -> None:
    bench.run("kill", "kill", bench.given.gpus)


PARTS = {part.__name__: part for part in (step, agreement, sharded, adapters, kill)}


def main() -> None:
    options = {"preset": "llama31_8b", "gpus": 2, "batch": 64, "steps": 8, "adapters": 24}
    parser = common.parser(__doc__, "", **options, timeout=150.0, parts=list(PARTS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given, Path(folder))
        for name in given.parts:
            try:
                PARTS[name](bench)
            except Exception as error:  # the other parts still count
                bench.add(name, {"case": name, "error": f"{type(error).__name__}: {error}"[:300]})
    run = {
        "parts": given.parts,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "seconds": {name: round(seconds, 1) for name, seconds in bench.spent.items()},
        "command": command(),
        "date": datetime.date.today().isoformat(),
    }
    config = of_step(given.preset, bench.device)
    path = given.out / "several_gpus.json"
    store.write_record(path, config, {"runs": [*earlier_runs(path), run]})
    table = pd.read_csv(given.out / "several_gpus.csv")
    shown = markdown_table(report.rates(table)), markdown_table(report.checks(table))
    print(*shown, *report.sentences(table), sep="\n\n")


if __name__ == "__main__":
    main()
