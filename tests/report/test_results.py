"""Tables of results: worked out by hand on made-up records, and the committed ones compared."""

import math

import numpy as np
import pandas as pd
import pytest

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.names import FLOORS, OBJECTIVES
from stage1.report import results
from stage1.report.results import ADAPTER, budget_table, crossover
from stage1.scoring import contrast

RUN = [*ADAPTER, "seed"]
STARTS, SCALINGS = ("pca_inverse", "random"), ("calibrated", "unit_rms")


# ---------------------------------------------------------------- adapters


@pytest.fixture
def config(tmp_path, monkeypatch) -> StudyConfig:
    """A config of two seeds, with a runs folder for one test."""
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    return load_preset("smoke").replace(seeds=2)


@pytest.fixture
def trained(config) -> list[StudyConfig]:
    """What every planned adapter would have left; the n-th has an F1 of n."""
    planned = results.planned(config)
    for n, run in enumerate(planned):
        folder = store.adapter_folder(run)
        curve = pd.DataFrame({"step": [0, 1], "loss": [n + 0.5, n]})
        answers = pd.DataFrame({"condition": run.objective, "id": ["a", "b", "c"], "f1": n})
        store.write_table(folder / "answers.parquet", answers)
        store.write_table(folder / "curve.parquet", curve)
        if n in (0, 5):
            store.write_table(folder / "gradients.parquet", pd.DataFrame({"value": [n]}))
        record = {"config": run.to_dict(), "results": {"test": {"f1": n}}}
        store.write_json(folder / "record.json", record)
    return planned


def test_every_objective_is_planned_with_every_seed_and_nothing_else_changed(config):
    planned = results.planned(config)
    expected = [(name, seed) for name in OBJECTIVES for seed in (0, 1)]
    assert [(run.objective, run.seed) for run in planned] == expected
    same = {run.replace(objective="distill", seed=0) for run in planned}
    assert same == {config.replace(objective="distill")}
    assert len(results.planned(config.replace(seeds=3, seed=7))) == 3 * len(OBJECTIVES)


def test_the_records_of_all_planned_adapters_are_read_in_their_order(config, trained):
    records = results.adapter_records(config)
    assert [record["results"]["test"]["f1"] for record in records] == list(range(14))
    assert [StudyConfig(**record["config"]) for record in records] == trained


def test_the_first_missing_adapter_is_named_with_the_command_that_trains_it(config, trained):
    for run in (trained[5], trained[13]):
        (store.adapter_folder(run) / "record.json").unlink()
    with pytest.raises(store.RecordError) as raised:
        results.adapter_records(config)
    run, message = trained[5], str(raised.value)
    assert message.startswith(f"{store.adapter_folder(run)}/record.json: ")
    command = "`papermill notebooks/02_train_adapter.ipynb out.ipynb -p preset smoke"
    assert f"{command} -p objective {run.objective} -p seed {run.seed}`" in message
    assert "`make report PRESET=smoke`" in message


def test_a_truncated_record_of_an_adapter_is_named(config, trained):
    path = store.adapter_folder(trained[3]) / "record.json"
    path.write_text(path.read_text()[:20])
    message = r"option1_reconstruction-seed1/record\.json: truncated"
    with pytest.raises(store.RecordError, match=message):
        results.adapter_records(config)


def test_answers_and_curves_of_all_adapters_have_objective_and_seed(config, trained):
    f1 = {(run.objective, run.seed): n for n, run in enumerate(trained)}
    answers, curves = results.adapter_answers(config), results.curves(config)
    assert len(answers) == 14 * 3 and curves["step"].tolist() == [0, 1] * 14
    assert answers.groupby(["condition", "seed"], sort=False)["f1"].mean().to_dict() == f1
    last = curves[curves["step"] == 1].set_index(["objective", "seed"])["loss"]
    assert last.to_dict() == f1


