"""Which searched learning rate a config takes."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from stage1 import store, study
from stage1.config import StudyConfig
from stage1.names import OBJECTIVES
from stage1.study import learning_rate, rates
from stage1.study.rates import FALLBACK_RATE

TRIED = {
    "preset": "elsewhere", "language_model": "shipped", "objective": "answer_ce",
    "initialisation": "pca_inverse", "output_scaling": "calibrated", "compressed_width": 24,
    "train_examples": 1_200, "epochs": 1, "batch_size": 8, "seed": 100, "warmup_steps": 0,
}  # fmt: skip
SIZES = {"train_examples": 1_200, "epochs": 1, "batch_size": 8}
OPEN = StudyConfig(objective="answer_ce", warmup_steps=0, **SIZES)
LONG = {"train_examples": 10_000, "epochs": 3, "batch_size": 64}  # 469 steps, where OPEN has 150


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """Write the table of trials: each is a learning rate, its F1, and what else differs."""

    def write(*trials: tuple) -> None:
        rows = []
        for rate, f1, changes in trials:
            rows.append(TRIED | {"learning_rate": rate, "selection_f1": f1} | changes)
        columns = ["selection_f1", "learning_rate", *TRIED]
        columns += [name for row in rows for name in row if name not in columns]
        pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "learning_rates.csv", index=False)
        monkeypatch.setattr(rates, "LEARNING_RATES", tmp_path / "learning_rates.csv")

    return write


def test_the_configs_own_rate_is_taken(tried):
    tried((3.0e-3, 90.0, {}))
    assert learning_rate(OPEN.replace(learning_rate=0.25)) == 0.25


def test_the_rate_with_the_highest_f1_is_taken(tried):
    tried((1.0e-3, 50.0, {}), (3.0e-3, 90.0, {}), (1.0e-2, 60.0, {}))
    assert learning_rate(OPEN) == 3.0e-3


def test_the_f1_of_a_rate_is_the_mean_over_its_seeds(tried):
    other = {"seed": 101}
    tried((1e-3, 70.0, {}), (1e-3, 74.0, other), (3e-3, 99.0, {}), (3e-3, 20.0, other))
    assert learning_rate(OPEN) == 1.0e-3


@pytest.mark.parametrize(
    "other",
    [
        {"language_model": "owner/other"},
        {"objective": "distill"},
        {"initialisation": "random"},
        {"architecture": "affine"},
        {"projection": "trained"},
        {"output_scaling": "unit_rms"},
        {"compressed_width": 12},
        {"labels_on": "answer"},
    ],
)
def test_trials_of_another_adapter_do_not_count(tried, other):
    tried((1.0e-3, 50.0, {}), (3.0e-3, 90.0, other))
    assert learning_rate(OPEN) == 1.0e-3
    assert learning_rate(OPEN.replace(**other)) == 3.0e-3


def test_only_the_nearest_budget_in_optimizer_steps_counts(tried):
    tried((1.0e-2, 40.0, {}), (1.0e-3, 95.0, LONG))
    assert learning_rate(OPEN) == 1.0e-2
    assert learning_rate(OPEN.replace(**LONG)) == 1.0e-3
    # Distance is a ratio: 150 to 260 is 1.73 and 260 to 469 is 1.80; 270 to 469 is 1.74.
    assert learning_rate(OPEN.replace(train_examples=8 * 260)) == 1.0e-2
    assert learning_rate(OPEN.replace(train_examples=8 * 270)) == 1.0e-3


def test_only_trials_of_the_same_preset_count_whatever_the_budget(tried):
    own = LONG | {"preset": "quick"}
    tried((1.0e-2, 95.0, {}), (1.0e-3, 60.0, own), (3.0e-3, 50.0, own))
    assert OPEN.preset == "quick" and learning_rate(OPEN) == 1.0e-3
    assert learning_rate(OPEN.replace(preset="mine")) == 1.0e-2


def test_trials_of_the_preset_on_another_objective_do_not_hide_those_elsewhere(tried):
    tried((1.0e-2, 50.0, {}), (1.0e-3, 90.0, {"preset": "quick", "objective": "distill"}))
    assert learning_rate(OPEN) == 1.0e-2


def test_budgets_of_equally_many_steps_count_together(tried):
    same = {"train_examples": 600, "epochs": 2}
    tried((1.0e-3, 60.0, {}), (3.0e-3, 61.0, {}), (1.0e-3, 80.0, same), (3.0e-3, 50.0, same))
    assert learning_rate(OPEN) == 1.0e-3


def test_without_matching_trials_there_is_a_fallback(tried):
    tried((3.0e-3, 90.0, {"objective": "distill"}))
    assert learning_rate(OPEN) == FALLBACK_RATE == 0.001
    tried()
    assert learning_rate(OPEN) == FALLBACK_RATE


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_has_a_learning_rate_in_the_shipped_table(objective):
    shipped = pd.read_csv(rates.LEARNING_RATES)
    assert learning_rate(StudyConfig(objective=objective)) in shipped["learning_rate"].tolist()
    assert objective in shipped["objective"].tolist()


def test_an_adapter_is_trained_at_the_searched_rate_which_its_checkpoint_holds(
    config, prepared, tried
):
    """The folder's name is that of the config with its rate left open."""
    names = ("language_model", "compressed_width", "train_examples")
    tried((2.0e-3, 1.0, {name: getattr(config, name) for name in names}))
    open_rate = config.replace(learning_rate=None)
    _, progress = study.train_adapter(replace(prepared, config=open_rate))
    assert max(row["learning_rate"] for row in progress.curve) == 2.0e-3
    state = torch.load(store.adapter_folder(open_rate) / "checkpoint.pt", weights_only=True)
    assert state["config"] == store.identity(open_rate.replace(learning_rate=2.0e-3))


def test_only_the_nearest_length_of_a_warm_up_counts(tried):
    tried((1e-3, 50.0, {"warmup_steps": 400}), (3e-3, 90.0, {"warmup_steps": 5_000}))
    assert learning_rate(OPEN.replace(warmup_steps=5_000)) == 3.0e-3
    assert learning_rate(OPEN.replace(warmup_steps=600)) == 1.0e-3
    assert learning_rate(OPEN.replace(warmup_steps=2_000)) == 3.0e-3
