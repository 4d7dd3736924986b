"""Records: where they go, that they are whole, and that they say where they come from."""

import json

import pandas as pd
import pytest
import torch

from stage1 import store
from stage1.config import CRITERIA, StudyConfig, load_preset


@pytest.fixture
def smoke() -> StudyConfig:
    return load_preset("smoke")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("accident", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, accident):
    path = tmp_path / "record.json"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half of the n")
        raise accident

    with pytest.raises(accident):
        store.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_successful_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "folder" / "record.json"
    store.write_json(path, {"old": 1})
    store.write_json(path, {"name": "Übersee"})
    assert store.read_json(path) == {"name": "Übersee"}
    assert list(path.parent.iterdir()) == [path]


def test_a_table_is_read_back_unchanged(tmp_path):
    table = pd.DataFrame({"id": ["a", "b"], "golds": [["x"], ["y", "z"]], "f1": [0.5, 1.0]})
    back = store.read_table(store.write_table(tmp_path / "table.parquet", table))
    back["golds"] = back["golds"].map(list)
    pd.testing.assert_frame_equal(back, table)


@pytest.mark.parametrize(
    "read, name", [(store.read_json, "a.json"), (store.read_table, "a.parquet")]
)
def test_a_missing_record_is_named(tmp_path, read, name):
    with pytest.raises(store.RecordError, match=f"{name}: no such record"):
        read(tmp_path / name)


@pytest.mark.parametrize("kept", [0, 5, 20])
def test_a_truncated_json_record_is_named(tmp_path, kept):
    path = store.write_json(tmp_path / "cut.json", {"name": "Großbü", "n": 1})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(store.RecordError, match=r"cut\.json: truncated"):
        store.read_json(path)


def test_a_json_record_cut_within_a_character_is_named(tmp_path):
    path = tmp_path / "cut.json"
    path.write_bytes('{"name": "ü'.encode()[:-1])
    with pytest.raises(store.RecordError, match=r"cut\.json: truncated"):
        store.read_json(path)


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_truncated_table_is_named(tmp_path, share):
    path = store.write_table(tmp_path / "cut.parquet", pd.DataFrame({"x": range(1000)}))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(store.RecordError, match=r"cut\.parquet: truncated"):
        store.read_table(path)


# ---------------------------------------------------------------- folders


