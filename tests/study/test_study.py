"""A study: prepared once, its adapters trained, tested and recorded, and taken up where they were interrupted."""

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from stage1.study.study import FALLBACK_RATE, Study, learning_rate, prepare, run

from stage1 import adapter as adapters
from stage1 import store
from stage1.config import StudyConfig
from stage1.corpus import data
from stage1.corpus.prompts import token_counts
from stage1.model.language_model import FrozenError
from stage1.objectives import OBJECTIVES
from stage1.study import study
from stage1.training.loop import Progress

SCORES = ["f1", "em", "ended", "ce_first", "ce_later", "right_first", "right_later"]


@pytest.fixture(scope="module")
def config(tiny_config) -> StudyConfig:
    return tiny_config.replace(
        train_examples=24,
        selection_examples=6,
        epochs=2,
        max_new_tokens=3,
        selection_every=4,
        checkpoint_every=2,
    )


@pytest.fixture(scope="module")
def prepared(config) -> Study:
    return prepare(config)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """A runs folder for each test: a training takes up whatever checkpoint it finds there."""
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    return tmp_path


def stripped(record: dict) -> dict:
    """The numbers of a record that do not depend on the clock."""
    return {name: value for name, value in record["results"].items() if name != "seconds"}


# ---------------------------------------------------------------- preparing


def test_an_unknown_objective_is_refused_before_anything_is_loaded(config, monkeypatch):
    monkeypatch.setattr(
        study.language_model, "load", lambda config: pytest.fail("loaded the language model")
    )
    monkeypatch.setattr(study.data, "rows", lambda config, split: pytest.fail("made the data"))
    with pytest.raises(
        ValueError, match=r"objective='option3_forced'.*did you mean 'option3_teacher_forced'"
    ):
        prepare(config.replace(objective="option3_forced"))


def test_a_study_holds_its_splits_and_the_compression_of_its_training_prompts(config, prepared):
    assert {split: len(encoded) for split, encoded in prepared.encoded.items()} == {
        "train": 24, "selection": 6, "test": 24,
    }  # fmt: skip
    assert prepared.encoded["test"].ids == [row["id"] for row in data.rows(config, "test")]
    assert prepared.counts.sum() == sum(map(len, prepared.encoded["train"].prompts))
    assert prepared.compression.width == 4
    expected = prepared.compression.compress(prepared.lm.embedding_table)
    assert torch.equal(prepared.codebook, expected) and prepared.codebook.shape == (4096, 4)
    assert (prepared.test_counts() == token_counts(prepared.encoded["test"].prompts, 4096)).all()


def test_only_training_examples_are_dropped_for_a_cut_answer(config):
    shortened = prepare(config.replace(max_answer_tokens=3))
    assert shortened.encoded["train"].dropped == 24 - len(shortened.encoded["train"]) > 0
    assert len(shortened.encoded["selection"]) == 6 and len(shortened.encoded["test"]) == 24


def test_the_data_seed_decides_the_data_and_the_seed_does_not(config, prepared):
    reseeded, other = prepare(config.replace(seed=1)), prepare(config.replace(data_seed=1))
    assert reseeded.encoded == prepared.encoded
    assert torch.equal(reseeded.compression.components, prepared.compression.components)
    assert all(
        other.encoded[split].prompts != prepared.encoded[split].prompts for split in data.SPLITS
    )


def test_the_random_projection_depends_on_the_data_seed_alone(config, prepared):
    def projected(**changes):
        return study.replace(prepared, config=config.replace(**changes)).untrained()[
            "random_projection"
        ]

    assert torch.equal(projected(), projected(seed=1))
    assert not torch.equal(projected(), projected(data_seed=1))


def test_untrained_conditions_are_those_of_the_study(prepared):
    tables = prepared.untrained()
    assert list(tables) == ["text", "embeddings", "pca_inverse", "codebook", "random_projection"]
    assert torch.equal(tables["pca_inverse"], prepared.compression.expand(prepared.codebook))


def test_a_study_without_training_examples_is_refused_by_the_fields_name(config):
    with pytest.raises(
        ValueError, match="train_examples=0: expected at least one whose answer is not cut"
    ):
        prepare(config.replace(train_examples=0))


