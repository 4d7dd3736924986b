"""Adapters of a study: trained, tested, recorded, resumed, and taken from committed records."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stage1 import adapter as adapters
from stage1 import store, study
from stage1.config import StudyConfig
from stage1.corpus.prompts import token_counts
from stage1.evaluation import evaluate, reconstruction
from stage1.model.language_model import FrozenError
from stage1.study import prepare, run, runs
from stage1.training import loop
from stage1.training.loop import Progress

SCORES = ["f1", "em", "ended", "ce_first", "ce_later", "right_first", "right_later"]
UNTRAINED = ["text", "embeddings", "pca_inverse", "codebook", "random_projection"]


def stripped(path: Path) -> dict:
    """The results of a record that do not depend on the clock."""
    results = store.read_json(path)["results"]
    return {name: value for name, value in results.items() if name != "seconds"}


def tables_of(path: Path) -> list[pd.DataFrame]:
    names = ("curve", "selection", "answers")
    return [store.read_table(path.parent / f"{name}.parquet") for name in names]


def raiser(error):
    """A function that raises the error, whatever it is given."""

    def function(*arguments, **named):
        raise error

    return function


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(loop, "take_step", lambda *arguments: pytest.fail("trained again"))


# ---------------------------------------------------------------- untrained conditions


def test_untrained_conditions_and_floors_are_tested_on_the_test_questions(prepared):
    answers, rebuilt = study.test_untrained(prepared)
    conditions = answers["condition"].unique().tolist()
    assert conditions == [*UNTRAINED, "question_only", "shuffled_context"]
    for _, group in answers.groupby("condition"):
        assert group["id"].tolist() == prepared.encoded["test"].ids
    assert list(rebuilt) == UNTRAINED[1:]  # token ids and floors rebuild nothing
    embeddings, table = rebuilt["embeddings"], prepared.lm.embedding_table
    assert embeddings["mse"] == 0 and embeddings["nearest_right"] == pytest.approx(1)
    assert 0 < rebuilt["pca_inverse"]["mse"] < rebuilt["random_projection"]["mse"]
    tables, counts = prepared.untrained(), prepared.test_counts()
    expected = reconstruction(table, tables["pca_inverse"], counts)
    np.testing.assert_equal(rebuilt["pca_inverse"], expected)
    test, config = prepared.encoded["test"], prepared.config
    alone = evaluate(prepared.lm, test, "codebook", tables["codebook"], config)
    of_codebook = answers[answers["condition"] == "codebook"]
    pd.testing.assert_frame_equal(of_codebook, alone, check_exact=True)


# ---------------------------------------------------------------- training and selection


def test_training_is_evaluated_on_the_selection_split(prepared):
    adapter, progress = study.train_adapter(prepared)
    assert [row["step"] for row in progress.selection] == [0, 4, 6]
    assert all(list(row) == ["step", *SCORES] for row in progress.selection)
    assert {"step": 6} | study.selection_scores(prepared, adapter) == progress.selection[-1]
    encoded = prepared.encoded["selection"]
    table = adapters.decode(adapter, prepared.codebook)
    scored = evaluate(prepared.lm, encoded, "selection", table, prepared.config, "")
    assert progress.selection[-1]["ce_first"] == scored["ce_first"].mean()
    assert scored["id"].tolist() == encoded.ids


def test_without_selection_examples_nothing_is_evaluated_in_training(config, prepared):
    encoded = prepared.encoded | {"selection": prepared.encoded["selection"].first(0)}
    short = replace(prepared, encoded=encoded, config=config.replace(epochs=1))
    _, progress = study.train_adapter(short)
    assert progress.selection == [{"step": 0}, {"step": 3}]


def test_a_training_resumes_the_checkpoint_in_its_folder(
    config, prepared, runs_folder, monkeypatch
):
    _, progress = study.train_adapter(prepared)
    folder = store.adapter_folder(config)
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"]
    assert runs_folder in folder.parents
    monkeypatch.setattr(loop, "take_step", lambda *arguments: pytest.fail("trained again"))
    assert study.train_adapter(prepared)[1] == progress


def test_without_checkpoints_a_training_leaves_nothing(config, prepared, runs_folder):
    study.train_adapter(replace(prepared, config=config.replace(checkpoint_every=0)))
    assert not runs_folder.exists()


def test_a_checkpoint_of_another_adapter_is_refused(config, prepared):
    study.train_adapter(prepared)
    other = config.replace(seed=1)
    path = store.adapter_folder(other) / "checkpoint.pt"
    path.parent.mkdir()
    path.write_bytes((store.adapter_folder(config) / "checkpoint.pt").read_bytes())
    message = r"seed1/checkpoint\.pt: is no checkpoint of this config"
    with pytest.raises(store.RecordError, match=message):
        study.train_adapter(replace(prepared, config=other))


def test_a_checkpoint_is_deleted_only_after_the_record_is_written(config, prepared, monkeypatch):
    adapter, progress = study.train_adapter(prepared)
    tested = study.test_adapter(prepared, adapter)
    checkpoint = store.adapter_folder(config) / "checkpoint.pt"
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(store, "write_record", raiser(OSError))
        study.write_adapter(prepared, adapter, progress, *tested)
    assert checkpoint.exists()
    path = study.write_adapter(prepared, adapter, progress, *tested)
    assert path.exists() and not checkpoint.exists()


def test_a_training_that_changes_the_language_model_is_detected(prepared, tiny_lm, monkeypatch):
    def spoil(*arguments, **options):
        tiny_lm.embedding_table.data[5, 5] += 1
        return Progress(0, [], [], [])

    monkeypatch.setattr(runs, "train", spoil)
    with pytest.raises(FrozenError):
        study.train_adapter(replace(prepared, lm=tiny_lm))


def test_an_adapter_is_tested_on_the_test_split_and_its_tokens(config, prepared, finished):
    adapter = adapters.load(finished.parent, config, prepared.lm)
    scored, rebuilt = study.test_adapter(prepared, adapter)
    assert scored["id"].tolist() == prepared.encoded["test"].ids
    assert set(scored["condition"]) == {"answer_ce"}
    table = adapters.decode(adapter, prepared.codebook)
    counts = token_counts(prepared.encoded["test"].prompts, 4096)
    error = (table - prepared.lm.embedding_table).double().square().mean(1).detach().numpy()
    assert rebuilt["mse"] == pytest.approx(np.average(error, weights=counts))


# ---------------------------------------------------------------- committed adapters


@pytest.fixture
def committed(config, finished, tmp_path, monkeypatch) -> Path:
    """The folder of a committed adapter of this very run; the runs folder is empty."""
    monkeypatch.setenv("STAGE1_RECORDS", str(tmp_path / "records"))
    folder = tmp_path / "records" / store.run_name(config) / "adapters" / finished.parent.name
    return Path(shutil.move(finished.parent, folder))


def test_a_committed_adapter_is_copied_instead_of_trained(config, prepared, committed, no_training):
    path = study.obtain(prepared)
    assert path.parent == store.adapter_folder(config)
    for file in committed.iterdir():
        assert (path.parent / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "changes", [{"epochs": 5}, {"learning_rate": 2.0e-2}, {"seed": 1}, {"warmup": 0.5}]
)
def test_a_committed_adapter_of_another_run_is_not_used(config, committed, changes):
    other = config.replace(**changes)
    assert store.committed_adapter(config) == committed
    assert store.committed_adapter(other) is None
    # Not even where its folder has the name of the other run's.
    name = f"{other.objective}-seed{other.seed}"
    renamed = committed.parents[2] / store.run_name(other) / "adapters" / name
    shutil.copytree(committed, renamed, dirs_exist_ok=True)
    assert store.committed_adapter(other) is None


def test_criteria_do_not_make_another_run(config, committed):
    changed = config.replace(target_f1=60.0, script_f1=55.0, seeds=4)
    assert store.committed_adapter(changed) == committed


def test_several_processes_do_not_keep_an_earlier_record(config, prepared, finished, monkeypatch):
    launched = []
    launch = lambda one: launched.append((one.processes, finished.exists()))  # noqa: E731
    monkeypatch.setattr(runs.processes, "launch", launch)
    assert study.obtain(replace(prepared, config=config.replace(processes=2))) == finished
    assert launched == [(2, False)]


# ---------------------------------------------------------------- runs


def test_a_run_leaves_its_record_adapter_curves_and_answers(config, prepared, finished):
    assert finished == store.adapter_folder(config) / "record.json"
    assert sorted(file.name for file in finished.parent.iterdir()) == [
        "adapter.json", "adapter.safetensors", "answers.parquet", "curve.parquet", "record.json",
        "selection.parquet",
    ]  # fmt: skip
    curve, selection, answers = tables_of(finished)
    assert curve["step"].tolist() == list(range(6)) and curve["examples_seen"].iloc[-1] == 48
    assert selection["step"].tolist() == [0, 4, 6]
    assert answers["id"].tolist() == prepared.encoded["test"].ids


def test_a_record_says_what_its_tables_say(config, prepared, finished):
    record = store.read_json(finished)
    results, test = record["results"], record["results"]["test"]
    assert StudyConfig(**record["config"]) == config
    curve, selection, answers = tables_of(finished)
    for name in [*SCORES, "empty", "tokens"]:
        assert test[name] == pytest.approx(answers[name].mean(), nan_ok=True)
    assert (test["questions"], test["condition"]) == (24, "answer_ce")
    assert results["selection"] == pytest.approx(selection.iloc[-1].to_dict(), nan_ok=True)
    assert (results["steps"], results["examples_seen"], results["learning_rate"]) == (6, 48, 1.0e-2)
    assert results["seconds"] == pytest.approx(curve["seconds"].sum())
    labels = 2 * sum(map(len, prepared.encoded["train"].answers))
    assert results["tokens_supervised"] == {"cross_entropy": labels}
    assert set(results["reconstruction"]) == {"mse", "fvu", "cosine", "norm_ratio", "nearest_right"}
    adapter = adapters.load(finished.parent, config, prepared.lm)
    assert results["parameters"] == sum(parameter.numel() for parameter in adapter.parameters())


def test_a_loaded_adapter_gives_the_recorded_answers(config, prepared, finished):
    recorded = store.read_table(finished.parent / "answers.parquet")
    adapter = adapters.load(finished.parent, config, prepared.lm)
    scored, rebuilt = study.test_adapter(prepared, adapter)
    scored["golds"], recorded["golds"] = scored["golds"].map(list), recorded["golds"].map(list)
    pd.testing.assert_frame_equal(scored, recorded, check_exact=True)
    assert rebuilt == store.read_json(finished)["results"]["reconstruction"]


@pytest.mark.slow
def test_the_recorded_f1_of_the_shipped_model_is_the_mean_over_its_answers(lm):
    sizes = {"train_examples": 16, "selection_examples": 8, "test_examples": 24, "batch_size": 8}
    short = {"epochs": 1, "warmup_steps": 0, "test_names": "seen"}
    config = StudyConfig(device="cpu", learning_rate=1.0e-3, **short, **sizes)
    prepared = prepare(config)
    path = run(config, prepared)
    test = store.read_json(path)["results"]["test"]
    answers = store.read_table(path.parent / "answers.parquet")
    assert 0 < test["f1"] == pytest.approx(answers["f1"].mean()) and answers["f1"].nunique() > 2
    assert test["em"] == pytest.approx(answers["em"].mean())
    scored, _ = study.test_adapter(prepared, adapters.load(path.parent, config, lm))
    assert scored["prediction"].tolist() == answers["prediction"].tolist()


def test_a_finished_run_is_left_as_it_is(config, prepared, finished, no_training, monkeypatch):
    def state() -> dict:
        files = finished.parent.iterdir()
        return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    before = state()
    monkeypatch.setattr(runs, "prepare", lambda config: pytest.fail("prepared again"))
    assert run(config) == finished == run(config, prepared)
    assert state() == before


def test_a_run_whose_record_is_lost_is_repeated(config, prepared, finished):
    first = stripped(finished)
    finished.unlink()
    np.testing.assert_equal(stripped(run(config, prepared)), first)


@pytest.mark.parametrize("objective", ["option1_reconstruction", "option2_on_policy", "as_found"])
def test_the_same_run_gives_the_same_numbers_in_two_folders(
    config, prepared, tmp_path, monkeypatch, objective
):
    changed = config.replace(objective=objective, temperature=1.0, epochs=1)
    paths = []
    for folder, given in (("one", prepared), ("other", None)):  # prepared anew the second time
        monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / folder))
        paths.append(run(changed, given))
        assert tmp_path / folder in paths[-1].parents
    np.testing.assert_equal(*map(stripped, paths))
    for name in ("adapter.safetensors", "selection.parquet"):
        assert paths[0].with_name(name).read_bytes() == paths[1].with_name(name).read_bytes()
    answers = [tables_of(path)[2].drop(columns="golds") for path in paths]
    pd.testing.assert_frame_equal(*answers, check_exact=True)


def test_runs_of_other_seeds_and_objectives_lie_side_by_side(config, prepared):
    changes = [{}, {"seed": 1}, {"objective": "distill"}]
    paths = [run(config.replace(epochs=1, **change), prepared) for change in changes]
    assert len({path.parent.parent for path in paths}) == 1
    names = [path.parent.name for path in paths]
    assert names == ["answer_ce-seed0", "answer_ce-seed1", "distill-seed0"]
    assert [store.read_json(path)["config"]["seed"] for path in paths] == [0, 1, 0]
    losses = [tables_of(path)[0]["loss"][0] for path in paths]
    assert len(set(losses)) == 3 and not any(map(math.isnan, losses))


def test_an_interrupted_run_resumes_and_ends_the_same(config, prepared, made_once, monkeypatch):
    folder, original, calls = store.adapter_folder(config), study.selection_scores, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt  # after the last of six steps; the last checkpoint is at four
        return original(*arguments)

    monkeypatch.setattr(runs, "selection_scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config, prepared)
    assert [file.name for file in folder.iterdir()] == ["checkpoint.pt"]
    calls.clear()
    path = run(config, prepared)
    assert len(calls) == 1  # only the last evaluation is made
    np.testing.assert_equal(stripped(path), stripped(made_once / "record.json"))
    weights = "adapter.safetensors"
    assert (folder / weights).read_bytes() == (made_once / weights).read_bytes()
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "changes",
    [{"architecture": "affine"}, {"architecture": "soft_codebook"}, {"projection": "trained"}],
)
def test_an_interrupted_baseline_resumes_bit_for_bit(config, prepared, monkeypatch, changes):
    own = replace(prepared, config=config.replace(warmup_steps=2, epochs=1, **changes))
    whole, progress = study.train_adapter(own, resumable=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        original, calls = loop.take_step, []

        def interrupted(*arguments):
            calls.append(1)
            if len(calls) == 3:  # of three; the checkpoint is at two
                raise KeyboardInterrupt
            return original(*arguments)

        patch.setattr(loop, "take_step", interrupted)
        study.train_adapter(own)
    resumed, again = study.train_adapter(own)
    assert again.warmup == progress.warmup and len(again.warmup) == 2
    assert again.selection == progress.selection
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_interrupted_after_its_training_is_not_trained_again(config, prepared, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "test_adapter", raiser(KeyboardInterrupt))
        run(config, prepared)
    folder = store.adapter_folder(config)
    assert (folder / "checkpoint.pt").exists() and not (folder / "record.json").exists()
    monkeypatch.setattr(loop, "take_step", lambda *arguments: pytest.fail("trained again"))
    assert run(config, prepared).exists() and not (folder / "checkpoint.pt").exists()


def test_a_run_uses_the_given_config_and_not_that_of_the_study(config, prepared):
    changed = config.replace(learning_rate=5.0e-3, seed=3, epochs=1)
    record = store.read_json(run(changed, prepared))
    assert record["config"]["seed"] == 3 and record["results"]["learning_rate"] == 5.0e-3
    assert record["results"]["steps"] == 3 and prepared.config == config


def test_a_run_with_nothing_to_train_on_is_refused(config, prepared):
    encoded = prepared.encoded | {"train": prepared.encoded["train"].first(0)}
    with pytest.raises(ValueError, match="train_examples=0"):
        run(config, replace(prepared, encoded=encoded))
    assert not (store.adapter_folder(config) / "record.json").exists()


def test_an_adapter_whose_width_is_a_share_of_d_is_the_one_of_that_width(config):
    share, number = (config.replace(compressed_width=width) for width in ("D/8", 4))
    paths = [run(made) for made in (share, number)]
    assert paths[0] != paths[1] and stripped(paths[0]) == stripped(paths[1])
    lm = prepare(number).lm
    one, other = (
        adapters.load(path.parent, made, lm).state_dict()
        for path, made in zip(paths, (share, number), strict=True)
    )
    assert all((one[name] == other[name]).all() for name in one)
