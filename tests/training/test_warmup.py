"""The reconstruction warm-up: weights, draws, learning, resuming, several adapters at once."""

import dataclasses

import numpy as np
import pytest
import torch

from stage1 import adapter as adapters
from stage1 import store, study
from stage1.config import StudyConfig
from stage1.evaluation import reconstruction
from stage1.training import warmup
from stage1.training.microbatches import TrainingError
from stage1.training.warmup import draw_entries, entry_weights, warm_up


@pytest.fixture(scope="module")
def prepared(tiny_config):
    return study.prepare(tiny_config.replace(warmup_steps=30, warmup_rate=3.0e-2))


def warmed(prepared, **changes):
    """A new adapter of the changed config, warmed up, and its curve."""
    config = prepared.config.replace(**changes)
    one = dataclasses.replace(prepared, config=config)
    adapter = study.new_adapter(one)
    (curve,) = warm_up([adapter], study.objective_context(one), prepared.counts, show=False)
    return adapter, curve


def flat(adapter) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in adapter.parameters()])


def test_weights_mix_token_shares_with_uniform_ones():
    counts = np.array([3, 0, 1, 0])
    assert entry_weights(counts, 0.0, 4).tolist() == [0.75, 0.0, 0.25, 0.0]
    assert entry_weights(counts, 1.0, 4).tolist() == [0.25] * 4
    assert entry_weights(counts, 0.5, 4).tolist() == [0.5, 0.125, 0.25, 0.125]
    assert entry_weights(np.array([1, 0, 0, 0]), 0.5, 2).tolist() == [0.75, 0.25, 0.0, 0.0]


def test_draws_follow_the_weights_and_depend_on_seed_and_step_alone():
    weights = torch.tensor([0.5, 0.0, 0.25, 0.25])
    for step in range(20):
        drawn = draw_entries(weights, 8, seed=1, step=step)
        assert torch.bincount(drawn, minlength=4).tolist() == [4, 0, 2, 2]
    weights = torch.rand(100)
    assert torch.equal(draw_entries(weights, 16, 0, 3), draw_entries(weights, 16, 0, 3))
    assert len({tuple(draw_entries(weights, 16, 0, step).tolist()) for step in range(9)}) > 4


@pytest.mark.parametrize("initialisation", ["pca_inverse", "random"])
@pytest.mark.parametrize("batch", [0, 512])
def test_the_error_over_the_weighted_vocabulary_falls(prepared, initialisation, batch):
    one = study.prepare(StudyConfig(preset="smoke", train_examples=60, device="cpu"))
    _, curve = warmed(one, initialisation=initialisation, warmup_batch=batch, warmup_steps=40)
    assert [row["step"] for row in curve] == list(range(40))
    fvu = [row["fvu"] for row in curve]
    assert sum(fvu[-5:]) < 0.95 * sum(fvu[:5])


def test_the_first_reading_is_the_fvu_of_the_start(prepared):
    """With token counts alone as weights, the warm-up's fvu is the one that evaluation measures."""
    config = prepared.config.replace(warmup_uniform=0.0)
    start = study.new_adapter(dataclasses.replace(prepared, config=config))
    table = prepared.lm.embedding_table
    rebuilt = adapters.decode(start, prepared.codebook)
    _, curve = warmed(prepared, warmup_uniform=0.0)
    expected = reconstruction(table, rebuilt, prepared.counts)["fvu"]
    assert curve[0]["fvu"] == pytest.approx(expected, rel=1e-4)


def test_chunks_of_the_table_add_up(prepared, monkeypatch):
    whole, _ = warmed(prepared, warmup_steps=3)
    monkeypatch.setattr(warmup, "CHUNK", 1_000)
    parts, _ = warmed(prepared, warmup_steps=3)
    assert torch.allclose(flat(whole), flat(parts), atol=1e-4)


def test_no_steps_leave_the_adapter_as_it_is(prepared):
    adapter, curve = warmed(prepared, warmup_steps=0)
    assert curve == []
    assert torch.equal(flat(adapter), flat(study.new_adapter(prepared)))


