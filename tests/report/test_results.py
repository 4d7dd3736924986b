"""Tables of results: computed by hand on made-up scores, and the committed ones against each other."""

import numpy as np
import pandas as pd
import pytest
from stage1.scoring.metrics import TEACHER_FORCED

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.objectives import OBJECTIVES
from stage1.report import results
from stage1.report.results import FLOORS, budget_table, condition_table, contrast, over_seeds

TITLES = {"a1": "A", "a2": "A", "b1": "B"}  # three examples on two articles
BUDGETS = ["runs_640x2", "runs_2500x3", "runs_10000x3", "runs_40000x3"]
RUN = ["objective", "initialisation", "output_scaling", "seed"]


def scored(f1: list[float], **columns) -> pd.DataFrame:
    """The scores of the three examples by one condition and seed."""
    table = pd.DataFrame(
        {"id": list(TITLES), "title": list(TITLES.values()), "prediction": "x", "f1": f1, "em": 0.0}
    )
    table = table.assign(ended=[True, True, False], empty=False, tokens=[2, 3, 4])
    return table.assign(**dict.fromkeys(TEACHER_FORCED, 0.5)).assign(**columns)


# ---------------------------------------------------------------- adapters


@pytest.fixture
def config(tmp_path, monkeypatch) -> StudyConfig:
    """A config of two seeds, with a runs folder for one test."""
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    return load_preset("smoke").replace(seeds=2)


@pytest.fixture
def trained(config) -> list[StudyConfig]:
    """What every planned adapter would have left: the n-th has an F1 of n."""
    planned = results.planned(config)
    for n, run in enumerate(planned):
        folder = store.adapter_folder(run)
        store.write_table(folder / "answers.parquet", scored([n, n, n], condition=run.objective))
        store.write_table(
            folder / "curve.parquet", pd.DataFrame({"step": [0, 1], "loss": [n + 0.5, n]})
        )
        store.write_record(folder / "record.json", run, {"test": {"f1": n}})
    return planned


def test_every_objective_is_planned_with_every_seed_and_nothing_else_changed(config):
    planned = results.planned(config)
    assert [(run.objective, run.seed) for run in planned] == [
        (name, seed) for name in OBJECTIVES for seed in (0, 1)
    ]
    assert {run.replace(objective="distill", seed=0) for run in planned} == {
        config.replace(objective="distill")
    }
    assert len(results.planned(config.replace(seeds=3, seed=7))) == 3 * len(OBJECTIVES)


def test_the_records_of_all_planned_adapters_are_read_in_their_order(config, trained):
    records = results.adapter_records(config)
    assert [record["results"]["test"]["f1"] for record in records] == list(range(14))
    assert [StudyConfig(**record["config"]) for record in records] == trained


@pytest.mark.parametrize("missing", [0, 5, 13])
def test_a_missing_adapter_is_named_with_the_command_that_makes_it(config, trained, missing):
    run = trained[missing]
    path = store.adapter_folder(run) / "record.json"
    path.unlink()
    with pytest.raises(store.RecordError) as raised:
        results.adapter_records(config)
    assert str(raised.value).startswith(f"{path}: ") and "`make report PRESET=smoke`" in str(
        raised.value
    )
    command = "papermill notebooks/02_train_adapter.ipynb out.ipynb -p preset smoke"
    assert f"`{command} -p objective {run.objective} -p seed {run.seed}`" in str(raised.value)


def test_of_several_missing_adapters_the_first_is_named(config):
    with pytest.raises(
        store.RecordError, match=r"as_found-seed0/record\.json.* -p objective as_found -p seed 0"
    ):
        results.adapter_records(config)


def test_a_truncated_record_of_an_adapter_is_named(config, trained):
    path = store.adapter_folder(trained[3]) / "record.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(
        store.RecordError, match=r"option1_reconstruction-seed1/record\.json: truncated"
    ):
        results.adapter_records(config)


def test_the_answers_of_all_adapters_are_in_one_table_with_their_seeds(config, trained):
    answers = results.adapter_answers(config)
    assert len(answers) == 14 * 3
    found = answers.groupby(["condition", "seed"], sort=False)["f1"].mean()
    assert found.to_dict() == {(run.objective, run.seed): n for n, run in enumerate(trained)}


def test_the_curves_of_all_adapters_are_in_one_table_with_their_objectives_and_seeds(
    config, trained
):
    curves = results.curves(config)
    assert curves["step"].tolist() == [0, 1] * 14
    last = curves[curves["step"] == 1].set_index(["objective", "seed"])["loss"]
    assert last.to_dict() == {(run.objective, run.seed): n for n, run in enumerate(trained)}


