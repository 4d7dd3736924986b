"""Slips that train as well as the real thing: what is kept, moved, read again, or half written."""

import pytest
import torch
from training_bench import BASE, Interrupted, interrupt, same_weights, watch, weights_of

from stage1 import adapter as adapters
from stage1 import loss_parts, store
from stage1.training import loop, warmup
from stage1.training.stacked import StackedAdapters
from stage1.training.together import train_together
from stage1.training.warmup import warm_up

HALF = BASE.replace(dtype="bfloat16")
"""The config of a language model in bfloat16."""


@pytest.fixture
def half_context(bench, tiny_lm) -> loss_parts.ObjectiveContext:
    """A context whose language model, and so its embedding table, is in bfloat16."""
    tiny_lm.model.to(torch.bfloat16)
    codebook = bench.compression.compress(tiny_lm.embedding_table)
    return loss_parts.ObjectiveContext(tiny_lm, codebook, HALF, 1.0)


# ---------------------------------------------------------------- what is trained


def test_the_adapter_of_a_bfloat16_model_is_made_and_trained_in_float32(bench, half_context):
    table, counts = half_context.lm.embedding_table, torch.from_numpy(bench.counts)
    adapter = adapters.make(bench.compression, table, counts, HALF)
    state = loop.set_up(adapter, half_context, 8, None)
    moved = [p for group in state.optimizer.param_groups for p in group["params"]]
    assert {p.dtype for p in [*adapter.parameters(), *moved]} == {torch.float32}
    batch = loss_parts.ExampleBatch(bench.encoded.prompts[:8], bench.encoded.answers[:8])
    loop.take_step(state, batch)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert any(not torch.equal(p, p.bfloat16().float()) for p in adapter.parameters())


def test_adapters_of_a_bfloat16_model_are_stacked_and_warmed_up_in_float32(bench, half_context):
    table, counts = half_context.lm.embedding_table, torch.from_numpy(bench.counts)
    adapter = adapters.make(bench.compression, table, counts, HALF)
    stack = StackedAdapters([adapter], [HALF], [1e-2], 8)
    assert {p.dtype for p in stack.parameters} == {torch.float32}
    context = loss_parts.ObjectiveContext(
        half_context.lm, half_context.codebook, HALF.replace(warmup_steps=2), 1.0
    )
    warm_up([adapter], context, bench.counts, show=False)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert any(not torch.equal(p, p.bfloat16().float()) for p in adapter.parameters())


@pytest.mark.parametrize("balancing", ["fixed", "uncertainty"])
def test_the_optimizer_holds_the_adapters_parameters_and_no_others(bench, balancing):
    config = BASE.replace(objective="option3_teacher_forced", balancing=balancing)
    adapter = bench.adapter(config)
    state = loop.set_up(adapter, bench.context(config), 8, None)
    held = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    own = {id(p) for p in adapter.parameters()}
    weights = (
        {id(p) for p in state.uncertainty.parameters()} if balancing == "uncertainty" else set()
    )
    assert held == own | weights


# ---------------------------------------------------------------- what is kept


def falling():
    """Return selection scores of which the first is the best."""
    scores = iter(range(100, 0, -1))
    return lambda *_: {"f1": float(next(scores)), "em": 0.0}


def rising():
    scores = iter(range(100))
    return lambda *_: {"f1": float(next(scores)), "em": 0.0}


def test_the_adapter_of_the_last_step_is_kept_whatever_its_reading(bench):
    config = BASE.replace(selection_every=1)
    (best_first, progress), (best_last, _) = (bench.train(config, s()) for s in (falling, rising))
    assert progress.selection[0]["f1"] > progress.selection[-1]["f1"]
    assert same_weights(best_first, best_last)
    assert not same_weights(best_first, weights_of(bench.adapter(config)))


def test_adapters_in_a_group_are_those_of_the_last_step_whatever_their_readings(bench):
    config, ends = BASE.replace(selection_every=1), []
    for make in (falling, rising):
        adapter, scores = bench.adapter(config), make()
        given = ([adapter], [bench.context(config)], bench.encoded, bench.counts)
        train_together(*given, lambda some, scores=scores: [scores() for _ in some])
        ends.append(weights_of(adapter))
    assert same_weights(*ends)


# ---------------------------------------------------------------- what is read after a resume


def test_a_resumed_training_reads_the_examples_that_it_would_have_read(
    bench, tmp_path, monkeypatch
):
    read: list = []
    with monkeypatch.context() as patch:
        watch(patch, "answer_ce", lambda call, batch: read.append(batch.prompts))
        bench.train(BASE)
    whole, read[:] = list(read), []
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, "answer_ce", 5)
        bench.train(BASE, checkpoint=tmp_path / "checkpoint.pt")
    with monkeypatch.context() as patch:
        watch(patch, "answer_ce", lambda call, batch: read.append(batch.prompts))
        bench.train(BASE, checkpoint=tmp_path / "checkpoint.pt")
    assert read == whole[4:] and len(whole) == 8
    assert whole[4] != whole[0]


def test_a_resumed_warm_up_draws_the_entries_that_it_would_have_drawn(bench, tmp_path, monkeypatch):
    config = BASE.replace(warmup_steps=6, warmup_batch=32)
    monkeypatch.setattr(warmup, "CHECKPOINT_EVERY", 2)
    draw, drawn = warmup.draw_entries, []

    def watched(weights, size, seed, step):
        drawn.append(step)
        if drawn == [0, 1, 2, 3]:
            raise Interrupted
        return draw(weights, size, seed, step)

    monkeypatch.setattr(warmup, "draw_entries", watched)
    given = (bench.context(config), bench.counts, False, tmp_path / "warmup.pt")
    with pytest.raises(Interrupted):
        warm_up([bench.adapter(config)], *given)
    warm_up([bench.adapter(config)], *given)
    assert drawn == [0, 1, 2, 3, 2, 3, 4, 5]


# ---------------------------------------------------------------- what is written


def half_written(state, path) -> None:
    """Write some bytes, as a save does that a full disk or a kill ends."""
    path.write_bytes(b"PK")
    raise OSError("no space left on device")


def test_a_failed_save_leaves_the_checkpoint_before_it(bench, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint.pt"
    expected, _ = bench.train(BASE)
    state = loop.set_up(bench.adapter(BASE), bench.context(BASE), 8, None)
    loop.save(checkpoint, state)
    before = checkpoint.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(torch, "save", half_written)
        loop.save(checkpoint, state)
    assert checkpoint.read_bytes() == before and list(tmp_path.iterdir()) == [checkpoint]
    assert same_weights(bench.train(BASE, checkpoint=checkpoint)[0], expected)


def test_a_failed_save_of_a_warm_up_leaves_the_checkpoint_before_it(bench, tmp_path, monkeypatch):
    checkpoint, config = tmp_path / "warmup.pt", BASE.replace(warmup_steps=4)
    stack = StackedAdapters([bench.adapter(config)], [config], [1e-2], 4)
    warmup.save(checkpoint, stack, config, 2, [])
    before = checkpoint.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(torch, "save", half_written)
        warmup.save(checkpoint, stack, config, 3, [])
    assert checkpoint.read_bytes() == before and list(tmp_path.iterdir()) == [checkpoint]
    assert store.read_checkpoint(checkpoint, config)["step"] == 2
