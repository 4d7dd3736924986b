"""The project's own promises: pins agree, the package imports where it only trains, the DAG resumes after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from packaging.requirements import Requirement

from stage1 import model_card, results, store
from stage1.language_model import SHIPPED
from stage1.objectives import OBJECTIVES

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
SNAKEMAKE = ["--cores", "1", "--nolock", "--rerun-incomplete", "--config", "preset=smoke"]
RECORD = "runs/smoke/01_data_and_pca.json"
PAGE = "reports/smoke/01_data_and_pca.html"


def test_environment_yml_repeats_the_pins_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert sorted(pip) == sorted(PINS)


def test_constraints_satisfy_the_pins():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    versions = {line.split("==")[0].lower().replace("_", "-"): line.split("==")[1] for line in lines}
    for pin in map(Requirement, PINS):
        assert pin.specifier.contains(versions[pin.name]), f"{pin}: constraints.txt has {versions[pin.name]}"


def test_the_package_imports_where_it_only_trains():
    absent = ["datasets", "papermill", "snakemake", "nbconvert", "nbformat", "ipykernel", "IPython"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import stage1.pretrain, stage1.data"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the files that git knows, or would, without any earlier run."""
    copy = tmp_path_factory.mktemp("checkout")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file() and not name.startswith("reports/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def start(checkout: Path, *options: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "STAGE1_RUNS"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = [sys.executable, "-m", "snakemake", *SNAKEMAKE, *options]
    return subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(checkout: Path, *options: str) -> str:
    process = start(checkout, *options)
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
    running_step(snakemake, checkout / "runs/smoke/notebooks/01_data_and_pca.ipynb").send_signal(signal.SIGKILL)
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
    assert "reports/smoke/03_generation_eval.html" in plan


def test_an_unknown_preset_stops_the_report_with_its_name(checkout):
    process = start(checkout, "preset=quik")
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "preset='quik'" in output and "did you mean 'quick'?" in output


def test_the_readme_shows_the_records():
    readme = (ROOT / "README.md").read_text()
    assert model_card.score_table(store.read_json(SHIPPED / "training.json")) in readme
    sizes = pd.read_csv(ROOT / "benchmarks/results/language_model_size.csv")
    assert model_card.markdown_table(sizes) in readme


def test_the_readme_shows_the_gpu_records():
    readme = (ROOT / "README.md").read_text()
    words = " ".join(readme.split())
    full, untrained = (results.committed("full", name) for name in ("runs_10000x3.csv", "untrained.csv"))
    table = results.budget_table(full, untrained)
    assert model_card.markdown_table(results.headline(table)) in readme
    best, plain = table.loc[table["f1"].idxmax()], untrained.set_index("condition")["f1"]
    assert f"reaches F1 {best['f1']:.1f} of the {plain['embeddings']:.1f} that" in words
    assert best["initialisation"] == "pca_inverse" and best["objective"] == "distill"
    random = table[(table["initialisation"] == "random") & (table["objective"] != "option1_reconstruction")]
    assert random["f1"].max() < 16
    assert (
        f"Original embeddings {plain['embeddings']:.1f}, lookup {plain['codebook']:.1f}, PCA inverse without an "
        f"adapter {plain['pca_inverse']:.1f}, question without context {plain['question_only']:.1f}" in words
    )
    assert results.committed("full", "runs_640x2.csv").groupby(results.ADAPTER)["f1"].mean().max() < 13
    same = full[(full[results.ADAPTER] == best[results.ADAPTER].tolist()).all(axis=1)]
    assert f"`distill` reaches {same['selection_f1'].mean():.1f}." in words


def test_the_readme_shows_what_padding_does_to_the_objective_as_found():
    table = pd.read_csv(ROOT / "benchmarks/results/as_found_padding.csv")
    assert model_card.markdown_table(table) in (ROOT / "README.md").read_text()
    without = table.set_index("objective").loc["without_padding"]
    assert 60 < without["f1"] < results.committed("full", "runs_10000x3.csv")["f1"].max()


def test_the_readme_shows_what_the_factors_are_worth():
    words = " ".join((ROOT / "README.md").read_text().split())
    scores = results.committed("full", "runs_10000x3.parquet")
    pair = scores[scores["objective"].isin(["distill", "option2_on_policy"])]
    for text, factor, first, second in (
        ("PCA inverse instead of a random start", "initialisation", "pca_inverse", "random"),
        ("calibrated instead of unit RMS output", "output_scaling", "calibrated", "unit_rms"),
        ("teacher-forced instead of on-policy", "objective", "distill", "option2_on_policy"),
    ):
        assert f"{text} {results.contrast(pair, factor, first, second)}" in words


def test_the_model_card_is_the_one_its_records_give(tmp_path):
    for name in ("training.json", "training_curve.csv"):
        shutil.copy(SHIPPED / name, tmp_path)
    assert model_card.write_card(tmp_path).read_text() == (SHIPPED / "README.md").read_text()