@pytest.mark.parametrize(
    "read, name", [(results.adapter_answers, "answers"), (results.curves, "curve")]
)
def test_a_missing_table_of_an_adapter_is_named(config, trained, read, name):
    (store.adapter_folder(trained[2]) / f"{name}.parquet").unlink()
    with pytest.raises(store.RecordError, match=rf"option1_reconstruction-seed0/{name}\.parquet"):
        read(config)


# ---------------------------------------------------------------- means over seeds


def test_scores_are_averaged_over_seeds_example_by_example():
    answers = pd.concat(
        [
            scored([10.0, 20.0, 60.0], condition="distill", seed=0),
            scored([30.0, 20.0, 0.0], condition="distill", seed=1, ended=False),
            scored([5.0, 6.0, 7.0], condition="text"),
        ]
    )
    table = over_seeds(answers, ["condition"])
    assert table["condition"].tolist() == ["distill"] * 3 + ["text"] * 3
    assert (
        table["id"].tolist() == list(TITLES) * 2
        and table["title"].tolist() == list(TITLES.values()) * 2
    )
    assert table["f1"].tolist() == [20.0, 20.0, 30.0, 5.0, 6.0, 7.0]
    assert table["ended"].tolist() == [0.5, 0.5, 0.0, 1.0, 1.0, 0.0]
    assert table["tokens"].tolist() == [2, 3, 4] * 2 and not {"seed", "prediction"} & set(table)


def test_the_order_of_the_rows_changes_no_mean():
    answers = pd.concat(
        [scored([10.0, 20.0, 60.0], condition="distill", seed=seed) for seed in (0, 1)]
    )
    answers["f1"] += 5 * answers["seed"]
    mixed = over_seeds(answers.sample(frac=1, random_state=0), ["condition"]).sort_values(
        "id", ignore_index=True
    )
    pd.testing.assert_frame_equal(mixed, over_seeds(answers, ["condition"]))


# ---------------------------------------------------------------- conditions


def conditions(question_only: float, shuffled_context: float) -> pd.DataFrame:
    """Means: embeddings 80, an adapter 50 over two seeds, a worse one 0, and the floors as given."""
    return pd.concat(
        [
            scored([80.0, 70.0, 90.0], condition="embeddings"),
            scored([question_only] * 3, condition="question_only"),
            scored([shuffled_context] * 3, condition="shuffled_context"),
            scored([10.0, 40.0, 70.0], condition="distill", seed=0),
            scored([50.0, 60.0, 70.0], condition="distill", seed=1),
            scored([0.0, 0.0, 0.0], condition="as_found", seed=0),
        ]
    )


@pytest.mark.parametrize("floors", [(10.0, 20.0), (20.0, 10.0)])
def test_retention_counts_from_the_higher_floor_to_the_original_embeddings(floors):
    table = condition_table(conditions(*floors), {}).set_index("condition")
    expected = {
        "embeddings": 100.0,
        "distill": 100 * (50 - 20) / (80 - 20),
        "as_found": 100 * (0 - 20) / (80 - 20),
    }
    expected |= {
        name: 100 * (floor - 20) / (80 - 20) for name, floor in zip(FLOORS, floors, strict=True)
    }
    assert table["retention"].to_dict() == pytest.approx(expected)
    assert table.loc["distill", "f1"] == pytest.approx(50) and table.loc[
        "distill", "retention"
    ] == pytest.approx(50)


def test_seeds_do_not_count_as_more_questions():
    table = condition_table(conditions(10.0, 20.0), {}).set_index("condition")
    assert (table["questions"] == 3).all() and (table["articles"] == 2).all()
    low, high = table.loc["distill", ["f1_low", "f1_high"]]
    assert (low, high) == pytest.approx(
        (40, 70)
    )  # of two articles, one alone: (30 + 50) / 2, or 70


def test_a_condition_table_has_the_reconstruction_of_what_is_rebuilt():
    rebuilt = {"embeddings": {"mse": 0.0, "fvu": 0.0}, "distill": {"mse": 2.0, "fvu": 0.25}}
    table = condition_table(conditions(10.0, 20.0), rebuilt)
    assert table["condition"].tolist() == ["embeddings", *FLOORS, "distill", "as_found"]
    nan = float("nan")
    np.testing.assert_equal(table["fvu"].tolist(), [0.0, nan, nan, 0.25, nan])
    np.testing.assert_equal(table["mse"].tolist(), [0.0, nan, nan, 2.0, nan])
    assert list(table)[:8] == [
        "condition",
        "f1",
        "f1_low",
        "f1_high",
        "em",
        "em_low",
        "em_high",
        "retention",
    ]


# ---------------------------------------------------------------- factors


