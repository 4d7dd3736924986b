"""Files from elsewhere are data: reading one runs no code."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.study import sweep


class Touch:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(tmp_path):
    checkpoint, made = tmp_path / "checkpoint.pt", tmp_path / "made"
    state = {"config": store.identity(StudyConfig()), "step": Touch(made)}
    torch.save(state, checkpoint)
    with pytest.raises(store.RecordError, match=r"checkpoint\.pt"):
        store.read_checkpoint(checkpoint, StudyConfig())
    assert not made.exists()
    torch.load(checkpoint, weights_only=False)
    assert made.exists()  # so the file does run code where it may


@pytest.mark.parametrize("tag", ["python/tuple [a]", "python/name:builtins.print"])
def test_a_preset_makes_no_python_objects(tmp_path, tag):
    path = tmp_path / "odd.yaml"
    path.write_text(f"data: !!{tag}\n")
    with pytest.raises(ValueError, match=r"odd\.yaml: not YAML"):
        load_preset(str(path))


def test_a_value_of_a_sweep_makes_no_python_objects(tmp_path, monkeypatch):
    arguments = ["sweep", "runs", "smoke", str(tmp_path / "out.csv"), "--vary", "data"]
    monkeypatch.setattr(sys, "argv", [*arguments, "!!python/name:builtins.print"])
    with pytest.raises(yaml.YAMLError):
        sweep.main()
