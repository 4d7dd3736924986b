"""Evaluation of many adapters: shared batches give what separate ones give."""

import pandas as pd
import pytest
import torch

from stage1 import adapter as adapters
from stage1 import study
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
