"""Pins, licence and version agree; the package imports where it only trains."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from stage1.config import presets
from stage1.store import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = sorted({*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["lab"]})


def test_environment_yml_repeats_the_pins_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert sorted(pip) == PINS


def test_constraints_satisfy_the_pins():
    versions = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            versions[name.lower().replace("_", "-")] = version
    for pin in map(Requirement, PINS):
        assert pin.specifier.contains(versions[pin.name]), f"{pin}: found {versions[pin.name]}"


def test_licence_citation_and_changelog_agree_with_pyproject():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert citation["version"] == PROJECT["version"]
    assert f"\n## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    assert (
        "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    )


def test_every_hook_runs_a_tool_of_the_environment():
    """Hooks need no network: each is local and starts a program of `.venv`."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system" and hook["entry"].startswith(".venv/bin/"), hook["id"]


@pytest.mark.slow
def test_the_package_imports_where_it_only_trains():
    absent = ["datasets", "papermill", "snakemake", "nbconvert", "nbformat", "ipykernel", "IPython"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent}))"
    code += (
        "; import stage1.pretrain.train, stage1.corpus.data, stage1.study, stage1.pretrain.reader"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


USE = """
import json, stage1
from stage1 import store
from stage1.ask.folders import committed_folders
from stage1.config import load_preset, presets
from stage1.report import evidence
runs = len(evidence.load(load_preset("full")).runs)
reader = stage1.load("quick", device="cpu")
answer = reader.ask("The mayor of Brell is Ada Bell.", "Who is the mayor?", adapter="distill")
found = {"file": stage1.__file__, "presets": presets(), "runs": runs, "text": answer.answer,
    "adapters": list(committed_folders()), "commit": store.provenance()["commit"]}
print(json.dumps(found))
"""


def built(checkout: Path, folder: Path) -> Path:
    """Return the wheel of the checkout, built without the network."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--no-index", "--wheel-dir", folder, checkout], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(checkout, tmp_path_factory) -> Path:
    """Return the Python of a fresh environment with the wheel and the libraries of this one."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python, (packages,) = folder / "bin/python", folder.glob("lib/*/site-packages")
    # Its own .pth files are not followed, so an editable installation there is not seen.
    (packages / "libraries.pth").write_text(str(Path(pytest.__file__).parent.parent))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", built(checkout, folder)], check=True)
    return python


@pytest.fixture
def outside(installed, tmp_path):
    """Return a function that runs the installed package in an empty folder."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("STAGE1_", "PYTHON"))}

    def outside(*arguments: str) -> str:
        command = [installed, *arguments]
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run(command, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return outside


@pytest.mark.slow
def test_the_wheel_holds_every_module_preset_record_and_asset(installed):
    (inside,) = installed.parent.parent.glob("lib/*/site-packages/stage1")
    for folder, source in {
        ".": "stage1",
        "presets": "configs",
        "records": "records",
        "benchmarks": "benchmarks/results",
    }.items():
        tracked = ["git", "ls-files", "."]
        names = subprocess.run(tracked, cwd=ROOT / source, capture_output=True, text=True).stdout
        assert (
            names and [n for n in names.splitlines() if not (inside / folder / n).is_file()] == []
        )


@pytest.mark.slow
def test_the_installed_package_works_outside_its_checkout(outside, installed, tmp_path):
    found = json.loads(outside("-c", USE).splitlines()[-1])
    assert found["file"].startswith(str(installed.parent.parent)), "this is another installation"
    assert found["presets"] == presets() and found["runs"] > 0 and found["text"]
    assert "full/distill-seed0" in found["adapters"] and found["commit"] == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_installed_package_trains_and_writes_where_it_is_started(outside, tmp_path):
    (tmp_path / "my.yaml").write_text("device: cpu\ntrain_examples: 8\nwarmup_steps: 2\n")
    vary = ["--vary", "objective", "option1_reconstruction", "--vary", "test_examples", "4"]
    vary += ["--vary", "selection_examples", "4", "--vary", "epochs", "1", "--processes", "1"]
    outside("-m", "stage1.study.sweep", "trials", "my.yaml", "out.csv", *vary)
    assert (tmp_path / "out.csv").is_file()