def test_a_study_whose_training_answers_are_all_cut_is_refused_by_how_many_there_were(config):
    with pytest.raises(
        ValueError, match="train_examples=24: expected at least one whose answer is not cut"
    ):
        prepare(config.replace(max_answer_tokens=1))


UNTRAINED = ["text", "embeddings", "pca_inverse", "codebook", "random_projection"]


def test_untrained_conditions_and_floors_are_tested_on_the_test_questions(prepared):
    answers, rebuilt = study.test_untrained(prepared)
    assert answers["condition"].unique().tolist() == [
        *UNTRAINED,
        "question_only",
        "shuffled_context",
    ]
    for _, group in answers.groupby("condition"):
        assert group["id"].tolist() == prepared.encoded["test"].ids
    assert list(rebuilt) == UNTRAINED[1:]  # token ids and floors rebuild nothing
    assert rebuilt["embeddings"]["mse"] == 0 and rebuilt["embeddings"][
        "nearest_right"
    ] == pytest.approx(1)
    assert 0 < rebuilt["pca_inverse"]["mse"] < rebuilt["random_projection"]["mse"]
    table = prepared.compression.expand(prepared.codebook)
    np.testing.assert_equal(
        rebuilt["pca_inverse"],
        study.reconstruction(prepared.lm.embedding_table, table, prepared.test_counts()),
    )


def test_untrained_answers_are_those_of_evaluating_each_condition_alone(prepared):
    answers, _ = study.test_untrained(prepared)
    table = prepared.untrained()["codebook"]
    alone = study.evaluate(
        prepared.lm, prepared.encoded["test"], "codebook", table, prepared.config
    )
    pd.testing.assert_frame_equal(
        answers[answers["condition"] == "codebook"], alone, check_exact=True
    )


# ---------------------------------------------------------------- learning rates


TRIED = {
    "preset": "elsewhere",
    "language_model": "shipped",
    "objective": "answer_ce",
    "initialisation": "pca_inverse",
    "output_scaling": "calibrated",
    "compressed_width": 24,
    "train_examples": 1_200,
    "epochs": 1,
    "batch_size": 8,
    "seed": 100,
}
ASKED = StudyConfig(objective="answer_ce", train_examples=1_200, epochs=1, batch_size=8)


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """Makes up the table of trials: each is a learning rate, its F1, and what else differs."""

    def write(*trials: tuple) -> None:
        rows = [
            TRIED | {"learning_rate": rate, "selection_f1": f1} | changes
            for rate, f1, changes in trials
        ]
        columns = [*TRIED, "learning_rate", "selection_f1"]
        pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "learning_rates.csv", index=False)
        monkeypatch.setattr(study, "LEARNING_RATES", tmp_path / "learning_rates.csv")

    return write


def test_a_learning_rate_of_ones_own_is_taken(tried):
    tried((3.0e-3, 90.0, {}))
    assert learning_rate(ASKED.replace(learning_rate=0.25)) == 0.25


def test_the_rate_with_the_highest_f1_is_taken(tried):
    tried((1.0e-3, 50.0, {}), (3.0e-3, 90.0, {}), (1.0e-2, 60.0, {}))
    assert learning_rate(ASKED) == 3.0e-3


def test_the_f1_of_a_rate_is_the_mean_over_its_seeds(tried):
    tried(
        (1.0e-3, 70.0, {}), (1.0e-3, 74.0, {"seed": 101}), (3.0e-3, 99.0, {}), (3.0e-3, 20.0, {"seed": 101})
    )  # fmt: skip
    assert learning_rate(ASKED) == 1.0e-3


@pytest.mark.parametrize(
    "other",
    [
        {"language_model": "owner/other"},
        {"objective": "distill"},
        {"initialisation": "random"},
        {"output_scaling": "unit_rms"},
        {"compressed_width": 12},
    ],
)
def test_trials_of_something_else_do_not_count(tried, other):
    tried((1.0e-3, 50.0, {}), (3.0e-3, 90.0, other))
    assert learning_rate(ASKED) == 1.0e-3
    assert learning_rate(ASKED.replace(**other)) == 3.0e-3


