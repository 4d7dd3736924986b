"""What a run will cost: rates that fit their own numbers, and a measurement that leaves the training as it was."""

import re

import pandas as pd
import pytest

from stage1 import store
from stage1.study import cost, study


@pytest.fixture
def prepared(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    return study.prepare(tiny_config.replace(train_examples=48, selection_examples=4))


def test_the_sentence_names_device_rates_and_the_whole_budget(prepared):
    told = cost.training(prepared)
    examples, tokens, steps = (
        float(re.search(pattern, told)[1].replace(",", ""))
        for pattern in (
            r"([\d,.]+) examples/s",
            r"([\d,.]+) tokens/s",
            r"([\d,]+) steps in about \d+:\d\d:\d\d",
        )
    )
    train = prepared.encoded["train"]
    assert told.startswith("Training on the CPU: ") and "memory" not in told
    assert steps == prepared.config.epochs * -(-len(train) // prepared.config.batch_size)
    length = sum(map(len, train.prompts)) / len(train) + sum(map(len, train.answers)) / len(train)
    assert tokens / examples == pytest.approx(length, rel=0.3)


def test_measuring_changes_nothing_of_the_training(prepared):
    study.obtain(prepared)
    before = store.read_table(store.adapter_folder(prepared.config) / "curve.parquet")
    cost.training(prepared)
    assert not (store.adapter_folder(prepared.config) / "checkpoint.pt").exists()
    study.obtain(prepared)
    after = store.read_table(store.adapter_folder(prepared.config) / "curve.parquet")
    times = ["seconds", "seconds_total"]
    pd.testing.assert_frame_equal(after.drop(columns=times), before.drop(columns=times))


def test_the_evaluation_is_told_for_all_conditions(prepared):
    told = cost.evaluation(prepared, 7)
    assert re.fullmatch(
        r"Answers on the CPU: [\d,.]+ examples/s, [\d,]+ tokens/s; 7 conditions of 24 questions in about 0:\d\d:\d\d",
        told,
    )


def test_an_adapter_that_the_repository_holds_is_not_measured(prepared, monkeypatch):
    monkeypatch.setattr(store, "committed_adapter", lambda config: store.adapter_folder(config))
    monkeypatch.setattr(cost, "train", lambda *arguments: pytest.fail("trained"))
    assert "not trained here" in cost.training(prepared)
