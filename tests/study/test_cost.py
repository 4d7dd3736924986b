"""Cost estimates: rates that agree with each other, and a training that they do not disturb."""

import re
from dataclasses import replace

import pandas as pd
import pytest

from stage1 import store, study
from stage1.study import cost


def number(pattern: str, text: str) -> float:
    return float(re.search(pattern, text)[1].replace(",", ""))


def test_the_sentence_names_device_rates_and_the_whole_budget(prepared):
    sentence, train = cost.training(prepared), prepared.encoded["train"]
    assert sentence.startswith("Training on the CPU: ") and "memory" not in sentence
    assert number(r"([\d,]+) steps in about \d+:\d\d:\d\d", sentence) == 2 * 24 / 8
    examples = number(r"([\d,.]+) examples/s", sentence)
    length = sum(map(len, train.prompts + train.answers)) / len(train)
    tokens = number(r"([\d,.]+) tokens/s", sentence)
    assert tokens / examples == pytest.approx(length, rel=0.3)


def test_a_warm_up_is_estimated_apart(prepared):
    assert cost.warmup(prepared) == ""
    warm = replace(prepared, config=prepared.config.replace(warmup_steps=1_000))
    assert re.fullmatch(r"1,000 warm-up steps in about 0:\d\d:\d\d; ", cost.warmup(warm))


def test_the_estimate_leaves_the_training_as_it_was(config, prepared, made_once):
    cost.training(prepared)
    assert not (store.adapter_folder(config) / "checkpoint.pt").exists()
    path = study.obtain(prepared)
    curves = [store.read_table(folder / "curve.parquet") for folder in (path.parent, made_once)]
    times = ["seconds", "seconds_total"]
    pd.testing.assert_frame_equal(*(curve.drop(columns=times) for curve in curves))


def test_the_evaluation_is_estimated_for_all_conditions(prepared):
    rates = r"Answers on the CPU: [\d,.]+ examples/s, [\d,]+ tokens/s; "
    budget = r"7 conditions of 24 questions in about 0:\d\d:\d\d"
    assert re.fullmatch(rates + budget, cost.evaluation(prepared, 7))


def test_a_committed_adapter_is_not_measured(prepared, monkeypatch):
    monkeypatch.setattr(store, "committed_adapter", lambda config: store.adapter_folder(config))
    monkeypatch.setattr(cost, "train", lambda *arguments: pytest.fail("trained"))
    assert "not trained here" in cost.training(prepared)