def test_a_preset_has_a_folder_of_its_own_name(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    assert store.run_folder(smoke) == tmp_path / "smoke"
    assert store.run_name(smoke.replace(train_examples=smoke.train_examples)) == "smoke"


def test_each_change_has_a_folder_of_its_own(smoke):
    changes = [
        {}, {"data_seed": 1}, {"data_seed": 2}, {"threads": 1}, {"data_seed": 1, "threads": 1},
        {"learning_rate": 1.0e-3}, {"initialisation": "random"}, {"epochs": 7}, {"preset": "quick"},
    ]  # fmt: skip
    names = [store.run_name(smoke.replace(**change)) for change in changes]
    assert len(set(names)) == len(names)
    assert names == [store.run_name(smoke.replace(**change)) for change in changes]
    assert all(name.startswith("smoke-") for name in names[1:-1])


NO_EFFECT = {"seeds": 9, "processes": 2, "checkpoint_every": 0, "micro_batch_size": 4}
NO_EFFECT |= dict(zip(CRITERIA, (99.0, 69.0, 66.0, 40.0), strict=True), equivalence_margin=5.0)


@pytest.mark.parametrize("changed", [{}, {"epochs": 7}])
@pytest.mark.parametrize(
    "field, value", [*NO_EFFECT.items(), ("objective", "distill"), ("seed", 4)]
)
def test_what_does_not_separate_studies_is_not_in_their_name(smoke, changed, field, value):
    study = smoke.replace(**changed)
    other = study.replace(**{field: value})
    assert other != study and store.run_name(other) == store.run_name(study)
    assert (store.identity(other) == store.identity(study)) == (field in NO_EFFECT)


@pytest.mark.parametrize(
    "change",
    [
        {"reconstruction_term": "fvu"},
        {"balancing": "uncertainty"},
        {"gradients_every": 5},
        {"objective": "x"},
    ],
)
def test_what_a_training_does_or_records_is_part_of_its_identity(smoke, change):
    changed = store.identity(smoke.replace(**change))
    assert changed == store.identity(smoke) | change != store.identity(smoke)


def test_every_other_field_is_in_the_name(smoke):
    others = {
        "temperature": 1.5, "gold_fraction": 0.75, "ce_weight": 3.0, "reconstruction_weight": 3.0,
        "warmup": 0.75, "selection_every": 77, "max_grad_norm": 7.0, "weight_decay": 0.75,
        "batch_size": 7, "train_examples": 77, "selection_examples": 77, "test_examples": 77,
        "device": "cuda", "dtype": "bfloat16", "eval_batch_size": 7, "reconstruction_term": "fvu",
        "balancing": "uncertainty", "gradients_every": 7, "padding_layout": "no_gap",
    }  # fmt: skip
    names = {store.run_name(smoke.replace(**{field: value})) for field, value in others.items()}
    assert len(names) == len(others) and all(name.startswith("smoke-") for name in names)


def test_each_adapter_of_a_study_has_a_folder_of_its_own_in_it(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    smoke = smoke.replace(objective="distill", seed=3)
    assert store.adapter_folder(smoke) == tmp_path / "smoke" / "adapters" / "distill-seed3"
    both = {"objective": "as_found", "seed": 1}
    changes = [{}, {"objective": "as_found"}, {"seed": 1}, both, {"learning_rate": 0.1}]
    folders = {store.adapter_folder(smoke.replace(**change)) for change in changes}
    assert len(folders) == len(changes)


def test_a_file_with_the_name_of_a_preset_does_not_get_its_folder(tmp_path):
    (tmp_path / "smoke.yaml").write_text("data_seed: 9\n")
    assert store.run_name(load_preset(str(tmp_path / "smoke.yaml"))) != "smoke"


def test_two_files_of_one_name_do_not_share_a_folder(tmp_path):
    names = set()
    for seed in (1, 2):
        (tmp_path / "mine.yaml").write_text(f"data_seed: {seed}\n")
        names.add(store.run_name(load_preset(str(tmp_path / "mine.yaml"))))
    assert len(names) == 2


# ---------------------------------------------------------------- provenance


def test_a_record_is_plain_json_with_results_config_and_provenance(tmp_path):
    config = StudyConfig(seed=3)
    path = store.write_record(tmp_path / "record.json", config, {"f1": 12.5, "name": "Łódź"})
    record = json.loads(path.read_bytes())
    assert record == store.read_json(path) and record["results"] == {"f1": 12.5, "name": "Łódź"}
    assert StudyConfig(**record["config"]) == config
    assert record["provenance"]["versions"]["torch"] == torch.__version__
    assert {"commit", "modified", "python", "device"} <= set(record["provenance"])


def test_a_benchmarks_results_say_where_they_come_from(monkeypatch):
    table = pd.DataFrame({"seconds": [1.0, 2.0]})
    monkeypatch.setattr("sys.argv", [str(store.ROOT / "benchmarks/pca.py"), "--large", "two words"])
    traced = store.traced(table)
    assert list(traced) == ["seconds", "machine", "versions", "date", "command"]
    assert list(table) == ["seconds"]
    assert set(traced["command"]) == {"python benchmarks/pca.py --large 'two words'"}
    assert f"torch {torch.__version__}" in traced["versions"][0]
    monkeypatch.setattr("sys.argv", ["/elsewhere/program.py"])  # the folder means nothing elsewhere
    assert store.traced(table)["command"][0] == "python program.py"


def test_provenance_needs_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert store.provenance()["commit"] == ""


def test_a_report_with_other_criteria_has_a_record_of_its_own():
    quick = load_preset("quick")
    assert store.report_path(quick, "05_report") == store.run_folder(quick) / "05_report.json"
    stricter = store.report_path(quick.replace(target_f1=75.0), "05_report")
    assert stricter.parent == store.run_folder(quick) and stricter.name != "05_report.json"
    assert stricter != store.report_path(quick.replace(equivalence_margin=0.5), "05_report")
