"""Sweeps: grids, rows that agree with the records, and nothing done twice."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pandas as pd
import psutil
import pytest

from stage1 import objectives, store, study
from stage1.config import StudyConfig, load_preset
from stage1.loss_parts import ExampleBatch, ObjectiveContext, Term
from stage1.names import OBJECTIVES
from stage1.scoring.tables import condition_table
from stage1.study import pool, rates, runs, sweep, sweep_tables, together
from stage1.study.sweep import columns, grid, recorded_fields, trial
from stage1.training.microbatches import TrainingError

KEPT = ["id", "title", "f1", "em", "ended", "tokens", "right_first", "right_later"]
MEASURES = ["f1", "em", "ended", "ce_first", "ce_later", "right_first", "right_later"]
RECORDED = {
    "preset", "seed", "train_examples", "language_model", "compressed_width", "initialisation",
    "output_scaling", "architecture", "projection", "objective", "epochs", "batch_size",
    "learning_rate",
    "reconstruction_weight", "reconstruction_term", "balancing", "warmup_steps", "faults",
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tiny_config) -> StudyConfig:
    sizes = {"train_examples": 16, "selection_examples": 4, "epochs": 1, "max_new_tokens": 2}
    return tiny_config.replace(threads=1, **sizes)


@pytest.fixture(autouse=True)
def progress_bars(monkeypatch):
    """Progress bars are after each test as they were before it: a sweep switches them off."""
    monkeypatch.setenv("TQDM_DISABLE", "0")


@pytest.fixture
def in_process(monkeypatch):
    """One thread of this process instead of a pool of others."""
    one = lambda processes, **_: ThreadPoolExecutor(1)  # noqa: E731
    monkeypatch.setattr(pool, "ProcessPoolExecutor", one)


@pytest.fixture
def diverging(monkeypatch):
    """A function that makes `answer_ce` return a loss that is not a number."""

    def answer_ce(adapter, batch: ExampleBatch, context: ObjectiveContext):
        return {"broken": Term(adapter.gain * float("nan"), 1)}

    return lambda: monkeypatch.setitem(objectives.FUNCTIONS, "answer_ce", answer_ce)


@pytest.fixture
def out_of_memory(monkeypatch):
    """Trainings that fail once each for the seeds put into this list; returns the seeds trained."""
    train, failing, trained = runs.train, [], []

    def broken(adapter, context, *rest, **options):
        trained.append(context.config.seed)
        if context.config.seed in failing:
            failing.remove(context.config.seed)
            raise MemoryError("no room")
        return train(adapter, context, *rest, **options)

    monkeypatch.setattr(runs, "train", broken)
    return failing, trained


def row_of(make, config: StudyConfig) -> dict:
    """The row of a sweep of this config alone."""
    return make(config, recorded_fields([config]))


def assert_columns(row: dict, config: StudyConfig) -> None:
    assert {name: row[name] for name in RECORDED} == {n: getattr(config, n) for n in RECORDED}


# ---------------------------------------------------------------- grids


def test_a_grid_has_every_combination_once():
    vary = {"objective": ["distill", "answer_ce"], "learning_rate": [1e-3, 3e-3], "seed": [0, 1, 2]}
    configs = grid("smoke", vary)
    combinations = [(one.objective, one.learning_rate, one.seed) for one in configs]
    assert sorted(combinations) == [
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
    "preset, vary, words",
    [
        ("smoke", {"sed": [1]}, "'sed'; did you mean 'seed'"),
        ("smoke", {"seed": [0, 1, -1]}, "seed=-1"),
        ("smok", {}, "preset='smok'"),
        ("smoke", {"objective": ["distil"]}, "objective='distil'.*did you mean 'distill'"),
        ("smoke", {"seed": [0], "learning_rate": []}, "--vary learning_rate=.*at least one value"),
        ("smoke", {"objective": []}, "--vary objective=.*at least one value"),
    ],
)
def test_a_wrong_field_or_value_is_refused(preset, vary, words):
    with pytest.raises(ValueError, match=words):
        grid(preset, vary)


# ---------------------------------------------------------------- columns


def test_recorded_fields_are_the_marked_ones_and_those_that_vary(config):
    marked = recorded_fields([config])
    assert set(marked) == RECORDED and len(marked) == len(RECORDED)
    # Fields that vary without being marked are added; marked ones that vary stand there once.
    others = [config.replace(ce_weight=0.1, seed=1), config.replace(padding_layout="no_gap")]
    varied = recorded_fields([config, *others])
    assert set(varied) == {*RECORDED, "ce_weight", "padding_layout"}
    assert len(varied) == len(RECORDED) + 2
    assert set(recorded_fields([others[0]])) == RECORDED


def test_columns_are_the_fields_with_the_learning_rate_that_is_used(config, monkeypatch):
    monkeypatch.setattr(sweep_tables, "learning_rate", lambda config: 2.0e-3)
    assert columns(config, ["ce_weight"]) == {"ce_weight": 1.0, "learning_rate": 2.0e-3}
    open_rate = config.replace(learning_rate=None)
    expected = {"seed": 0, "learning_rate": 2.0e-3}
    assert columns(open_rate, ["learning_rate", "seed"]) == expected


def test_a_rate_for_a_batch_size_still_to_be_measured_is_not_looked_up(config):
    open_size = config.replace(learning_rate=None, batch_size="auto")
    assert columns(open_size, ["batch_size"]) == {"batch_size": "auto", "learning_rate": None}


def test_a_sweep_writes_every_field_that_it_varies(config, in_process, tmp_path):
    read = config.replace(objective="option3_teacher_forced", gradients_every=1)
    configs = [read.replace(ce_weight=weight) for weight in (10.0, 0.1)]
    for kind in ("trials", "runs"):
        sweep.sweep(kind, [*configs, config], tmp_path / f"{kind}.csv", 1)
        rows = pd.read_csv(tmp_path / f"{kind}.csv").query("objective == @read.objective")
        assert rows["ce_weight"].tolist() == [0.1, 10.0]
        assert rows["selection_ce_first"].nunique() == 2
    answers = store.read_table(tmp_path / "runs.parquet")
    readings = store.read_table(tmp_path / "runs.gradients.parquet")
    # Exact values: tables are joined on them.
    assert answers.groupby("ce_weight").size().to_dict() == {0.1: 24, 1.0: 24, 10.0: 24}
    # Two terms, two runs of two steps; an objective of a single term leaves no readings.
    assert readings.groupby("ce_weight").size().to_dict() == {0.1: 4, 10.0: 4}
    shares = readings.groupby(["ce_weight", "step"])["step_share"].sum()
    assert shares.to_numpy() == pytest.approx(1, abs=1e-5)
    shared = store.read_json(tmp_path / "runs.json")["config"]
    assert not {"ce_weight", "objective"} & set(shared) and shared["seed"] == config.seed


def test_a_search_goes_on_until_the_best_rate_lies_inside(
    config, monkeypatch, tmp_path, in_process
):
    def work(kind, group, fields):
        rows = [sweep.columns(each, fields) for each in group]
        return [row | {"selection_f1": -abs(row["learning_rate"] - 9e-3)} for row in rows]

    monkeypatch.setattr(sweep, "work", work)
    configs = [config.replace(objective="distill", learning_rate=rate) for rate in (3e-4, 1e-3)]
    sweep.sweep("trials", configs, tmp_path / "t.csv", 1, extend=True)
    assert pd.read_csv(tmp_path / "t.csv")["learning_rate"].tolist() == [
        3e-4,
        1e-3,
        3e-3,
        1e-2,
        3e-2,
    ]


# ---------------------------------------------------------------- the command


@pytest.fixture
def command(monkeypatch):
    """A function that calls the command line and returns the calls of `sweep`."""
    calls = []
    monkeypatch.setattr(sweep, "sweep", lambda *given: calls.append(given))

    def call(*arguments) -> list[tuple]:
        monkeypatch.setattr(sys, "argv", ["sweep", *map(str, arguments)])
        sweep.main()
        return calls

    return call


def test_the_command_varies_fields_by_their_yaml_values(command, tmp_path):
    table = tmp_path / "t.csv"
    vary = "--vary learning_rate 1.0e-3 3.0e-3 --vary seed 100 --vary objective distill"
    arguments = f"trials smoke {table} {vary} --processes 3 --together 7 --extend"
    ((kind, configs, path, processes, size, extend),) = command(*arguments.split())
    assert (kind, path, processes, size, extend) == ("trials", table, 3, 7, True)
    base = load_preset("smoke").replace(objective="distill", seed=100)
    assert configs == [base.replace(learning_rate=rate) for rate in (1.0e-3, 3.0e-3)]


@pytest.mark.parametrize(
    "arguments, error",
    [
        ("runs smoke t.csv --vary sead 1", ValueError),
        ("runs smoke t.csv --vary seed 0 -1", ValueError),
        ("runs smoke t.csv --vary seed", ValueError),
        ("runs smoke t.csv --vary objective distil", ValueError),
        ("untrained smok t.csv", ValueError),
        ("run smoke t.csv", SystemExit),
    ],
)
def test_the_command_refuses_wrong_arguments_before_anything_runs(command, arguments, error):
    with pytest.raises(error):
        assert not command(*arguments.split())


def test_the_command_scores_the_untrained_conditions_and_keeps_every_answers_score(
    config, command, monkeypatch, tmp_path, runs_folder
):
    test_untrained, results = runs.test_untrained, []
    spy = lambda study: results.extend(test_untrained(study)) or results  # noqa: E731
    monkeypatch.setattr(runs, "test_untrained", spy)
    monkeypatch.setattr(sweep, "load_preset", {"tiny": config}.__getitem__)
    vary = ["--vary", "compressed_width", str(config.compressed_width)]
    assert not command("untrained", "tiny", tmp_path / "untrained.csv", *vary)
    table = pd.read_csv(tmp_path / "untrained.csv")
    assert (table.pop("compressed_width") == config.compressed_width).all()
    expected = condition_table(*results)
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert table["condition"].tolist() == [
        "text", "embeddings", "pca_inverse", "codebook", "random_projection", "question_only",
        "shuffled_context",
    ]  # fmt: skip
    scores = store.read_table(tmp_path / "untrained.parquet")
    assert list(scores) == ["condition", *sweep.ANSWER_COLUMNS, "compressed_width"]
    assert scores["id"].tolist() == results[0]["id"].tolist()
    f1 = scores.groupby("condition", observed=True)["f1"].mean()
    assert f1.to_dict() == pytest.approx(table.set_index("condition")["f1"].to_dict(), rel=1e-5)
    assert not runs_folder.exists()


# ---------------------------------------------------------------- prepared studies


def test_a_prepared_study_is_shared_by_runs_that_differ_in_adapter_or_training(config, monkeypatch):
    sweep.prepared.cache_clear()
    prepared, prepare = [], sweep.prepare
    monkeypatch.setattr(sweep, "prepare", lambda one: prepared.append(one) or prepare(one))
    changes = [
        {}, {"seed": 1}, {"objective": "distill"}, {"learning_rate": 1.0e-3}, {"epochs": 2},
        {"initialisation": "random"}, {"ce_weight": 0.1}, {"gradients_every": 1},
    ]  # fmt: skip
    for change in changes:
        own = sweep.shared(config.replace(**change))
        assert own.config == config.replace(**change)
    assert len(prepared) == 1
    assert own.encoded is sweep.shared(config).encoded
    rows = [row_of(trial, config.replace(**change)) for change in changes[:5]]
    assert len({row["selection_ce_first"] for row in rows}) == 5 and len(prepared) == 1


@pytest.mark.parametrize(
    "change", [{"compressed_width": 5}, {"data_seed": 1}, {"weighting": "vocabulary"}]
)
def test_a_prepared_study_is_not_shared_by_runs_that_differ_in_data(config, change):
    one, other = sweep.shared(config), sweep.shared(config.replace(**change))
    alone = study.prepare(config.replace(**change))
    assert other.encoded == alone.encoded
    assert other.compression.components.equal(alone.compression.components)
    assert not other.compression.components.equal(one.compression.components)


# ---------------------------------------------------------------- trials


def test_a_trial_has_its_columns_and_the_final_selection_scores(config, runs_folder, monkeypatch):
    monkeypatch.setattr(runs, "test_adapter", lambda *arguments: pytest.fail("tested"))
    row = row_of(trial, config)
    assert_columns(row, config)
    _, progress = study.train_adapter(sweep.shared(config), resumable=False)
    last = progress.selection[-1]
    np.testing.assert_equal(
        [row[f"selection_{name}"] for name in MEASURES], [last[name] for name in MEASURES]
    )
    assert set(row) == {*RECORDED, *(f"selection_{name}" for name in MEASURES), "seconds"}
    assert row["seconds"] > 0 and not runs_folder.exists()


def test_a_trial_that_diverges_scores_zero_and_says_why(config, diverging):
    diverging()
    row = row_of(trial, config)
    assert row["selection_f1"] == 0 and row["diverged"].startswith("step 0: broken=nan")
    assert_columns(row, config)


@pytest.mark.parametrize("make", [trial, sweep.tested])
def test_any_other_error_is_raised(config, out_of_memory, make):
    out_of_memory[0].append(0)
    with pytest.raises(MemoryError):
        row_of(make, config)


@pytest.mark.parametrize("make", [trial, sweep.tested])
def test_a_row_has_the_learning_rate_that_was_searched(config, monkeypatch, diverging, make):
    for module in (sweep_tables, study.preparation):
        monkeypatch.setattr(module, "learning_rate", lambda config: 2.0e-3)
    open_rate = config.replace(learning_rate=None)
    assert row_of(make, open_rate)["learning_rate"] == 2.0e-3
    diverging()
    row = row_of(make, open_rate.replace(seed=1))
    assert row["learning_rate"] == 2.0e-3 and row["diverged"]


# ---------------------------------------------------------------- runs


def test_a_tested_run_has_the_results_of_its_record(config, tmp_path, monkeypatch):
    row = row_of(sweep.tested, config)
    results = store.read_json(store.adapter_folder(config) / "record.json")["results"]
    assert_columns(row, config)
    for name in ("f1", "f1_low", "em", "ce_first", "right_later", "questions", "articles"):
        assert row[name] == results["test"][name]
    assert row["mse"] == results["reconstruction"]["mse"]
    assert row["selection_ce_first"] == results["selection"]["ce_first"] != row["ce_first"]
    supervised = results["tokens_supervised"]["cross_entropy"]
    assert row["tokens_cross_entropy"] == supervised != row["tokens"]
    for name in ("parameters", "steps", "examples_seen", "seconds"):
        assert row[name] == results[name]
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "without a sweep"))
    alone = store.read_json(study.run(config))["results"]["test"]
    np.testing.assert_equal(alone, results["test"])


def test_a_finished_run_is_not_repeated(config, monkeypatch):
    first = row_of(sweep.tested, config)
    monkeypatch.setattr(sweep, "shared", lambda config: pytest.fail("prepared again"))
    monkeypatch.setattr(runs, "train", lambda *arguments: pytest.fail("trained again"))
    np.testing.assert_equal(row_of(sweep.tested, config), first)


def test_a_diverged_run_says_why_and_leaves_neither_record_nor_scores(config, diverging):
    other = config.replace(objective="distill")
    row_of(sweep.tested, other)
    diverging()
    row = row_of(sweep.tested, config)
    assert row["diverged"].startswith("step 0: broken=nan") and "f1" not in row
    assert_columns(row, config)
    assert not (store.adapter_folder(config) / "record.json").exists()
    table = sweep.answer_scores([config, other])
    assert len(table) == 24 and set(table["objective"]) == {"distill"}
    with pytest.raises(store.RecordError, match="all of them diverged"):
        sweep.answer_scores([config])


# ---------------------------------------------------------------- sweeps


def test_a_sweep_of_runs_writes_tables_that_agree_with_the_records(config, in_process, tmp_path):
    varied = [("distill", 0), ("answer_ce", 1), ("answer_ce", 0)]
    configs = [config.replace(objective=objective, seed=seed) for objective, seed in varied]
    sweep.sweep("runs", configs, tmp_path / "runs.csv", processes=1)
    rows = pd.read_csv(tmp_path / "runs.csv").set_index(["objective", "seed"])
    answers = store.read_table(tmp_path / "runs.parquet")
    assert list(rows.index) == sorted(varied) and len(answers) == 3 * 24
    assert set(answers) == {*KEPT, *RECORDED}
    for one, (_, part) in zip(configs, answers.groupby(np.arange(72) // 24), strict=True):
        folder, row = store.adapter_folder(one), rows.loc[(one.objective, one.seed)]
        results = store.read_json(folder / "record.json")["results"]
        for name in MEASURES:
            assert row[name] == pytest.approx(results["test"][name], rel=1e-12)
        assert row["mse"] == pytest.approx(results["reconstruction"]["mse"], rel=1e-12)
        assert row["condition"] == one.objective
        assert_columns(part.iloc[0].to_dict(), one)
        whole = store.read_table(folder / "answers.parquet")
        for name in KEPT[:2]:
            assert part[name].tolist() == whole[name].tolist()
        for name in KEPT[2:]:
            expected = whole[name].astype(float)
            np.testing.assert_allclose(part[name].astype(float), expected, rtol=1e-6)
    types = {name: str(dtype) for name, dtype in answers.dtypes.items()}
    assert {types[name] for name in ("id", "title", "objective")} == {"category"}
    assert {types[name] for name in ("f1", "em", "right_first", "right_later")} == {"float32"}
    assert (types["ended"], types["tokens"]) == ("bool", "int64")


@pytest.mark.parametrize("kind, score", [("trials", "selection_ce_first"), ("runs", "f1")])
def test_a_diverged_run_is_a_row_beside_the_others(
    config, in_process, tmp_path, diverging, kind, score
):
    diverging()
    configs = [config.replace(objective=objective) for objective in ("distill", "answer_ce")]
    sweep.sweep(kind, configs, tmp_path / "out.csv", processes=1)
    rows = pd.read_csv(tmp_path / "out.csv")
    assert rows["objective"].tolist() == ["answer_ce", "distill"]
    assert rows["diverged"].notna().tolist() == rows[score].isna().tolist() == [True, False]
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    if kind == "trials":
        assert rows["selection_f1"].iloc[0] == 0 and files == {"out.csv"}
    else:
        assert set(store.read_table(tmp_path / "out.parquet")["objective"]) == {"distill"}
        origins = store.read_json(tmp_path / "out.json")
        assert origins["runs"] == 1 and len(origins["provenance"]) == 1


@pytest.mark.parametrize("kind, score", [("trials", "selection_ce_first"), ("runs", "f1")])
def test_a_warm_up_that_diverges_in_a_group_is_a_row_of_its_own_run(
    config, in_process, tmp_path, monkeypatch, kind, score
):
    """A group's warm-up does not say whose it was; alone, each run does."""
    warm_up = runs.warm_up

    def diverging(adapters, context, *rest, **options):
        if len(adapters) > 1 or context.config.seed == 1:
            raise TrainingError("warm-up, step 0: fvu=nan")
        return warm_up(adapters, context, *rest, **options)

    for module in (runs, together):
        monkeypatch.setattr(module, "warm_up", diverging)
    configs = [config.replace(seed=seed, warmup_steps=2) for seed in range(3)]
    sweep.sweep(kind, configs, tmp_path / "out.csv", processes=1, size=3)
    rows = pd.read_csv(tmp_path / "out.csv").set_index("seed")
    assert rows["diverged"].notna().tolist() == rows[score].isna().tolist() == [False, True, False]
    if kind == "runs":
        assert set(store.read_table(tmp_path / "out.parquet")["seed"]) == {0, 2}