@pytest.mark.parametrize(
    "read, name", [(results.adapter_answers, "answers"), (results.curves, "curve")]
)
def test_a_missing_table_of_an_adapter_is_named(config, trained, read, name):
    (store.adapter_folder(trained[2]) / f"{name}.parquet").unlink()
    with pytest.raises(store.RecordError, match=rf"option1_reconstruction-seed0/{name}\.parquet"):
        read(config)


def test_gradient_readings_are_of_the_adapters_that_have_any(config, trained):
    table = results.gradient_readings(config)
    read = [(trained[n].objective, trained[n].seed, n) for n in (0, 5)]
    assert list(table[["objective", "seed", "value"]].itertuples(index=False, name=None)) == read
    for n in (0, 5):
        (store.adapter_folder(trained[n]) / "gradients.parquet").unlink()
    with pytest.raises(store.RecordError, match="set gradients_every and train again"):
        results.gradient_readings(config)


# ---------------------------------------------------------------- committed tables


@pytest.fixture(scope="module")
def committed_runs() -> pd.DataFrame:
    return results.committed("full", "runs_10000x3.csv")


@pytest.fixture(scope="module")
def committed_scores() -> pd.DataFrame:
    return results.committed("full", "runs_10000x3.parquet")


@pytest.mark.parametrize("name", ["none.csv", "none.parquet"])
def test_a_missing_committed_table_is_named_with_the_command_that_makes_it(name):
    message = rf"records/full/{name}: no such table; `python -m stage1\.study\.sweep`"
    with pytest.raises(store.RecordError, match=message):
        results.committed("full", name)