def test_the_budget_nearest_in_optimizer_steps_counts_alone(tried):
    long = {
        "train_examples": 10_000,
        "epochs": 3,
        "batch_size": 64,
    }  # 469 steps, where ASKED has 150
    tried((1.0e-2, 40.0, {}), (1.0e-3, 95.0, long))
    assert learning_rate(ASKED) == 1.0e-2
    assert learning_rate(ASKED.replace(**long)) == 1.0e-3
    # Nearness is by ratio: 150 is 1.74 times 86 and 469 is 1.80 times 260.
    assert learning_rate(ASKED.replace(train_examples=8 * 260)) == 1.0e-2
    assert learning_rate(ASKED.replace(train_examples=8 * 270)) == 1.0e-3


def test_trials_of_the_presets_own_count_alone_whatever_the_budget(tried):
    long = {"train_examples": 10_000, "epochs": 3, "batch_size": 64}
    tried(
        (1.0e-2, 95.0, {}),
        (1.0e-3, 60.0, long | {"preset": "quick"}),
        (3.0e-3, 50.0, long | {"preset": "quick"}),
    )
    assert ASKED.preset == "quick" and learning_rate(ASKED) == 1.0e-3
    assert learning_rate(ASKED.replace(preset="mine")) == 1.0e-2


def test_trials_of_the_preset_but_of_something_else_do_not_hide_the_others(tried):
    tried((1.0e-2, 50.0, {}), (1.0e-3, 90.0, {"preset": "quick", "objective": "distill"}))
    assert learning_rate(ASKED) == 1.0e-2


def test_budgets_of_as_many_steps_count_together(tried):
    same = {"train_examples": 600, "epochs": 2}
    tried((1.0e-3, 60.0, {}), (3.0e-3, 61.0, {}), (1.0e-3, 80.0, same), (3.0e-3, 50.0, same))
    assert learning_rate(ASKED) == 1.0e-3


def test_where_nothing_like_it_was_tried_there_is_a_fallback(tried):
    tried((3.0e-3, 90.0, {"objective": "distill"}))
    assert learning_rate(ASKED) == FALLBACK_RATE == 0.001
    tried()
    assert learning_rate(ASKED) == FALLBACK_RATE


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_has_a_learning_rate_in_the_shipped_table(objective):
    rate = learning_rate(StudyConfig(objective=objective))
    assert 1.0e-5 < rate < 1.0


def test_an_adapter_is_trained_with_the_rate_that_was_chosen(config, prepared, tried):
    like = {
        name: getattr(config, name)
        for name in ("language_model", "compressed_width", "train_examples")
    }
    tried((2.0e-3, 1.0, like))
    _, progress = study.train_adapter(
        study.replace(prepared, config=config.replace(learning_rate=None))
    )
    assert max(row["learning_rate"] for row in progress.curve) == 2.0e-3


# ---------------------------------------------------------------- training and watching


def test_training_is_watched_on_the_selection_split(prepared):
    adapter, progress = study.train_adapter(prepared)
    assert [row["step"] for row in progress.selection] == [0, 4, 6]
    assert all(list(row) == ["step", *SCORES] for row in progress.selection)
    assert {"step": 6} | study.watch(prepared, adapter) == progress.selection[-1]
    encoded = prepared.encoded["selection"]
    table = adapters.decode(adapter, prepared.codebook)
    scored = study.evaluate(prepared.lm, encoded, "selection", table, prepared.config, "")
    assert progress.selection[-1]["ce_first"] == scored["ce_first"].mean()
    assert scored["id"].tolist() == encoded.ids


def test_without_selection_examples_nothing_is_watched(config):
    _, progress = study.train_adapter(prepare(config.replace(selection_examples=0, epochs=1)))
    assert progress.selection == [{"step": 0}, {"step": 3}]


def test_a_training_keeps_its_checkpoint_in_the_adapters_folder_and_takes_it_up(
    config, prepared, runs, monkeypatch
):
    _, progress = study.train_adapter(prepared)
    folder = store.adapter_folder(config)
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"] and runs in folder.parents
    monkeypatch.setattr("stage1.train.take_step", lambda *arguments: pytest.fail("trained again"))
    _, again = study.train_adapter(prepared)
    assert again == progress


def test_the_checkpoint_lies_in_the_folder_of_the_config_as_it_was_asked_for(
    config, prepared, tried
):
    """A learning rate that was looked up is in the checkpoint, and not in the name of the folder."""
    tried()
    asked = config.replace(learning_rate=None)
    study.train_adapter(study.replace(prepared, config=asked))
    state = torch.load(store.adapter_folder(asked) / "checkpoint.pt", weights_only=True)
    assert state["config"] == store.identity(asked.replace(learning_rate=FALLBACK_RATE))