@pytest.mark.parametrize("kind, score", [("trials", "selection_f1"), ("runs", "f1")])
def test_an_error_is_raised_after_the_others_and_only_missing_runs_are_repeated(
    config, in_process, tmp_path, out_of_memory, kind, score
):
    failing, trained = out_of_memory
    failing.append(0)
    configs, path = [config.replace(seed=seed) for seed in range(3)], tmp_path / "out.csv"
    with pytest.raises(RuntimeError, match="1 of 3 runs failed; the first: no room") as raised:
        sweep.sweep(kind, configs, path, processes=1)
    assert isinstance(raised.value.__cause__, MemoryError)
    rows = pd.read_csv(path)
    assert rows["seed"].tolist() == [1, 2] and rows[score].notna().all()
    if kind == "runs":
        assert not path.with_suffix(".parquet").exists()  # no scores of half a grid
        sweep.sweep(kind, configs, path, processes=1)
        assert trained == [0, 1, 2, 0]
        assert pd.read_csv(path)["seed"].tolist() == [0, 1, 2]
        assert len(store.read_table(path.with_suffix(".parquet"))) == 3 * 24


def test_learning_rates_are_chosen_from_the_table_of_trials(
    config, in_process, tmp_path, monkeypatch, diverging
):
    diverging()
    configs, path = [], tmp_path / "trials.csv"
    for objective in ("distill", "answer_ce"):
        for rate in (1.0e-3, 2.0e-3):
            configs.append(config.replace(objective=objective, learning_rate=rate))
    f1 = lambda study, adapter: {"f1": 1.0e4 * study.config.learning_rate}  # noqa: E731
    monkeypatch.setattr(runs, "selection_scores", f1)
    sweep.sweep("trials", configs, path, processes=1)
    monkeypatch.setattr(rates, "LEARNING_RATES", path)
    open_rate = config.replace(learning_rate=None, objective="distill")
    assert study.learning_rate(open_rate) == 2.0e-3
    both_diverged = open_rate.replace(objective="answer_ce")
    assert study.learning_rate(both_diverged) == 1.0e-3, "the lower one"
    assert study.learning_rate(open_rate.replace(objective="as_found")) == rates.FALLBACK_RATE


