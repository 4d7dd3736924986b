"""The project's own promises: pins agree, the package imports where it only trains, the DAG resumes after a kill."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from packaging.requirements import Requirement

from stage1 import store
from stage1.config import load_preset
from stage1.model.language_model import SHIPPED
from stage1.objectives import OBJECTIVES
from stage1.pretrain import model_card
from stage1.report import decision, evidence, results

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
SNAKEMAKE = [sys.executable, "-m", "snakemake"]
SMOKE = [*SNAKEMAKE, "--cores", "1", "--nolock", "--rerun-incomplete", "--config", "preset=smoke"]
RECORD = "runs/smoke/01_data_and_pca.json"
PAGE = "reports/smoke/01_data_and_pca.html"


def test_environment_yml_repeats_the_pins_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert sorted(pip) == sorted(PINS)


def test_constraints_satisfy_the_pins():
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    versions = {
        line.split("==")[0].lower().replace("_", "-"): line.split("==")[1] for line in lines
    }
    for pin in map(Requirement, PINS):
        assert pin.specifier.contains(versions[pin.name]), (
            f"{pin}: constraints.txt has {versions[pin.name]}"
        )


def test_the_package_imports_where_it_only_trains():
    absent = ["datasets", "papermill", "snakemake", "nbconvert", "nbformat", "ipykernel", "IPython"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import stage1.pretrain, stage1.data"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the files that git knows, or would, without any earlier run."""
    copy = tmp_path_factory.mktemp("checkout")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        listing, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file() and not name.startswith("reports/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def start(checkout: Path, *options: str, command: Sequence[str] = SMOKE) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "STAGE1_RUNS"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *options], cwd=checkout, env=environment, **streams)


def finish(checkout: Path, *options: str, command: Sequence[str] = SMOKE) -> str:
    process = start(checkout, *options, command=command)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def running_step(snakemake: subprocess.Popen, executed: Path) -> psutil.Process:
    """The step's own process, once it has begun to execute its notebook."""
    for _ in range(600):
        children = psutil.Process(snakemake.pid).children(recursive=True)
        steps = [child for child in children if child.cmdline()[1:3] == ["-m", "stage1.notebooks"]]
        if steps and executed.exists():
            return steps[0]
        time.sleep(0.1)
    raise AssertionError("the step did not start")


def test_a_killed_step_leaves_nothing_half_written_and_the_next_run_finishes(checkout):
    snakemake = start(checkout, "--", RECORD)
    running_step(snakemake, checkout / "runs/smoke/notebooks/01_data_and_pca.ipynb").send_signal(
        signal.SIGKILL
    )
    output, _ = snakemake.communicate(timeout=120)
    assert snakemake.returncode != 0, output
    assert not (checkout / RECORD).exists() and not (checkout / PAGE).exists()
    finish(checkout, "--", RECORD)
    assert (checkout / RECORD).exists() and (checkout / PAGE).exists()
    written = [path for folder in ("runs", "reports") for path in (checkout / folder).rglob(".*")]
    assert not written, "temporary files are left"


def test_finished_steps_are_not_redone_and_changed_inputs_are(checkout):
    finish(checkout, "--", RECORD)
    assert "Nothing to be done" in finish(checkout, "--dry-run", "--", RECORD)
    for changed in ("stage1/scoring.py", "configs/smoke.yaml", "notebooks/01_data_and_pca.ipynb"):
        text = (checkout / changed).read_text()
        (checkout / changed).write_text(text + "\n")
        assert "data_and_pca" in finish(checkout, "--dry-run", "--", RECORD), changed
        (checkout / changed).write_text(text)
    assert "Nothing to be done" in finish(checkout, "--dry-run", "--", RECORD)


def test_the_report_trains_every_objective_with_every_seed(checkout):
    plan = finish(checkout, "--dry-run")
    for name in OBJECTIVES:
        assert f"runs/smoke/adapters/{name}-seed0/record.json" in plan
    for page in ("index", "03_generation_eval", "04_loss_magnitude", "05_report"):
        assert f"reports/smoke/{page}.html" in plan


def asked_for(plan: str, resource: str) -> dict[str, set[str]]:
    """What the jobs of each rule in a dry run's output ask for of a resource."""
    jobs = re.findall(
        r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", plan, re.MULTILINE
    )
    asked = {}
    for rule, resources in jobs:
        asked.setdefault(rule, set()).update(re.findall(rf"\b{resource}=(\w+)", resources))
    return asked


TRAINING = "notebooks/02_train_adapter.ipynb"
NEEDS_GPU = ("data_and_pca", "train_adapter", "generation_eval", "loss_magnitude")


def test_the_slurm_profile_asks_for_a_gpu_memory_and_time_per_job(checkout):
    command = [
        *SNAKEMAKE,
        "--profile",
        "profiles/slurm",
        "--dry-run",
        "--forceall",
        "--config",
        "preset=smoke",
    ]
    plan = finish(checkout, command=command)
    gpu, memory, minutes = (asked_for(plan, resource) for resource in ("gpu", "mem_mb", "runtime"))
    assert gpu == {rule: {"1"} for rule in NEEDS_GPU} | {
        "report": set(),
        "index": set(),
        "all": set(),
    }
    assert {rule: memory[rule] for rule in NEEDS_GPU} == {rule: {"32000"} for rule in NEEDS_GPU}
    assert memory["report"] == {"8000"} and minutes["train_adapter"] == {"240"}
    together = finish(
        checkout, "processes=2", "--cores", "8", command=command
    )  # a dry run plans one core otherwise
    assert asked_for(together, "gpu")["train_adapter"] == {"2"}
    assert asked_for(together, "gpu")["generation_eval"] == {"1"}
    assert asked_for(together, "mem_mb")["train_adapter"] == {"64000"}


@pytest.mark.parametrize("there, asked", [(0, "0"), (4, "2")])
def test_jobs_ask_for_no_more_gpus_than_one_machine_has(checkout, there, asked):
    plan = finish(checkout, "processes=2", "--resources", f"gpu={there}", "--dry-run")
    assert asked_for(plan, "gpu")["train_adapter"] == {asked}


def test_a_preset_on_the_cpu_asks_for_no_gpu(checkout):
    (checkout / "configs/on_cpu.yaml").write_text("device: cpu\nprocesses: 2\n")
    plan = finish(checkout, "preset=on_cpu", "--dry-run")
    assert {rule: asked_for(plan, "gpu")[rule] for rule in NEEDS_GPU} == {
        rule: {"0"} for rule in NEEDS_GPU
    }


def test_only_the_training_is_told_of_processes(checkout):
    plan = finish(checkout, "processes=2", "--dry-run", "--printshellcmds")
    assert set(re.findall(r"-m stage1.notebooks (\S+) .* -p processes 2$", plan, re.MULTILINE)) == {
        TRAINING
    }
    assert plan.count("-p processes") == len(OBJECTIVES)
    assert "-p processes" not in finish(checkout, "--dry-run", "--printshellcmds")


@pytest.mark.parametrize("given", ["processes=0", "seeds=0"])
def test_a_study_that_cannot_be_stops_the_report(checkout, given):
    process = start(checkout, given)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and f"{given}: expected one or more" in output


def test_make_hands_out_the_gpus_there_are_or_the_cluster(checkout):
    """What `make report` would run; its line asks stage1.gpus for their number."""
    command = ["make", "--dry-run", "--old-file=.venv/made", "report", "PROCESSES=2"]
    here = finish(checkout, command=command)
    assert (
        "--resources gpu=$(.venv/bin/python -m stage1.gpus)" in here
        and "preset=quick processes=2" in here
    )
    cluster = finish(checkout, "PROFILE=profiles/slurm", command=command)
    assert "--profile profiles/slurm" in cluster and "--cores" not in cluster
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    count = [sys.executable, "-m", "stage1.gpus"]
    assert (
        subprocess.run(count, cwd=ROOT, env=environment, capture_output=True, text=True).stdout
        == "0\n"
    )


def test_an_unknown_preset_stops_the_report_with_its_name(checkout):
    process = start(checkout, "preset=quik")
    output, _ = process.communicate(timeout=120)
    assert (
        process.returncode != 0 and "preset='quik'" in output and "did you mean 'quick'?" in output
    )


def test_the_readme_shows_the_records():
    readme = (ROOT / "README.md").read_text()
    assert model_card.score_table(store.read_json(SHIPPED / "training.json")) in readme
    sizes = pd.read_csv(ROOT / "benchmarks/results/language_model_size.csv")
    assert model_card.markdown_table(sizes) in readme


def shown_benchmarks() -> list[str]:
    """What the README shows of the benchmarks at the 8B shape, as tables."""
    step, largest, answers = (
        pd.read_csv(ROOT / f"benchmarks/results/{name}.csv")
        for name in ("train_step", "train_step_largest", "generate")
    )
    step = step[["step", "batch", "passes", "examples_per_s", "peak_GB", "of_matmul_rate"]].astype(
        {"passes": "Int64"}
    )
    step = step.round({"examples_per_s": 1, "peak_GB": 1, "of_matmul_rate": 2}).astype(object)
    largest = largest.drop(columns="card_GB").round({"base_GB": 1, "GB_per_example": 2})
    counts = dict.fromkeys([name for name in largest.columns if name.startswith("largest")], int)
    rates = ["examples_per_s", "times_one_at_a_time", "times_batch_32", "peak_GB"]
    tables = step.where(step.notna(), "out of memory"), largest.astype(counts)
    return [
        model_card.markdown_table(table)
        for table in (*tables, answers[["path", "batch", "questions", *rates]].round(1))
    ]


def test_the_readme_shows_the_benchmarks_at_the_8b_shape():
    readme = (ROOT / "README.md").read_text()
    for table in shown_benchmarks():
        assert table in readme
    words = " ".join(readme.split())
    step = pd.read_csv(ROOT / "benchmarks/results/train_step.csv").dropna(subset="examples_per_s")
    rate = step.set_index(["step", "batch"])["examples_per_s"]
    found = rate["as found"].iloc[-1]
    for name, text in (
        ("packed, compiled", "At batch 64 a step is {:.2f} times"),
        ("packed, compiled, fp8", "and {:.2f} times"),
    ):
        assert text.format(rate[name, 64] / found) in words
    error = pd.read_csv(ROOT / "benchmarks/results/train_step_agreement.csv", index_col="path")[
        "gradient_error"
    ]
    assert f"relative error against float32 is then {error['packed, compiled, fp8']:.2f}" in words
    assert (
        f"has {error['packed, compiled']:.3f} packed and {error['padded rows']:.3f} in padded rows"
        in words
    )
    option1 = pd.read_csv(ROOT / "benchmarks/results/option1.csv", index_col=["path", "precision"])
    counts = option1.loc["from counts"]
    assert f"10,000 prompts train in {counts.loc['tf32', 'seconds']:.1f} s" in words
    assert f"{counts.loc['float32', 'times_per_prompt']:.1f} times as fast" in words
    assert f"within {100 * counts['fvu_difference'].abs().max():.1f} %" in words


def test_the_readme_shows_the_gpu_records():
    readme = (ROOT / "README.md").read_text()
    words = " ".join(readme.split())
    e = evidence.load(load_preset("full"))
    assert model_card.markdown_table(e.headline) in readme
    assert (
        model_card.markdown_table(results.headline(results.budget_table(e.runs, e.untrained)))
        in readme
    )
    assert model_card.markdown_table(e.padding) in readme
    for sentence in decision.answer(e):
        assert sentence in words
    plain = e.untrained.set_index("condition")["f1"]
    assert (
        f"Original embeddings {plain['embeddings']:.1f}, lookup {plain['codebook']:.1f}, PCA inverse without an "
        f"adapter {plain['pca_inverse']:.1f}, question without context {plain['question_only']:.1f}"
        in words
    )
    small = e.sizes[e.sizes["train_examples"] == 640].groupby(results.ADAPTER)["f1"].mean()
    assert f"nothing passes {small.max():.0f} (`records/full/runs_640x2.csv`)" in words
    for text, factor, first, second in (
        ("PCA inverse instead of a random start", "initialisation", "pca_inverse", "random"),
        ("calibrated instead of unit RMS output", "output_scaling", "calibrated", "unit_rms"),
        ("gold instead of generated answers", "objective", "distill", "option2_on_policy"),
    ):
        assert f"{text} {e.factor(factor, first, second)}" in words


def test_the_headline_follows_from_the_committed_scores_of_every_answer():
    """The table of README and report once more, from the scores of the answers, without the package."""
    e = evidence.load(load_preset("full"))
    scores = pd.read_parquet(ROOT / "records/full/runs_10000x3.parquet")
    chosen = scores[
        (scores["initialisation"] == "pca_inverse") & (scores["output_scaling"] == "calibrated")
    ]
    seeds = chosen.groupby(["objective", "seed"], observed=True)["f1"].mean().unstack()
    table = e.table.set_index("objective")
    for objective, row in seeds.iterrows():
        assert table.loc[objective, "f1"] == pytest.approx(row.mean(), abs=1e-3)
        assert table.loc[objective, "f1_sd"] == pytest.approx(row.std(), abs=1e-3)
        assert table.loc[objective, "f1_low"] < row.mean() < table.loc[objective, "f1_high"]
    untrained = pd.read_csv(ROOT / "records/full/untrained.csv", index_col="condition")["f1"]
    floor = untrained[["question_only", "shuffled_context"]].max()
    expected = 100 * (table["f1"] - floor) / (untrained["embeddings"] - floor)
    assert table["retention"].to_dict() == pytest.approx(expected.to_dict())


def test_the_weight_of_the_reconstruction_term_is_what_the_readme_says_of_it():
    e = evidence.load(load_preset("full"))
    share = e.step_shares.set_index(["objective", "initialisation", "output_scaling", "term"])[
        "step_share"
    ]
    assert share["option3_teacher_forced", "pca_inverse", "calibrated", "reconstruction"] < 0.01
    random = e.weight_table[e.weight_table["initialisation"] == "random"]
    assert random.loc[random["reconstruction_weight"] <= 1, "f1"].max() < 4
    assert random.loc[random["reconstruction_weight"] >= 1_000, "f1"].min() > 18


def test_both_things_that_padding_does_are_harmful():
    f1 = pd.read_csv(ROOT / "benchmarks/results/as_found_padding.csv", index_col="objective")["f1"]
    assert f1["as_found"] + 20 < min(f1["no_labels_on_padding"], f1["no_gap"])
    assert max(f1["no_labels_on_padding"], f1["no_gap"]) + 20 < f1["no_padding"]


def test_the_figures_are_drawn_from_the_committed_records():
    e = evidence.load(load_preset("full"))
    drawn = pd.read_csv(ROOT / "figures/answer.csv")
    assert drawn["objective"].tolist() == e.table["objective"].tolist()
    for column in ("f1", "f1_low", "f1_high"):
        assert drawn[column].tolist() == pytest.approx(e.table[column].tolist(), rel=1e-4)
    for csv in (ROOT / "figures").glob("*.csv"):
        assert csv.with_suffix(".svg").exists() and csv.with_suffix(".png").exists()


def test_the_model_card_is_the_one_its_records_give(tmp_path):
    for name in ("training.json", "training_curve.csv"):
        shutil.copy(SHIPPED / name, tmp_path)
    assert model_card.write_card(tmp_path).read_text() == (SHIPPED / "README.md").read_text()