def test_without_checkpoints_a_training_leaves_nothing(config, prepared, runs):
    study.train_adapter(study.replace(prepared, config=config.replace(checkpoint_every=0)))
    assert not list(runs.rglob("*"))


def test_a_checkpoint_of_another_adapter_in_the_folder_is_refused(config, prepared):
    study.train_adapter(prepared)
    other = config.replace(seed=1)
    path = store.adapter_folder(other) / "checkpoint.pt"
    path.parent.mkdir()
    path.write_bytes((store.adapter_folder(config) / "checkpoint.pt").read_bytes())
    with pytest.raises(
        store.RecordError, match=r"seed1/checkpoint\.pt: is no checkpoint of this config"
    ):
        study.train_adapter(study.replace(prepared, config=other))


def test_a_written_adapter_leaves_no_checkpoint_and_one_that_fails_keeps_it(
    config, prepared, monkeypatch
):
    adapter, progress = study.train_adapter(prepared)
    scored, rebuilt = study.test_adapter(prepared, adapter)
    checkpoint = store.adapter_folder(config) / "checkpoint.pt"
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(store, "write_record", lambda *arguments: (_ for _ in ()).throw(OSError))
        study.write_adapter(prepared, adapter, progress, scored, rebuilt)
    assert checkpoint.exists()
    path = study.write_adapter(prepared, adapter, progress, scored, rebuilt)
    assert path.exists() and not checkpoint.exists()


def test_a_training_that_changes_the_language_model_is_found_out(config, monkeypatch):
    here = prepare(config)

    def spoil(*arguments):
        here.lm.embedding_table.data[5, 5] += 1
        return Progress(0, [], [], [])

    monkeypatch.setattr(study, "train", spoil)
    with pytest.raises(FrozenError):
        study.train_adapter(here)


def test_an_adapter_is_tested_on_the_test_split_and_its_tokens(prepared):
    adapter, _ = study.train_adapter(prepared)
    scored, rebuilt = study.test_adapter(prepared, adapter)
    assert scored["id"].tolist() == prepared.encoded["test"].ids and set(scored["condition"]) == {
        "answer_ce"
    }
    table = adapters.decode(adapter, prepared.codebook)
    counts = token_counts(prepared.encoded["test"].prompts, 4096)
    error = (table - prepared.lm.embedding_table).double().square().mean(1).detach().numpy()
    assert rebuilt["mse"] == pytest.approx(np.average(error, weights=counts))


# ---------------------------------------------------------------- committed adapters


@pytest.fixture
def committed(prepared, tmp_path, monkeypatch) -> Path:
    """The repository holds the trained adapter of this very run, and the runs folder is empty."""
    path = study.obtain(prepared)
    folder = tmp_path / "records" / store.run_name(prepared.config) / "adapters" / path.parent.name
    shutil.copytree(path.parent, folder)
    shutil.rmtree(path.parent)
    monkeypatch.setenv("STAGE1_RECORDS", str(tmp_path / "records"))
    return folder


def test_a_committed_adapter_is_taken_instead_of_trained(prepared, committed, monkeypatch):
    monkeypatch.setattr(study, "train", lambda *arguments: pytest.fail("it trained"))
    path = study.obtain(prepared)
    assert path.parent == store.adapter_folder(prepared.config)
    for file in committed.iterdir():
        assert (path.parent / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "changes", [{"epochs": 5}, {"learning_rate": 2.0e-2}, {"seed": 1}, {"warmup": 0.5}]
)
def test_another_run_is_not_taken_for_the_committed_one(prepared, committed, changes):
    config = prepared.config.replace(**changes)
    assert store.committed_adapter(prepared.config) == committed
    assert store.committed_adapter(config) is None
    # Not even where its folder has the name that the other run's would have.
    other = (
        committed.parents[2]
        / store.run_name(config)
        / "adapters"
        / f"{config.objective}-seed{config.seed}"
    )
    shutil.copytree(committed, other, dirs_exist_ok=True)
    assert store.committed_adapter(config) is None


def test_criteria_do_not_make_it_another_run(prepared, committed):
    assert (
        store.committed_adapter(prepared.config.replace(target_f1=60.0, script_f1=55.0, seeds=4))
        == committed
    )