PAIR = ("pca_inverse", "random")


def factorial() -> pd.DataFrame:
    """F1 of three examples under two factors of two levels, two seeds each."""
    f1 = {
        ("random", "unit_rms", 0): [0.0, 10.0, 20.0],
        ("random", "unit_rms", 1): [10.0, 20.0, 30.0],
        ("random", "calibrated", 0): [20.0, 30.0, 40.0],
        ("random", "calibrated", 1): [30.0, 40.0, 50.0],
        ("pca_inverse", "unit_rms", 0): [40.0, 40.0, 40.0],
        ("pca_inverse", "unit_rms", 1): [40.0, 40.0, 0.0],
        ("pca_inverse", "calibrated", 0): [40.0, 0.0, 0.0],
        ("pca_inverse", "calibrated", 1): [40.0, 40.0, 0.0],
    }
    tables = [
        scored(values, initialisation=start, output_scaling=scaling, seed=seed)
        for (start, scaling, seed), values in f1.items()
    ]
    return pd.concat(tables, ignore_index=True).drop(columns="prediction")


def test_a_contrast_is_the_mean_difference_on_the_same_examples():
    """By example 40, 30, 10 less 15, 25, 35 is 25, 5, -25. The extremes are one article and one seed, twice: A with
    seed 0 gives 40, 20 less 10, 20, B with seed 1 gives 0 less 40."""
    found = contrast(factorial(), "initialisation", "pca_inverse", "random")
    assert found.mean == pytest.approx(5 / 3)
    assert (found.low, found.high) == pytest.approx((-40, 15))


def test_the_other_factor_has_a_contrast_of_its_own():
    """By example 32.5, 27.5, 22.5 less 22.5, 27.5, 22.5 is 10, 0, 0."""
    found = contrast(factorial(), "output_scaling", "calibrated", "unit_rms")
    assert found.mean == pytest.approx(10 / 3) and found.low < 0 < found.high


def test_a_contrast_turned_round_changes_its_sign():
    found, other = (
        contrast(factorial(), "initialisation", *levels) for levels in (PAIR, PAIR[::-1])
    )
    assert other[:3] == pytest.approx((-found.mean, -found.high, -found.low))
    assert other[3:] == pytest.approx(found[3:])


def test_a_contrast_may_be_of_another_score():
    table = factorial()
    table["em"] = np.where(table["output_scaling"] == "calibrated", 100.0, 40.0)
    assert contrast(table, "output_scaling", "calibrated", "unit_rms", "em")[:3] == pytest.approx(
        (60, 60, 60)
    )


def test_order_and_column_types_change_no_contrast():
    table = factorial().sample(frac=1, random_state=0)
    texts = ["id", "title", "initialisation", "output_scaling"]
    table = table.astype(dict.fromkeys(texts, "category") | {"f1": "float32"})
    assert contrast(table, "initialisation", *PAIR) == pytest.approx(
        contrast(factorial(), "initialisation", *PAIR)
    )


@pytest.mark.parametrize("level", ["random", "pca_inverse"])
def test_levels_on_different_examples_are_not_set_against_each_other(level):
    table = factorial()
    table = table[(table["initialisation"] != level) | (table["id"] != "a2")]
    with pytest.raises(
        ValueError, match="initialisation: 'pca_inverse' and 'random': the two were not scored"
    ):
        contrast(table, "initialisation", "pca_inverse", "random")


# ---------------------------------------------------------------- committed tables


@pytest.mark.parametrize("name", ["none.csv", "none.parquet"])
def test_a_missing_committed_table_is_named_with_the_command_that_makes_it(name):
    with pytest.raises(
        store.RecordError, match=rf"records/full/{name}: no such table; `python -m stage1\.sweep`"
    ):
        results.committed("full", name)


