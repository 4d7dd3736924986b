"""Evaluation of many adapters: shared batches give what separate ones give."""

import pandas as pd
import pytest
import torch

from stage1 import adapter as adapters
from stage1 import study
from stage1.evaluation import together
from stage1.evaluation.conditions import evaluate
from stage1.evaluation.together import evaluate_in_shared_batches, evaluate_together


@pytest.fixture(scope="module")
def prepared(tiny_config):
    return study.prepare(
        tiny_config.replace(train_examples=8, selection_examples=4, test_examples=9)
    )


@pytest.fixture(scope="module")
def tables(prepared):
    """The tables of two adapters and the original embeddings."""
    made = []
    for seed in (0, 1):
        config = prepared.config.replace(seed=seed, initialisation="random")
        table, counts = prepared.lm.embedding_table, torch.from_numpy(prepared.counts)
        adapter = adapters.make(prepared.compression, table, counts, config)
        made.append(adapters.decode(adapter, prepared.codebook))
    return torch.stack([*made, prepared.lm.embedding_table.detach()])


@pytest.mark.parametrize("function", [evaluate_in_shared_batches, evaluate_together])
def test_every_condition_reads_its_own_table(prepared, tables, function):
    test, names = prepared.encoded["test"], ["one", "other", "original"]
    frames = function(prepared.lm, test, names, tables, prepared.config)
    for frame, name, table in zip(frames, names, tables, strict=True):
        alone = evaluate(prepared.lm, test, name, table, prepared.config, "")
        pd.testing.assert_frame_equal(frame, alone, rtol=1e-4)
    assert frames[0]["prediction"].tolist() != frames[2]["prediction"].tolist()


@pytest.mark.parametrize("name, prompts", [("generate", 27), ("teacher_forced", 9)])
def test_batches_halve_where_memory_runs_out(prepared, tables, monkeypatch, capsys, name, prompts):
    test, names = prepared.encoded["test"], ["one", "other", "original"]
    given = prepared.lm, test, names, tables, prepared.config
    expected = evaluate_in_shared_batches(*given)
    function, sizes = getattr(together, name), []

    def limited(*arguments):
        sizes.append(arguments[-1])
        if arguments[-1] > 4:
            raise torch.OutOfMemoryError
        return function(*arguments)

    monkeypatch.setattr(together, name, limited)
    for frame, one in zip(evaluate_in_shared_batches(*given), expected, strict=True):
        pd.testing.assert_frame_equal(frame, one, rtol=1e-4)
    assert sizes[0] == prompts and sizes[-1] in (3, 4)
    assert f"memory runs out with {prompts} prompts at a time" in capsys.readouterr().out


def test_one_prompt_that_does_not_fit_is_an_error(prepared, tables, monkeypatch):
    def failing(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(together, "generate", failing)
    words = "^shared evaluation: memory runs out with one prompt at a time; try recomputed"
    with pytest.raises(RuntimeError, match=words):
        test = prepared.encoded["test"]
        evaluate_in_shared_batches(prepared.lm, test, ["a"], tables[:1], prepared.config)
