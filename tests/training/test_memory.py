"""The largest batch: the search, what it is measured on, and `batch_size: auto` in a study."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stage1 import objectives, store, study
from stage1.corpus.prompts import Encoded
from stage1.study import preparation
from stage1.training import memory


@pytest.fixture(scope="module")
def prepared(tiny_config):
    return study.prepare(tiny_config.replace(train_examples=40, selection_examples=4))


@given(fits=st.integers(8, 3_000), most=st.integers(8, 2_000))
def test_the_search_finds_the_largest_multiple_of_eight_that_fits(fits, most):
    tried = []
    found = memory.largest(lambda size: tried.append(size) or size <= fits, most)
    assert found == max(8, min(fits, most) // 8 * 8)
    assert len(tried) < 25 and max(tried) <= max(8, 2 * fits)


def test_it_is_an_error_if_not_even_the_smallest_batch_fits():
    words = "batch_size='auto': expected memory for 8 examples at least"
    with pytest.raises(ValueError, match=words):
        memory.largest(lambda size: False, 64)


def test_the_measured_batch_holds_the_longest_examples():
    names, prompts = list("abcd"), [[i + 1] * n for i, n in enumerate([3, 9, 5, 7])]
    encoded = Encoded(names, names, [["x"]] * 4, prompts, [[2]] * 4, shortened=0, dropped=0)
    assert [len(prompt) for prompt in memory.longest(encoded, 3).prompts] == [9, 7, 5]
    assert [len(prompt) for prompt in memory.longest(encoded, 6).prompts] == [9, 7, 5, 3, 9, 7]


def test_auto_needs_a_gpu_and_says_so_before_anything_is_loaded(tiny_config, monkeypatch):
    monkeypatch.setattr(preparation.loading, "load", lambda config: pytest.fail("loaded"))
    words = "batch_size='auto': expected a number where there is no GPU"
    with pytest.raises(ValueError, match=words):
        study.prepare(tiny_config.replace(batch_size="auto"))


def test_auto_is_measured_once_recorded_and_trained_with(prepared, monkeypatch, tmp_path):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    auto = dataclasses.replace(prepared, config=prepared.config.replace(batch_size="auto"))
    calls = []
    monkeypatch.setattr(memory, "largest_batch", lambda *given: calls.append(given) or 24)
    record = study.obtain(auto)
    again = dataclasses.replace(auto)
    assert (auto.resolved.batch_size, again.resolved.batch_size, len(calls)) == (24, 24, 1)
    curve = store.read_table(record.parent / "curve.parquet")
    assert curve["examples"].max() == 24
    assert store.read_json(record.parent / "batch_size.json") == {"batch_size": 24}


def test_a_step_that_needs_microbatches_does_not_fit(prepared, monkeypatch):
    """On a GPU whose memory runs out at more than ten examples; its counters are faked."""
    objective = objectives.find("answer_ce")

    def limited(adapter, batch, context):
        if len(batch) > 10:
            raise torch.OutOfMemoryError
        return objective(adapter, batch, context)

    monkeypatch.setitem(objectives.FUNCTIONS, "answer_ce", limited)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1_000)

    def peak(size):
        batch = memory.longest(prepared.encoded["train"], size)
        context = study.objective_context(prepared)
        return memory.step_peak(study.new_adapter(prepared), context, batch)

    assert [peak(8), peak(16)] == [1_000, None]