def test_a_committed_table_is_read_as_csv_or_parquet(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RECORDS", str(tmp_path))
    table = pd.DataFrame({"objective": ["distill"], "f1": [12.5]})
    store.write_table(tmp_path / "mine" / "runs.parquet", table)
    table.to_csv(tmp_path / "mine" / "runs.csv", index=False)
    for name in ("runs.csv", "runs.parquet"):
        pd.testing.assert_frame_equal(results.committed("mine", name), table)


@pytest.mark.parametrize("examples, epochs", [(640, 2), (2_500, 3), (10_000, 3), (40_000, 3)])
def test_a_committed_budget_has_different_runs_with_three_seeds_at_least(examples, epochs):
    runs = results.committed("full", f"runs_{examples}x{epochs}.csv")
    assert len(runs) == len(runs[RUN].drop_duplicates()) and runs["f1"].between(0, 100).all()
    assert set(runs["objective"]) <= set(OBJECTIVES)
    assert (runs["condition"] == runs["objective"]).all()
    assert (runs["train_examples"] == examples).all() and (runs["epochs"] == epochs).all()
    assert runs.groupby(ADAPTER).size().min() >= 3


def test_the_committed_budget_has_five_seeds_of_all_objectives_on_the_best_adapter(committed_runs):
    counts = committed_runs.groupby(ADAPTER).size()
    assert len(counts) == len(OBJECTIVES) * 4
    assert (counts.xs(("pca_inverse", "calibrated"), level=(1, 2)) == 5).all()


def test_the_committed_scores_of_answers_agree_with_the_committed_runs(
    committed_runs, committed_scores
):
    runs, answers = committed_runs.set_index(RUN), committed_scores.groupby(RUN, observed=True)
    columns = ["f1", "em", "ended", "tokens"]
    double = committed_scores.astype(dict.fromkeys(columns, "float64"))
    means = double.groupby(RUN, observed=True)[columns].mean()
    assert set(means.index) == set(runs.index)
    assert (answers.size() == runs["questions"].loc[means.index]).all()
    assert (answers["id"].nunique() == 2_000).all()
    for name in columns:
        np.testing.assert_allclose(means[name], runs[name].loc[means.index], rtol=1e-5)


def test_a_contrast_of_the_committed_scores_is_the_difference_of_the_runs_means(
    committed_runs, committed_scores
):
    both = ["distill", "option2_on_policy"]
    runs, scores = (t[t["objective"].isin(both)] for t in (committed_runs, committed_scores))
    means = runs.groupby("initialisation")["f1"].mean()
    difference = contrast(scores, "initialisation", *STARTS)
    assert difference.mean == pytest.approx(means["pca_inverse"] - means["random"], abs=1e-3)
    assert difference.low < difference.mean < difference.high


# ---------------------------------------------------------------- budgets


UNTRAINED = pd.DataFrame(
    {"condition": ["embeddings", *FLOORS, "pca_inverse"], "f1": [80.0, 10.0, 20.0, 25.0]}
)


def runs(objective: str, f1: list[float], start: str = STARTS[0], scaling: str = SCALINGS[0]):
    """Return one run per F1, with half as much EM and fvu of 0.1, 0.2, ..."""
    fvu = [0.1 * (seed + 1) for seed in range(len(f1))]
    table = pd.DataFrame({"seed": range(len(f1)), "f1": f1, "fvu": fvu})
    return table.assign(
        objective=objective, initialisation=start, output_scaling=scaling, em=table["f1"] / 2
    )


def test_a_budget_table_averages_over_the_seeds_of_each_adapter():
    table = pd.concat([runs("distill", [40.0, 50.0, 60.0]), runs("as_found", [20.0, 30.0])])
    table = budget_table(table.sample(frac=1, random_state=1), UNTRAINED)
    measures = ["f1", "f1_sd", "em", "retention", "fvu", "seeds"]
    assert list(table) == [*ADAPTER, *measures]
    assert table["objective"].tolist() == ["as_found", "distill"]
    expected = [25, 50**0.5, 12.5, 100 * 5 / 60, 0.15, 2], [50, 10, 25, 50, 0.2, 3]
    np.testing.assert_allclose(table[measures], expected)


def test_a_budget_table_has_a_row_per_adapter_in_the_order_of_the_objectives():
    adapters = [[start, scaling] for start in STARTS for scaling in SCALINGS]
    parts = [
        runs(name, [float(place)], *adapter)
        for name in reversed(OBJECTIVES)
        for place, adapter in reversed(list(enumerate(adapters)))
    ]
    table = budget_table(pd.concat(parts), UNTRAINED)
    expected = [[name, *adapter] for name in OBJECTIVES for adapter in adapters]
    assert table[ADAPTER].to_numpy().tolist() == expected
    assert table["f1"].tolist() == [0, 1, 2, 3] * len(OBJECTIVES) and (table["seeds"] == 1).all()


def test_the_committed_runs_make_a_budget_table(committed_runs):
    untrained = results.committed("full", "untrained.csv")
    f1 = untrained.set_index("condition")["f1"]
    table = budget_table(committed_runs, untrained)
    assert len(table) == 28 and table["f1_sd"].notna().all()
    floor = f1[FLOORS].max()
    retention = 100 * (table["f1"] - floor) / (f1["embeddings"] - floor)
    np.testing.assert_allclose(table["retention"], retention)
    words = results.headline(table)
    assert words["objective"].tolist() == list(OBJECTIVES) and words.shape == (7, 5)
    first = table.iloc[0]
    expected = f"{first['f1']:.1f} ± {first['f1_sd']:.1f}"
    assert words[f"{first['initialisation']}, {first['output_scaling']}"][0] == expected


@pytest.mark.parametrize(
    "shares, expected",
    [
        ({1.0: 0.4, 100.0: 0.6}, 10.0),
        ({100.0: 0.6, 1.0: 0.4}, 10.0),
        ({0.01: 0.1, 0.1: 0.2, 1.0: 0.8, 10.0: 0.9}, 10**-0.5),
        ({1.0: 0.25, 16.0: 0.75, 1_000.0: 0.99}, 4.0),
        ({1.0: 0.3, 2.0: 0.5}, 2.0),
        ({1.0: 0.1, 10.0: 0.4}, math.nan),
        ({1.0: 0.6, 10.0: 0.9}, math.nan),
        ({}, math.nan),
    ],
)
def test_the_crossover_is_where_a_share_passes_one_half_in_log_weight(shares, expected):
    assert crossover(shares) == pytest.approx(expected, nan_ok=True)
