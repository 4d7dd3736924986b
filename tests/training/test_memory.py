"""The largest batch: the search, the batch it is measured on, and what `batch_size: auto` becomes in a study."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stage1 import store
from stage1.corpus.prompts import Encoded
from stage1.study import study
from stage1.training import memory


@given(fits=st.integers(8, 3_000), most=st.integers(8, 2_000))
def test_the_largest_multiple_of_eight_that_fits_is_found(fits, most):
    tried = []
    found = memory.largest(lambda size: tried.append(size) or size <= fits, most)
    assert found == max(8, min(fits, most) // 8 * 8)
    assert len(tried) < 25 and max(tried) <= max(8, 2 * fits)


def test_no_batch_is_refused_where_not_even_the_smallest_fits():
    with pytest.raises(
        ValueError, match="batch_size='auto': expected memory for 8 examples at least"
    ):
        memory.largest(lambda size: False, 64)


def test_it_is_measured_on_the_longest_examples():
    lengths = [3, 9, 5, 7]
    prompts = [[i + 1] * n for i, n in enumerate(lengths)]
    encoded = Encoded(
        list("abcd"), list("abcd"), [["x"]] * 4, prompts, [[2]] * 4, shortened=0, dropped=0
    )
    assert [len(prompt) for prompt in memory.longest(encoded, 3).prompts] == [9, 7, 5]
    assert [len(prompt) for prompt in memory.longest(encoded, 6).prompts] == [9, 7, 5, 3, 9, 7]


def test_auto_needs_a_gpu_and_says_so_before_anything_is_loaded(tiny_config, monkeypatch):
    monkeypatch.setattr(
        study.language_model, "load", lambda config: pytest.fail("loaded before the check")
    )
    with pytest.raises(
        ValueError, match="batch_size='auto': expected a number where there is no GPU"
    ):
        study.prepare(tiny_config.replace(batch_size="auto"))


def test_auto_is_measured_once_recorded_and_trained_with(tiny_config, monkeypatch, tmp_path):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    prepared = study.prepare(tiny_config.replace(train_examples=40, selection_examples=4))
    auto = dataclasses.replace(prepared, config=prepared.config.replace(batch_size="auto"))
    calls = []
    monkeypatch.setattr(
        study.memory, "largest_batch", lambda *arguments: calls.append(arguments) or 24
    )
    record = study.obtain(auto)
    again = dataclasses.replace(auto)
    assert (auto.resolved.batch_size, again.resolved.batch_size, len(calls)) == (24, 24, 1)
    curve = store.read_table(record.parent / "curve.parquet")
    assert curve["examples"].max() == 24
    assert store.read_json(record.parent / "batch_size.json") == {"batch_size": 24}


def test_a_step_that_needed_several_passes_does_not_fit(tiny_config, monkeypatch):
    """On a card whose memory runs out at more than ten examples; the counters of its memory are stand-ins."""
    prepared = study.prepare(tiny_config.replace(train_examples=40, selection_examples=4))
    objective = memory.set_up(
        study.new_adapter(prepared), study.objective_context(prepared), 1, None
    ).objective

    def limited(adapter, batch, context):
        if len(batch) > 10:
            raise torch.OutOfMemoryError
        return objective(adapter, batch, context)

    monkeypatch.setitem(memory_objectives(), "answer_ce", limited)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1_000)
    peaks = [
        memory.step_peak(
            study.new_adapter(prepared),
            study.objective_context(prepared),
            memory.longest(prepared.encoded["train"], n),
        )
        for n in (8, 16)
    ]
    assert peaks == [1_000, None]


def memory_objectives() -> dict:
    from stage1.objectives import OBJECTIVES

    return OBJECTIVES