def test_the_table_is_whole_after_every_row(config, in_process, tmp_path, monkeypatch):
    lengths, write = [], store.write_atomically

    def spied(path, fill):
        written = write(path, fill)
        lengths.append(len(pd.read_csv(path)))
        return written

    monkeypatch.setattr(store, "write_atomically", spied)
    monkeypatch.setattr(sweep, "trial", lambda config, fields: columns(config, fields))
    configs = [config.replace(seed=seed) for seed in range(3)]
    sweep.sweep("trials", configs, tmp_path / "trials.csv", processes=1)
    assert lengths == [1, 2, 3]


@pytest.mark.slow
def test_a_sweep_in_a_process_pool_gives_the_same_rows(config, tmp_path):
    sweep.sweep("trials", [config], tmp_path / "trials.csv", processes=1)
    (row,) = pd.read_csv(tmp_path / "trials.csv").drop(columns="seconds").to_dict("records")
    here = row_of(trial, config)
    del here["seconds"]
    assert row == pytest.approx(here, nan_ok=True)


@pytest.mark.slow
def test_processes_of_a_killed_sweep_end_with_it(tmp_path):
    runs_folder, vary = tmp_path / "runs", "--vary objective distill --vary seed 0 1 2 3"
    given = f"runs smoke {tmp_path / 'runs.csv'} {vary} --vary epochs 2000 --processes 2"
    command = [sys.executable, "-m", "stage1.study.sweep", *given.split()]
    environment = os.environ | {"STAGE1_RUNS": str(runs_folder), "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, env=environment, cwd=store.ROOT) as parent:
        own = []
        try:
            limit = time.monotonic() + 120
            while len(list(runs_folder.rglob("checkpoint.pt"))) < 2:  # both train by now
                assert time.monotonic() < limit and parent.poll() is None
                time.sleep(0.1)
            own = psutil.Process(parent.pid).children(recursive=True)
            assert len(own) >= 2
            parent.kill()
            _, alive = psutil.wait_procs(own, timeout=20)
            assert not alive and parent.wait(20)
        finally:
            for process in (parent, *own):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