# ---------------------------------------------------------------- runs


def test_a_run_leaves_its_record_adapter_curves_and_answers(config, prepared, runs):
    path = run(config, prepared)
    assert path == store.adapter_folder(config) / "record.json" and runs in path.parents
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "adapter.json", "adapter.safetensors", "answers.parquet", "curve.parquet", "record.json", "selection.parquet",
    ]  # fmt: skip
    curve, selection, answers = (
        store.read_table(path.parent / f"{name}.parquet")
        for name in ("curve", "selection", "answers")
    )
    assert curve["step"].tolist() == list(range(6)) and curve["examples_seen"].iloc[-1] == 48
    assert selection["step"].tolist() == [0, 4, 6]
    assert answers["id"].tolist() == prepared.encoded["test"].ids


def test_a_record_says_what_its_tables_say(config, prepared, runs):
    path = run(config, prepared)
    record, results = store.read_json(path), store.read_json(path)["results"]
    assert StudyConfig(**record["config"]) == config
    curve, selection, answers = (
        store.read_table(path.parent / f"{name}.parquet")
        for name in ("curve", "selection", "answers")
    )
    for name in (
        "f1",
        "em",
        "ended",
        "empty",
        "tokens",
        "ce_first",
        "ce_later",
        "right_first",
        "right_later",
    ):
        assert results["test"][name] == pytest.approx(answers[name].mean(), nan_ok=True)
    assert (results["test"]["questions"], results["test"]["condition"]) == (24, "answer_ce")
    assert results["selection"] == pytest.approx(selection.iloc[-1].to_dict(), nan_ok=True)
    assert (results["steps"], results["examples_seen"], results["learning_rate"]) == (6, 48, 1.0e-2)
    assert results["seconds"] == pytest.approx(curve["seconds"].sum())
    assert results["tokens_supervised"] == {
        "cross_entropy": 2 * sum(map(len, prepared.encoded["train"].answers))
    }
    assert set(results["reconstruction"]) == {"mse", "fvu", "cosine", "norm_ratio", "nearest_right"}
    adapter = adapters.load(path.parent, config, prepared.lm)
    assert results["parameters"] == sum(parameter.numel() for parameter in adapter.parameters())


def test_a_loaded_adapter_gives_the_recorded_answers(config, prepared, runs):
    path = run(config, prepared)
    recorded = store.read_table(path.parent / "answers.parquet")
    scored, rebuilt = study.test_adapter(prepared, adapters.load(path.parent, config, prepared.lm))
    scored["golds"], recorded["golds"] = scored["golds"].map(list), recorded["golds"].map(list)
    pd.testing.assert_frame_equal(scored, recorded, check_exact=True)
    assert rebuilt == store.read_json(path)["results"]["reconstruction"]


def test_the_recorded_f1_is_the_mean_over_the_answers(lm, runs):
    sizes = {
        "train_examples": 16,
        "selection_examples": 8,
        "test_examples": 24,
        "test_names": "seen",
    }
    config = StudyConfig(device="cpu", learning_rate=1.0e-3, epochs=1, batch_size=8, **sizes)
    path = run(config)
    results, answers = (
        store.read_json(path)["results"],
        store.read_table(path.parent / "answers.parquet"),
    )
    assert (
        0 < results["test"]["f1"] == pytest.approx(answers["f1"].mean())
        and answers["f1"].nunique() > 2
    )
    assert results["test"]["em"] == pytest.approx(answers["em"].mean())
    here = prepare(config)
    scored, _ = study.test_adapter(here, adapters.load(path.parent, config, lm))
    assert scored["prediction"].tolist() == answers["prediction"].tolist()


def test_a_finished_run_is_left_as_it_is(config, prepared, runs, monkeypatch):
    path = run(config, prepared)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()}
    monkeypatch.setattr(study, "prepare", lambda config: pytest.fail("prepared again"))
    monkeypatch.setattr(study, "train", lambda *arguments: pytest.fail("trained again"))
    assert run(config) == path == run(config, prepared)
    assert {
        file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()
    } == before


def test_a_run_whose_record_is_lost_is_done_again(config, prepared, runs):
    path = run(config, prepared)
    first = store.read_json(path)
    path.unlink()
    np.testing.assert_equal(stripped(store.read_json(run(config, prepared))), stripped(first))


