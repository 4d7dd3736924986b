"""Grids: every combination, checked before anything runs; rows that agree with the records; nothing done twice."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.objectives import OBJECTIVES, ExampleBatch, ObjectiveContext, Term
from stage1.report.results import condition_table
from stage1.study import study, sweep
from stage1.study.sweep import SETTINGS, grid, trial

KEPT = ["id", "title", "f1", "em", "ended", "tokens", "right_first", "right_later"]
MEASURES = ["f1", "em", "ended", "ce_first", "ce_later", "right_first", "right_later"]


@pytest.fixture(scope="module")
def config(tiny_config) -> StudyConfig:
    return tiny_config.replace(
        threads=1, train_examples=16, selection_examples=4, epochs=1, max_new_tokens=2
    )


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """A runs folder for one test, and the progress bars as they were after it."""
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("TQDM_DISABLE", "0")
    return tmp_path / "runs"


@pytest.fixture
def in_process(monkeypatch):
    """One thread of this process instead of a pool of others."""
    monkeypatch.setattr(
        sweep, "ProcessPoolExecutor", lambda processes, mp_context: ThreadPoolExecutor(1)
    )


def explode(monkeypatch) -> None:
    """Put a loss that is no number in the place of `answer_ce`."""

    def answer_ce(adapter, batch: ExampleBatch, context: ObjectiveContext):
        return {"pretended": Term(adapter.gain * float("nan"), 1)}

    monkeypatch.setitem(OBJECTIVES, "answer_ce", answer_ce)


# ---------------------------------------------------------------- grids


def test_a_grid_has_every_combination_once():
    vary = {
        "objective": ["distill", "answer_ce"],
        "learning_rate": [1.0e-3, 3.0e-3],
        "seed": [0, 1, 2],
    }
    configs = grid("smoke", vary)
    found = [(config.objective, config.learning_rate, config.seed) for config in configs]
    assert sorted(found) == [
        (o, r, s) for o in ("answer_ce", "distill") for r in (1.0e-3, 3.0e-3) for s in (0, 1, 2)
    ]
    smoke = load_preset("smoke")
    same = {"objective": "answer_ce", "learning_rate": None, "seed": 0}
    assert {config.replace(**same) for config in configs} == {smoke.replace(**same)}


def test_a_grid_has_all_objectives_unless_some_are_given():
    assert [config.objective for config in grid("smoke", {})] == list(OBJECTIVES)
    assert len(grid("smoke", {"seed": [0, 1]})) == 2 * len(OBJECTIVES)
    assert [config.objective for config in grid("smoke", {"objective": ["distill"]})] == ["distill"]


@pytest.mark.parametrize(
    "preset, vary, error, words",
    [
        ("smoke", {"sed": [1]}, ValueError, "'sed'; did you mean 'seed'"),
        ("smoke", {"seed": [0, 1, -1]}, ValueError, "seed=-1"),
        ("smoke", {"seed": [0], "warmup": [0.5, 1.5]}, ValueError, r"warmup=1\.5"),
        ("smok", {}, ValueError, "preset='smok'"),
        (
            "smoke",
            {"objective": ["distill", "distil"]},
            ValueError,
            "objective='distil'.*did you mean 'distill'",
        ),
        (
            "smoke",
            {"seed": [0, 1], "learning_rate": []},
            ValueError,
            "--vary learning_rate=.*at least one value",
        ),
        ("smoke", {"objective": []}, ValueError, "--vary objective=.*at least one value"),
    ],
)
def test_a_wrong_field_or_value_is_refused(preset, vary, error, words):
    with pytest.raises(error, match=words):
        grid(preset, vary)


# ---------------------------------------------------------------- the command


def command(monkeypatch, *arguments: str) -> list[tuple]:
    """What the command line asks `sweep` to do."""
    asked = []
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    monkeypatch.setattr(sweep, "sweep", lambda *given: asked.append(given))
    sweep.main()
    return asked


def test_the_command_varies_fields_by_their_yaml_values(monkeypatch, tmp_path):
    vary = [
        "--vary",
        "learning_rate",
        "1.0e-3",
        "3.0e-3",
        "--vary",
        "seed",
        "100",
        "--vary",
        "objective",
        "distill",
    ]
    ((kind, configs, table, processes),) = command(
        monkeypatch, "trials", "smoke", str(tmp_path / "t.csv"), *vary, "--processes", "3"
    )
    assert (kind, table, processes) == ("trials", tmp_path / "t.csv", 3)
    expected = [
        load_preset("smoke").replace(objective="distill", seed=100, learning_rate=r)
        for r in (1.0e-3, 3.0e-3)
    ]
    assert configs == expected


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["runs", "smoke", "t.csv", "--vary", "sead", "1"], ValueError),
        (["runs", "smoke", "t.csv", "--vary", "seed", "0", "-1"], ValueError),
        (["runs", "smoke", "t.csv", "--vary", "seed"], ValueError),
        (["runs", "smoke", "t.csv", "--vary", "objective", "distil"], ValueError),
        (["untrained", "smok", "t.csv"], ValueError),
        (["run", "smoke", "t.csv"], SystemExit),
    ],
)
def test_the_command_refuses_what_is_wrong_before_anything_runs(monkeypatch, arguments, error):
    monkeypatch.setattr(sweep, "sweep", lambda *given: pytest.fail("ran"))
    with pytest.raises(error):
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
        sweep.main()


def test_the_command_scores_the_untrained_conditions_in_one_table(
    config, monkeypatch, tmp_path, runs
):
    monkeypatch.setattr(sweep, "load_preset", {"tiny": config}.__getitem__)
    monkeypatch.setattr(
        sys, "argv", ["sweep", "untrained", "tiny", str(tmp_path / "untrained.csv")]
    )
    monkeypatch.setattr(sweep, "sweep", lambda *given: pytest.fail("swept"))
    sweep.main()
    found = pd.read_csv(tmp_path / "untrained.csv")
    expected = condition_table(*study.test_untrained(study.prepare(config)))
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert found["condition"].tolist() == [
        "text", "embeddings", "pca_inverse", "codebook", "random_projection", "question_only", "shuffled_context",
    ]  # fmt: skip
    assert not runs.exists()


# ---------------------------------------------------------------- trials


def test_a_trial_has_its_settings_and_the_last_reading_on_the_selection_split(config):
    row = trial(config)
    assert {name: row[name] for name in SETTINGS} == {
        name: getattr(config, name) for name in SETTINGS
    }
    _, progress = study.train_adapter(study.prepare(config))
    last = progress.selection[-1]
    np.testing.assert_equal(
        [row[f"selection_{name}"] for name in MEASURES], [last[name] for name in MEASURES]
    )
    assert set(row) == {*SETTINGS, *(f"selection_{name}" for name in MEASURES), "seconds"}
    assert row["seconds"] > 0


def test_a_trial_says_which_learning_rate_was_chosen_even_where_it_diverged(config, monkeypatch):
    monkeypatch.setattr(study, "learning_rate", lambda config: 2.0e-3)
    asked = config.replace(learning_rate=None)
    assert trial(asked)["learning_rate"] == 2.0e-3
    explode(monkeypatch)
    row = trial(asked.replace(seed=1))
    assert row["learning_rate"] == 2.0e-3 and row["selection_f1"] == 0 and row["diverged"]


def test_a_trial_never_reads_the_test_questions_and_leaves_nothing(config, runs, monkeypatch):
    monkeypatch.setattr(study, "test_adapter", lambda *arguments: pytest.fail("tested"))
    trial(config)
    assert not list(runs.rglob("*"))


def test_a_trial_that_diverges_scores_zero_and_says_why(config, monkeypatch):
    explode(monkeypatch)
    row = trial(config)
    assert row["selection_f1"] == 0 and row["diverged"].startswith("step 0: pretended=nan")
    assert {name: row[name] for name in SETTINGS} == {
        name: getattr(config, name) for name in SETTINGS
    }


def test_any_other_error_of_a_trial_is_raised(config, monkeypatch):
    monkeypatch.setattr(study, "train", lambda *arguments: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        trial(config)


def test_what_differs_in_training_alone_is_prepared_once(config, monkeypatch):
    sweep.prepared.cache_clear()
    prepared, prepare = [], study.prepare
    monkeypatch.setattr(study, "prepare", lambda config: prepared.append(config) or prepare(config))
    rows = [
        trial(config.replace(**change))
        for change in (
            {},
            {"seed": 1},
            {"objective": "distill"},
            {"learning_rate": 1.0e-3},
            {"epochs": 2},
        )
    ]
    assert len(prepared) == 1
    assert len({row["selection_ce_first"] for row in rows}) == 5
    trial(config.replace(compressed_width=5))
    assert len(prepared) == 2


# ---------------------------------------------------------------- runs


def test_a_tested_run_has_the_results_of_its_record(config):
    row = sweep.tested(config)
    results = store.read_json(store.adapter_folder(config) / "record.json")["results"]
    assert {name: row[name] for name in SETTINGS} == {
        name: getattr(config, name) for name in SETTINGS
    }
    for name in ("f1", "f1_low", "em", "ce_first", "right_later", "questions", "articles"):
        assert row[name] == results["test"][name]
    assert row["mse"] == results["reconstruction"]["mse"]
    assert row["selection_ce_first"] == results["selection"]["ce_first"] != row["ce_first"]
    assert (
        row["tokens_cross_entropy"]
        == results["tokens_supervised"]["cross_entropy"]
        != row["tokens"]
    )
    for name in ("parameters", "steps", "examples_seen", "seconds"):
        assert row[name] == results[name]


def test_a_row_says_which_learning_rate_was_chosen(config, monkeypatch):
    monkeypatch.setattr(study, "learning_rate", lambda config: 2.0e-3)
    assert sweep.tested(config.replace(learning_rate=None, batch_size=1))["learning_rate"] == 2.0e-3


def test_a_run_that_is_done_is_not_done_again(config, monkeypatch):
    first = sweep.tested(config)
    monkeypatch.setattr(study, "prepare", lambda config: pytest.fail("prepared again"))
    monkeypatch.setattr(study, "train", lambda *arguments: pytest.fail("trained again"))
    sweep.prepared.cache_clear()
    np.testing.assert_equal(sweep.tested(config), first)


def test_a_run_is_the_one_that_is_made_without_a_sweep(config, tmp_path, monkeypatch):
    row = sweep.tested(config)
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "plain"))
    results = store.read_json(study.run(config))["results"]
    np.testing.assert_equal({name: row[name] for name in results["test"]}, results["test"])


def test_a_run_that_diverges_is_a_row_that_says_why_and_leaves_no_record(config, monkeypatch):
    explode(monkeypatch)
    row = sweep.tested(config)
    assert row["diverged"].startswith("step 0: pretended=nan") and "f1" not in row
    assert {name: row[name] for name in SETTINGS} == {
        name: getattr(config, name) for name in SETTINGS
    }
    assert not (store.adapter_folder(config) / "record.json").exists()


def test_any_other_error_of_a_run_is_raised(config, monkeypatch):
    monkeypatch.setattr(study, "train", lambda *arguments: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        sweep.tested(config)


def test_scores_of_all_runs_are_in_one_small_table(config):
    configs = [config.replace(seed=seed) for seed in (0, 1)]
    for one in configs:
        sweep.tested(one)
    table = sweep.scores(configs)
    assert len(table) == 48 and table["seed"].tolist() == [0] * 24 + [1] * 24
    assert list(table) == [*KEPT, *sweep.VARIED]
    assert [table[name].iloc[0] for name in sweep.VARIED] == [
        getattr(config, name) for name in sweep.VARIED
    ]
    for one, (_, part) in zip(configs, table.groupby("seed"), strict=True):
        whole = store.read_table(store.adapter_folder(one) / "answers.parquet")
        assert part["id"].tolist() == whole["id"].tolist()
        assert part["title"].tolist() == whole["title"].tolist()
        for name in KEPT[2:]:
            np.testing.assert_allclose(
                part[name].astype(float), whole[name].astype(float), rtol=1e-6
            )
    types = {str(dtype) for dtype in table.dtypes}
    assert types == {"category", "float32", "bool", "int64"} and table["ended"].dtype == bool


def test_gradient_readings_of_all_runs_are_in_one_table_beside_the_others(
    config, in_process, tmp_path
):
    read = config.replace(objective="option3_teacher_forced", gradients_every=1)
    configs = [read, read.replace(seed=1), config]
    sweep.sweep("runs", configs, tmp_path / "out.csv", 1)
    table = pd.read_parquet(tmp_path / "out.gradients.parquet")
    steps = len(store.read_table(store.adapter_folder(read) / "curve.parquet"))
    assert len(table) == 2 * 2 * steps, "two terms, two runs; objectives of one term leave nothing"
    assert set(table["objective"]) == {"option3_teacher_forced"} and set(table["seed"]) == {0, 1}
    assert table.groupby(["seed", "step"])["step_share"].sum().to_numpy() == pytest.approx(
        1, abs=1e-5
    )


def test_scores_leave_out_what_diverged(config, monkeypatch):
    sweep.tested(config.replace(objective="distill"))
    explode(monkeypatch)
    sweep.tested(config)
    table = sweep.scores([config, config.replace(objective="distill")])
    assert len(table) == 24 and set(table["objective"]) == {"distill"}


# ---------------------------------------------------------------- sweeps


def test_a_sweep_of_runs_writes_tables_that_agree_with_the_records(config, in_process, tmp_path):
    configs = [
        config.replace(objective=objective, seed=seed)
        for objective in ("distill", "answer_ce")
        for seed in (1, 0)
    ]
    sweep.sweep("runs", configs, tmp_path / "runs.csv", processes=1)
    rows, answers = pd.read_csv(tmp_path / "runs.csv"), store.read_table(tmp_path / "runs.parquet")
    found = rows[["objective", "seed"]].values.tolist()
    assert found == [["answer_ce", 0], ["answer_ce", 1], ["distill", 0], ["distill", 1]]
    assert len(answers) == 4 * 24
    for one in configs:
        results = store.read_json(store.adapter_folder(one) / "record.json")["results"]
        (row,) = rows[(rows["objective"] == one.objective) & (rows["seed"] == one.seed)].to_dict(
            "records"
        )
        mine = answers[(answers["objective"] == one.objective) & (answers["seed"] == one.seed)]
        for name in MEASURES:
            assert row[name] == pytest.approx(results["test"][name], rel=1e-12)
        for name in KEPT[2:]:
            assert mine[name].astype(float).mean() == pytest.approx(results["test"][name], rel=1e-5)
        assert row["mse"] == pytest.approx(results["reconstruction"]["mse"], rel=1e-12)
        assert row["condition"] == one.objective


def test_a_sweep_of_trials_writes_one_table_with_those_that_diverged(
    config, in_process, tmp_path, monkeypatch
):
    explode(monkeypatch)
    configs = [config.replace(objective=objective) for objective in ("distill", "answer_ce")]
    sweep.sweep("trials", configs, tmp_path / "trials.csv", processes=1)
    rows = pd.read_csv(tmp_path / "trials.csv")
    assert rows["objective"].tolist() == ["answer_ce", "distill"]
    assert rows["selection_f1"].tolist() == [0, 0] and rows["diverged"].notna().tolist() == [
        True,
        False,
    ]
    assert rows["selection_ce_first"].isna().tolist() == [True, False]
    assert [path.name for path in tmp_path.iterdir()] == ["trials.csv"]


def test_a_run_that_diverges_does_not_stop_the_others(config, in_process, tmp_path, monkeypatch):
    explode(monkeypatch)
    configs = [config.replace(objective=objective) for objective in ("answer_ce", "distill")]
    sweep.sweep("runs", configs, tmp_path / "runs.csv", processes=1)
    rows, scores = pd.read_csv(tmp_path / "runs.csv"), store.read_table(tmp_path / "runs.parquet")
    assert rows["objective"].tolist() == ["answer_ce", "distill"]
    assert rows["diverged"].notna().tolist() == [True, False] and rows["f1"].isna().tolist() == [
        True,
        False,
    ]
    assert len(scores) == 24 and set(scores["objective"]) == {"distill"}


@pytest.mark.parametrize("kind", ["trials", "runs"])
def test_the_others_finish_before_an_error_is_raised(
    config, in_process, tmp_path, monkeypatch, kind
):
    train = study.train

    def broken(adapter, context, *rest):
        if context.config.seed == 0:
            raise MemoryError("no room")
        return train(adapter, context, *rest)

    monkeypatch.setattr(study, "train", broken)
    configs = [config.replace(seed=seed) for seed in range(3)]
    with pytest.raises(RuntimeError, match="1 of 3 runs failed; the first: no room") as raised:
        sweep.sweep(kind, configs, tmp_path / "table.csv", processes=1)
    assert isinstance(raised.value.__cause__, MemoryError)
    rows = pd.read_csv(tmp_path / "table.csv")
    assert (
        rows["seed"].tolist() == [1, 2]
        and rows[{"trials": "selection_f1", "runs": "f1"}[kind]].notna().all()
    )


def test_a_sweep_after_an_error_does_only_what_is_missing(
    config, in_process, tmp_path, monkeypatch
):
    configs, trained, train = [config.replace(seed=seed) for seed in range(3)], [], study.train

    def broken(adapter, context, *rest):
        trained.append(context.config.seed)
        if trained == [0]:
            raise MemoryError
        return train(adapter, context, *rest)

    monkeypatch.setattr(study, "train", broken)
    with pytest.raises(RuntimeError, match="1 of 3"):
        sweep.sweep("runs", configs, tmp_path / "runs.csv", processes=1)
    assert not (tmp_path / "runs.parquet").exists()  # of half a grid no table is made
    sweep.sweep("runs", configs, tmp_path / "runs.csv", processes=1)
    assert trained == [0, 1, 2, 0]
    assert pd.read_csv(tmp_path / "runs.csv")["seed"].tolist() == [0, 1, 2]
    assert len(store.read_table(tmp_path / "runs.parquet")) == 3 * 24


def test_the_table_of_trials_is_one_that_learning_rates_are_chosen_from(
    config, in_process, tmp_path, monkeypatch
):
    explode(monkeypatch)
    rates = (1.0e-3, 2.0e-3)
    configs = [
        config.replace(objective=name, learning_rate=rate)
        for name in ("distill", "answer_ce")
        for rate in rates
    ]
    monkeypatch.setattr(
        study, "watch", lambda here, adapter: {"f1": 1.0e4 * here.config.learning_rate}
    )
    sweep.sweep("trials", configs, tmp_path / "trials.csv", processes=1)
    monkeypatch.setattr(study, "LEARNING_RATES", tmp_path / "trials.csv")
    asked = config.replace(learning_rate=None, objective="distill")
    assert study.learning_rate(asked) == 2.0e-3
    assert (
        study.learning_rate(asked.replace(objective="answer_ce")) == 1.0e-3
    )  # both diverged: the lower one
    assert study.learning_rate(asked.replace(objective="as_found")) == study.FALLBACK_RATE


def test_the_table_is_whole_after_every_row(config, in_process, tmp_path, monkeypatch):
    lengths, write = [], store.write_atomically

    def spied(path, fill):
        written = write(path, fill)
        if path.suffix == ".csv":
            lengths.append(len(pd.read_csv(path)))
        return written

    monkeypatch.setattr(store, "write_atomically", spied)
    sweep.sweep(
        "trials",
        [config.replace(seed=seed) for seed in range(3)],
        tmp_path / "trials.csv",
        processes=1,
    )
    assert lengths == [1, 2, 3]


def test_a_sweep_in_processes_of_its_own_gives_the_same_rows(config, tmp_path):
    sweep.sweep("trials", [config], tmp_path / "trials.csv", processes=1)
    (row,) = pd.read_csv(tmp_path / "trials.csv").to_dict("records")
    here = trial(config)
    assert {name: row[name] for name in row if name != "seconds"} == pytest.approx(
        {name: here[name] for name in row if name != "seconds"}, nan_ok=True
    )
