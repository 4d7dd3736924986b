"""Pins, licence and version agree; the package imports where it only trains."""

import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

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
    code += "; import stage1.pretrain.train, stage1.corpus.data, stage1.study"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