def test_an_interrupted_warm_up_ends_as_an_uninterrupted_one(prepared, tmp_path, monkeypatch):
    context = study.objective_context(prepared)
    whole, resumed = study.new_adapter(prepared), study.new_adapter(prepared)
    (expected,) = warm_up([whole], context, prepared.counts, show=False)
    checkpoint, taken = tmp_path / "warmup.pt", []
    original = warmup.add_gradients

    def fails_once(*arguments):
        taken.append(1)
        if len(taken) == 18:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(warmup, "CHECKPOINT_EVERY", 5)
    monkeypatch.setattr(warmup, "add_gradients", fails_once)
    with pytest.raises(KeyboardInterrupt):
        warm_up([study.new_adapter(prepared)], context, prepared.counts, False, checkpoint)
    (curve,) = warm_up([resumed], context, prepared.counts, False, checkpoint)
    assert len(taken) == 18 + 15  # resumed after the fifteenth step
    assert torch.equal(flat(whole), flat(resumed)) and curve == expected


def test_a_checkpoint_of_another_config_is_refused(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(warmup, "CHECKPOINT_EVERY", 10)
    context, checkpoint = study.objective_context(prepared), tmp_path / "warmup.pt"
    warm_up([study.new_adapter(prepared)], context, prepared.counts, False, checkpoint)
    other = study.objective_context(
        prepared, prepared.config.replace(warmup_rate=1.0e-3, learning_rate=0.1)
    )
    with pytest.raises(store.RecordError, match="no checkpoint of this config"):
        warm_up([study.new_adapter(prepared)], other, prepared.counts, False, checkpoint)


def test_an_error_that_is_no_number_is_reported_with_its_step(prepared, monkeypatch):
    def nothing(stack, *_):
        for parameter in stack.parameters:
            parameter.grad = torch.zeros_like(parameter)
        return torch.full((1,), torch.nan)

    monkeypatch.setattr(warmup, "add_gradients", nothing)
    with pytest.raises(TrainingError, match="warm-up, step 0: fvu=nan; try a lower warmup_rate"):
        warmed(prepared)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "affine"},
        {"architecture": "soft_codebook", "warmup_batch": 256},
        {"projection": "trained"},
    ],
)
def test_a_baseline_is_warmed_up_resumed_and_stacked(prepared, tmp_path, monkeypatch, changes):
    monkeypatch.setattr(warmup, "CHECKPOINT_EVERY", 10)
    config = prepared.config.replace(warmup_steps=20, warmup_rate=3.0e-3, **changes)
    one = dataclasses.replace(prepared, config=config)
    context, checkpoint = study.objective_context(one), tmp_path / "warmup.pt"
    first, second, resumed = (study.new_adapter(one) for _ in range(3))
    curve, _ = warm_up([first, second], context, prepared.counts, False, None)
    assert curve[-1]["fvu"] < curve[0]["fvu"]
    alone = study.new_adapter(one)
    warm_up([alone], context, prepared.counts, False, checkpoint)
    for stacked in (first, second):
        assert torch.allclose(flat(stacked), flat(alone), atol=2e-4)
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == 20  # the last checkpoint; nothing is left to do from there
    warm_up([resumed], context, prepared.counts, False, checkpoint)
    assert torch.equal(flat(resumed), flat(alone))


def test_adapters_warmed_up_at_once_end_as_each_alone(prepared):
    changes = [
        {"seed": 0},
        {"seed": 1, "initialisation": "random"},
        {"seed": 2, "output_scaling": "unit_rms"},
    ]
    alone = [warmed(prepared, **change) for change in changes]
    made = [
        study.new_adapter(dataclasses.replace(prepared, config=prepared.config.replace(**c)))
        for c in changes
    ]
    curves = warm_up(made, study.objective_context(prepared), prepared.counts, show=False)
    for (adapter, expected), together, curve in zip(alone, made, curves, strict=True):
        assert torch.allclose(flat(adapter), flat(together), atol=2e-4)
        assert curve[-1]["fvu"] == pytest.approx(expected[-1]["fvu"], rel=1e-3)