def test_a_committed_table_is_read_as_csv_or_parquet(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RECORDS", str(tmp_path))
    table = pd.DataFrame({"objective": ["distill"], "f1": [12.5]})
    store.write_table(tmp_path / "mine" / "runs.parquet", table)
    table.to_csv(tmp_path / "mine" / "runs.csv", index=False)
    for name in ("runs.csv", "runs.parquet"):
        pd.testing.assert_frame_equal(results.committed("mine", name), table)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_committed_budget_has_different_runs_of_every_objective(budget):
    runs = results.committed("full", f"{budget}.csv")
    assert len(runs) == len(runs[RUN].drop_duplicates()) and set(runs["objective"]) <= set(
        OBJECTIVES
    )
    assert (
        f"runs_{runs['train_examples'].unique().item()}x{runs['epochs'].unique().item()}" == budget
    )
    assert runs["f1"].between(0, 100).all() and (runs["condition"] == runs["objective"]).all()
    assert runs.groupby(RUN[:3]).size().min() >= 3, "three seeds at least"


def test_the_committed_budget_has_five_seeds_of_all_objectives_on_the_best_adapter():
    runs = results.committed("full", "runs_10000x3.csv")
    counts = runs.groupby(RUN[:3]).size()
    assert len(counts) == len(OBJECTIVES) * 4
    assert (counts.xs(("pca_inverse", "calibrated"), level=(1, 2)) == 5).all()


def test_the_committed_scores_of_answers_agree_with_the_committed_runs():
    runs = results.committed("full", "runs_10000x3.csv").set_index(RUN)
    groups = results.committed("full", "runs_10000x3.parquet").groupby(RUN, observed=True)
    scores = groups[["f1", "em", "ended", "tokens"]].agg(
        lambda values: values.astype("float64").mean()
    )
    assert set(scores.index) == set(runs.index)
    assert (groups.size() == runs["questions"].loc[scores.index]).all() and (
        groups["id"].nunique() == 2_000
    ).all()
    for name in scores:
        np.testing.assert_allclose(scores[name], runs[name].loc[scores.index], rtol=1e-5)


def test_a_contrast_of_the_committed_scores_is_the_difference_of_the_means_of_the_runs():
    scores, runs = (
        results.committed("full", f"runs_10000x3.{kind}") for kind in ("parquet", "csv")
    )
    scores, runs = (
        table[table["objective"].isin(["distill", "option2_on_policy"])] for table in (scores, runs)
    )
    means = runs.groupby("initialisation")["f1"].mean()
    found = contrast(scores, "initialisation", "pca_inverse", "random")
    assert found.mean == pytest.approx(means["pca_inverse"] - means["random"], abs=1e-3)
    assert found.low < found.mean < found.high


# ---------------------------------------------------------------- budgets


UNTRAINED = pd.DataFrame(
    {"condition": ["embeddings", *FLOORS, "pca_inverse"], "f1": [80.0, 10.0, 20.0, 25.0]}
)


def runs(objective: str, f1: list[float], **columns) -> pd.DataFrame:
    adapter = {"initialisation": "pca_inverse", "output_scaling": "calibrated"} | columns
    table = pd.DataFrame({"objective": objective, "seed": range(len(f1)), "f1": f1})
    return table.assign(
        em=table["f1"] / 2, fvu=[0.1 * (seed + 1) for seed in table["seed"]], **adapter
    )


def test_a_budget_table_averages_over_the_seeds_of_each_adapter():
    made_up = pd.concat([runs("distill", [40.0, 50.0, 60.0]), runs("as_found", [20.0, 30.0])])
    table = budget_table(made_up.sample(frac=1, random_state=1), UNTRAINED)
    assert table["objective"].tolist() == ["as_found", "distill"]
    assert table["f1"].tolist() == pytest.approx([25, 50]) and table[
        "em"
    ].tolist() == pytest.approx([12.5, 25])
    assert table["f1_sd"].tolist() == pytest.approx([50**0.5, 10])  # with n - 1
    assert table["retention"].tolist() == pytest.approx([100 * 5 / 60, 50])
    assert table["fvu"].tolist() == pytest.approx([0.15, 0.2]) and table["seeds"].tolist() == [2, 3]


def test_a_budget_table_has_a_row_per_adapter_in_the_order_of_the_objectives():
    adapters = [
        (start, scaling)
        for start in ("pca_inverse", "random")
        for scaling in ("calibrated", "unit_rms")
    ]
    made_up = pd.concat(
        [
            runs(name, [float(place)], initialisation=start, output_scaling=scaling)
            for name in reversed(OBJECTIVES)
            for place, (start, scaling) in reversed(list(enumerate(adapters)))
        ]
    )
    table = budget_table(made_up, UNTRAINED)
    assert table[RUN[:3]].values.tolist() == [
        [name, *adapter] for name in OBJECTIVES for adapter in adapters
    ]
    assert table["f1"].tolist() == [0, 1, 2, 3] * len(OBJECTIVES) and (table["seeds"] == 1).all()


def test_the_committed_runs_make_a_budget_table():
    untrained = results.committed("full", "untrained.csv")
    f1 = untrained.set_index("condition")["f1"]
    table = budget_table(results.committed("full", "runs_10000x3.csv"), untrained)
    assert len(table) == 28 and table["f1_sd"].notna().all()
    expected = (
        100 * (table["f1"] - f1[list(FLOORS)].max()) / (f1["embeddings"] - f1[list(FLOORS)].max())
    )
    np.testing.assert_allclose(table["retention"], expected)