@pytest.mark.parametrize("objective", ["option1_reconstruction", "option2_on_policy", "as_found"])
def test_the_same_run_in_two_folders_gives_the_same_numbers(
    config, prepared, tmp_path, monkeypatch, objective
):
    changed, records, tables = (
        config.replace(objective=objective, temperature=1.0, epochs=1),
        [],
        [],
    )
    for place in ("one", "other"):
        monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / place))
        path = run(changed, prepared if place == "one" else None)  # prepared anew the second time
        assert tmp_path / place in path.parents
        records.append(stripped(store.read_json(path)))
        tables.append(
            [
                (path.parent / name).read_bytes()
                for name in ("adapter.safetensors", "selection.parquet")
            ]
        )
        tables[-1].append(store.read_table(path.parent / "answers.parquet").drop(columns="golds"))
    np.testing.assert_equal(*records)
    assert tables[0][:2] == tables[1][:2]
    pd.testing.assert_frame_equal(tables[0][2], tables[1][2], check_exact=True)


def test_runs_of_other_seeds_and_objectives_lie_side_by_side(config, prepared, runs):
    short = config.replace(epochs=1)
    paths = [
        run(short.replace(**change), prepared)
        for change in ({}, {"seed": 1}, {"objective": "distill"})
    ]
    assert len(set(paths)) == 3 and len({path.parent.parent for path in paths}) == 1
    assert [path.parent.name for path in paths] == [
        "answer_ce-seed0",
        "answer_ce-seed1",
        "distill-seed0",
    ]
    seeds = [store.read_json(path)["config"]["seed"] for path in paths]
    assert seeds == [0, 1, 0]
    losses = [store.read_table(path.parent / "curve.parquet")["loss"][0] for path in paths]
    assert len(set(losses)) == 3 and not any(map(math.isnan, losses))


def test_an_interrupted_run_is_taken_up_and_its_checkpoint_deleted(
    config, prepared, runs, tmp_path, monkeypatch
):
    class Interrupted(Exception):
        pass

    whole = stripped(store.read_json(run(config, prepared)))
    weights = (store.adapter_folder(config) / "adapter.safetensors").read_bytes()
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "elsewhere"))
    folder, original, calls = store.adapter_folder(config), study.watch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise Interrupted  # in the last of the six steps, after the checkpoint at four
        return original(*arguments)

    monkeypatch.setattr(study, "watch", interrupted)
    with pytest.raises(Interrupted):
        run(config, prepared)
    assert [file.name for file in folder.iterdir()] == ["checkpoint.pt"]
    calls.clear()
    steps = []
    train = study.train
    monkeypatch.setattr(study, "train", lambda *arguments: steps.append(1) or train(*arguments))
    path = run(config, prepared)
    assert len(calls) == 1 and len(steps) == 1  # only the last measurement is made
    np.testing.assert_equal(stripped(store.read_json(path)), whole)
    assert (folder / "adapter.safetensors").read_bytes() == weights
    assert not (folder / "checkpoint.pt").exists()


def test_a_run_interrupted_after_its_training_is_not_trained_again(
    config, prepared, runs, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            study, "test_adapter", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        run(config, prepared)
    folder = store.adapter_folder(config)
    assert (folder / "checkpoint.pt").exists() and not (folder / "record.json").exists()
    monkeypatch.setattr("stage1.train.take_step", lambda *arguments: pytest.fail("trained again"))
    assert run(config, prepared).exists() and not (folder / "checkpoint.pt").exists()


def test_a_run_takes_the_config_it_was_given_and_not_that_of_the_study(config, prepared, runs):
    changed = config.replace(learning_rate=5.0e-3, seed=3, epochs=1)
    record = store.read_json(run(changed, prepared))
    assert record["config"]["seed"] == 3 and record["results"]["learning_rate"] == 5.0e-3
    assert record["results"]["steps"] == 3 and prepared.config == config


def test_a_run_with_nothing_to_train_on_is_refused(config, prepared, runs):
    empty = {
        **prepared.encoded,
        "train": study.encode([], prepared.lm.tokenizer, config, training=True),
    }
    with pytest.raises(ValueError, match="train_examples=0"):
        run(config, study.replace(prepared, encoded=empty))
    assert not (store.adapter_folder(config) / "record.json").exists()
