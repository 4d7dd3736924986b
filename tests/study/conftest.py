"""A tiny study that is prepared, and one of its adapters trained, once for all tests."""

import shutil
from pathlib import Path

import pytest

from stage1 import store, study
from stage1.config import StudyConfig
from stage1.study import Study


@pytest.fixture(scope="session")
def config(tiny_config) -> StudyConfig:
    sizes = {"train_examples": 24, "selection_examples": 6, "epochs": 2, "max_new_tokens": 3}
    return tiny_config.replace(**sizes, selection_every=4, checkpoint_every=2)


@pytest.fixture(scope="session")
def prepared(config) -> Study:
    return study.prepare(config)


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch) -> Path:
    """An empty runs folder for each test: a training resumes any checkpoint that it finds."""
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def made_once(config, prepared, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGE1_RUNS", str(tmp_path_factory.mktemp("finished")))
        return study.run(config, prepared).parent


@pytest.fixture
def finished(config, made_once, runs_folder) -> Path:
    """The record of a finished run, in a runs folder of its own."""
    return shutil.copytree(made_once, store.adapter_folder(config)) / "record.json"
