"""Records: where they go, that they are whole, and that they say where they come from."""

import json

import pandas as pd
import pytest
import torch

from stage1 import store
from stage1.config import StudyConfig, load_preset


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


def test_a_table_comes_back_as_it_was(tmp_path):
    table = pd.DataFrame({"id": ["a", "b"], "golds": [["x"], ["y", "z"]], "f1": [0.5, 1.0]})
    back = store.read_table(store.write_table(tmp_path / "table.parquet", table))
    back["golds"] = back["golds"].map(list)
    pd.testing.assert_frame_equal(back, table)


@pytest.mark.parametrize(
    "read, name", [(store.read_json, "a.json"), (store.read_table, "a.parquet")]
)
def test_a_missing_record_is_named(tmp_path, read, name):
    with pytest.raises(store.RecordError, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("kept", [0, 5, 20, 27])
def test_a_truncated_json_record_is_named(tmp_path, kept):
    path = store.write_json(tmp_path / "cut.json", {"name": "Großbü", "n": 1})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(store.RecordError, match=r"cut\.json"):
        store.read_json(path)


def test_a_json_record_cut_within_a_character_is_named(tmp_path):
    path = tmp_path / "cut.json"
    path.write_bytes('{"name": "ü'.encode()[:-1])
    with pytest.raises(store.RecordError, match=r"cut\.json"):
        store.read_json(path)


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_truncated_table_is_named(tmp_path, share):
    path = store.write_table(tmp_path / "cut.parquet", pd.DataFrame({"x": range(1000)}))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(store.RecordError, match=r"cut\.parquet"):
        store.read_table(path)


def test_a_presets_own_values_go_to_its_own_folder():
    smoke = load_preset("smoke")
    assert store.run_name(smoke) == "smoke"
    assert store.run_name(smoke.replace(train_examples=smoke.train_examples)) == "smoke"


def test_each_change_has_a_folder_of_its_own():
    smoke = load_preset("smoke")
    changes = [
        {}, {"data_seed": 1}, {"data_seed": 2}, {"threads": 1}, {"data_seed": 1, "threads": 1},
        {"learning_rate": 1.0e-3}, {"initialisation": "random"}, {"epochs": 7}, {"preset": "quick"},
    ]  # fmt: skip
    names = [store.run_name(smoke.replace(**change)) for change in changes]
    assert len(set(names)) == len(names)
    assert names == [store.run_name(smoke.replace(**change)) for change in changes]
    assert all(name.startswith("smoke-") for name in names[1:-1])


@pytest.mark.parametrize("changed", [{}, {"epochs": 7}])
def test_the_adapters_of_a_study_share_its_folder(changed):
    study = load_preset("smoke").replace(**changed)
    for change in ({"objective": "distill"}, {"seed": 4}, {"objective": "as_found", "seed": 9}):
        assert store.run_name(study.replace(**change)) == store.run_name(study)


@pytest.mark.parametrize("changed", [{}, {"epochs": 7}])
@pytest.mark.parametrize(
    "change",
    [
        {"objective": "distill"},
        {"seed": 4},
        {"seeds": 9},
        {"processes": 2},
        {"checkpoint_every": 0},
    ],
)
def test_what_changes_no_result_of_the_study_is_not_in_its_name(changed, change):
    study = load_preset("smoke").replace(**changed)
    ((field, value),) = change.items()
    assert getattr(study, field) != value and store.run_name(
        study.replace(**change)
    ) == store.run_name(study)


CRITERIA = {
    "baseline_f1": 99.0,
    "target_f1": 69.0,
    "script_f1": 66.0,
    "failure_f1": 40.0,
    "equivalence_margin": 5.0,
}


@pytest.mark.parametrize("field", CRITERIA)
def test_what_results_are_held_against_changes_neither_their_name_nor_their_identity(field):
    smoke = load_preset("smoke")
    held = smoke.replace(**{field: CRITERIA[field]})
    assert held != smoke
    assert store.run_name(held) == store.run_name(smoke) and store.identity(held) == store.identity(
        smoke
    )


@pytest.mark.parametrize(
    "change",
    [
        {"reconstruction_term": "fvu"},
        {"balancing": "uncertainty"},
        {"gradients_every": 5},
        {"objective": "x"},
    ],
)
def test_what_a_training_does_or_records_is_part_of_its_identity(change):
    smoke = load_preset("smoke")
    assert (
        store.identity(smoke.replace(**change))
        == store.identity(smoke) | change
        != store.identity(smoke)
    )


def test_every_other_field_is_in_the_name():
    smoke = load_preset("smoke")
    others = {
        "temperature": 1.5, "gold_fraction": 0.75, "ce_weight": 3.0, "reconstruction_weight": 3.0, "warmup": 0.75,
        "selection_every": 77, "max_grad_norm": 7.0, "weight_decay": 0.75, "batch_size": 7, "train_examples": 77,
        "selection_examples": 77, "test_examples": 77, "device": "cuda", "dtype": "bfloat16", "eval_batch_size": 7,
        "reconstruction_term": "fvu", "balancing": "uncertainty", "gradients_every": 7,
    }  # fmt: skip
    names = {store.run_name(smoke.replace(**{field: value})) for field, value in others.items()}
    assert len(names) == len(others) and all(name.startswith("smoke-") for name in names)


def test_each_adapter_of_a_study_has_a_folder_of_its_own_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    smoke = load_preset("smoke").replace(objective="distill", seed=3)
    assert store.adapter_folder(smoke) == tmp_path / "smoke" / "adapters" / "distill-seed3"
    changes = [
        {},
        {"objective": "as_found"},
        {"seed": 1},
        {"objective": "as_found", "seed": 1},
        {"learning_rate": 0.1},
    ]
    assert len({store.adapter_folder(smoke.replace(**change)) for change in changes}) == len(
        changes
    )


def test_a_file_that_has_the_name_of_a_preset_does_not_get_its_folder(tmp_path):
    (tmp_path / "smoke.yaml").write_text("data_seed: 9\n")
    assert store.run_name(load_preset(str(tmp_path / "smoke.yaml"))) != "smoke"


def test_two_files_of_one_name_do_not_share_a_folder(tmp_path):
    names = set()
    for seed in (1, 2):
        (tmp_path / "mine.yaml").write_text(f"data_seed: {seed}\n")
        names.add(store.run_name(load_preset(str(tmp_path / "mine.yaml"))))
    assert len(names) == 2


def test_the_runs_folder_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    assert store.run_folder(load_preset("smoke")) == tmp_path / "smoke"


def test_a_record_holds_results_config_and_provenance(tmp_path):
    config = StudyConfig(seed=3)
    record = store.read_json(store.write_record(tmp_path / "record.json", config, {"f1": 12.5}))
    assert record["results"] == {"f1": 12.5}
    assert StudyConfig(**record["config"]) == config
    assert record["provenance"]["versions"]["torch"] == torch.__version__
    assert {"commit", "modified", "python", "device"} <= set(record["provenance"])


def test_a_benchmarks_results_say_where_they_come_from(monkeypatch):
    table = pd.DataFrame({"seconds": [1.0, 2.0]})
    monkeypatch.setattr("sys.argv", [str(store.ROOT / "benchmarks/pca.py"), "--large", "two words"])
    traced = store.traced(table)
    assert list(traced) == ["seconds", "machine", "versions", "date", "command"] and list(
        table
    ) == ["seconds"]
    assert set(traced["command"]) == {"python benchmarks/pca.py --large 'two words'"}
    assert f"torch {torch.__version__}" in traced["versions"][0]
    monkeypatch.setattr("sys.argv", ["/elsewhere/program.py"])
    assert (
        store.traced(table)["command"][0] == "python program.py"
    )  # a folder of somebody's machine says nothing


def test_provenance_needs_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert store.provenance()["commit"] == ""


def test_a_record_is_plain_json(tmp_path):
    path = store.write_record(tmp_path / "record.json", StudyConfig(), {"name": "Łódź"})
    assert json.loads(path.read_bytes())["results"] == {"name": "Łódź"}
