"""The training loop: records, exact repetition and resumption, and when it stops."""

import math

import numpy as np
import pytest
import torch
from training_bench import (
    BASE,
    RULES,
    Interrupted,
    N,
    assert_identical,
    fingerprint,
    interrupt,
    make_bench,
    replace_answer_ce,
    same_weights,
    weights_of,
    without_seconds,
)

from stage1 import adapter as adapters
from stage1 import store
from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import Encoded, encode
from stage1.names import OBJECTIVES
from stage1.objectives import find
from stage1.training import TrainingError, curve_table, loop
from stage1.training.batches import examples_at

OPTION1 = BASE.replace(objective="option1_reconstruction")
OPTION3 = BASE.replace(objective="option3_teacher_forced")


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "checkpoint.pt"


# ---------------------------------------------------------------- what a step reads


@pytest.mark.parametrize("config", [BASE, OPTION1], ids=["answer_ce", "option1"])
def test_an_uneven_last_batch_is_counted_once(bench, config):
    _, progress = bench.trained(config)
    assert [row["examples"] for row in progress.curve] == [8, 8, 8, 6] * 2
    table = curve_table(progress)
    assert table["examples_seen"].tolist() == [8, 16, 24, 30, 38, 46, 54, 60]
    assert table["seconds_total"].iloc[-1] == pytest.approx(table["seconds"].sum())
    assert (table["seconds"] > 0).all()


def test_fewer_examples_than_a_batch_are_one_step_an_epoch(bench):
    _, progress = bench.train(BASE.replace(batch_size=100))
    assert [row["examples"] for row in progress.curve] == [N, N]


def test_reconstruction_draws_as_many_tokens_as_a_batch_has_on_average(bench):
    _, progress = bench.trained(OPTION1)
    total = sum(map(len, bench.encoded.prompts))
    assert bench.counts.sum() == total
    wanted = [round(size * total / N) for size in (8, 8, 8, 6)] * 2
    assert [row["reconstruction_tokens"] for row in progress.curve] == wanted


# ---------------------------------------------------------------- repetition


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_config_trains_the_same_adapter_every_time_and_another_seed_another(bench, objective):
    config = BASE.replace(objective=objective, temperature=1.0)
    weights, progress = bench.trained(config)
    assert_identical(bench.train(config), (weights, progress))
    other_weights, other = bench.train(config.replace(seed=1))
    assert not same_weights(weights, other_weights) and progress.selection != other.selection
    assert without_seconds(progress.curve) != without_seconds(other.curve)


@pytest.mark.parametrize("config", [BASE, OPTION1], ids=["answer_ce", "option1"])
def test_the_seed_decides_the_batches_and_not_only_the_initial_weights(bench, config):
    (_, one), (_, two) = (
        bench.train(config.replace(seed=seed), adapter=bench.adapter(config)) for seed in (0, 1)
    )
    assert one.selection[0] == two.selection[0]
    assert one.curve[0] != two.curve[0]


def test_random_numbers_drawn_before_or_during_training_change_nothing(bench):
    config = BASE.replace(objective="option2_on_policy", temperature=1.0, gold_fraction=0.0)
    quiet, _ = bench.trained(config)
    adapter = bench.adapter(config)
    torch.manual_seed(99)
    np.random.seed(99)
    noisy, _ = bench.train(config, lambda _: {"noise": float(torch.rand(()))}, adapter=adapter)
    assert same_weights(quiet, noisy)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_changes_neither_language_model_nor_compression(bench, objective):
    before, config = bench.lm.checksum(), BASE.replace(objective=objective)
    with bench.lm.unchanged():
        weights, _ = bench.train(config)
    assert bench.lm.checksum() == before
    assert all(parameter.grad is None for parameter in bench.lm.model.parameters())
    assert torch.equal(weights["components"], bench.compression.components)
    assert torch.equal(weights["mean"], bench.compression.mean)
    assert not same_weights(weights, weights_of(bench.adapter(config)))


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_holds_exactly_the_parts_of_the_loops_state(bench, checkpoint):
    state = loop.set_up(bench.adapter(BASE), bench.context(BASE), 8, None)
    loop.save(checkpoint, state)
    saved = torch.load(checkpoint, weights_only=True)
    parts = {"adapter", "optimizer", "schedule", "uncertainty", "moments"}
    assert set(state.state) == parts and set(saved) == parts | {"progress", "config"}
    assert saved["config"] == store.identity(BASE)
    assert same_weights(saved["adapter"], weights_of(state.adapter))


@pytest.mark.parametrize("objective", [OPTION1.objective, OPTION3.objective, "option2_on_policy"])
@pytest.mark.parametrize("at", [1, 2, 7])
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    bench, checkpoint, monkeypatch, objective, at
):
    config = BASE.replace(objective=objective, temperature=1.0, gold_fraction=0.0)
    expected = bench.trained(config)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, objective, at)
        bench.train(config, checkpoint=checkpoint)
    assert checkpoint.exists() == (at >= 2)
    fresh = bench.adapter(config)
    if checkpoint.exists():  # all weights must come from the checkpoint
        torch.nn.init.ones_(fresh.mlp[0].weight)
        assert torch.load(checkpoint, weights_only=True)["progress"]["step"] == at - at % 2
    assert_identical(bench.train(config, checkpoint=checkpoint, adapter=fresh), expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("every", [0, 3])
def test_an_interrupted_training_keeps_its_readings_and_its_balance(
    bench, checkpoint, monkeypatch, rule, every
):
    config = OPTION3.replace(balancing=rule, gradients_every=every, initialisation="random")
    expected = bench.trained(config)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, config.objective, 5)
        bench.train(config, checkpoint=checkpoint)
    assert 2 <= torch.load(checkpoint, weights_only=True)["progress"]["step"] < 8
    assert_identical(bench.train(config, checkpoint=checkpoint), expected)
    assert len(expected[1].gradients) == (6 if every else 0)


@pytest.mark.parametrize("at", [0, 3, 8])
def test_a_training_interrupted_in_an_evaluation_ends_where_an_uninterrupted_one_does(
    bench, checkpoint, at
):
    expected = bench.trained(BASE)
    rows = iter(expected[1].selection)

    def interrupted(adapter):
        if next(rows)["step"] == at:
            raise Interrupted
        return fingerprint(adapter)

    with pytest.raises(Interrupted):
        bench.train(BASE, interrupted, checkpoint)
    assert_identical(bench.train(BASE, checkpoint=checkpoint), expected)


def test_a_training_may_be_interrupted_again_and_again(bench, checkpoint, monkeypatch):
    config = OPTION3.replace(checkpoint_every=1)
    expected = bench.trained(config)
    for _ in range(7):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            interrupt(patch, config.objective, 1)
            bench.train(config, checkpoint=checkpoint)
    assert_identical(bench.train(config, checkpoint=checkpoint), expected)


def test_a_finished_training_is_not_continued(bench, checkpoint, monkeypatch):
    expected = bench.train(BASE.replace(checkpoint_every=8), checkpoint=checkpoint)
    interrupt(monkeypatch, "answer_ce", 0)
    again, progress = bench.train(BASE.replace(checkpoint_every=8), checkpoint=checkpoint)
    assert same_weights(again, expected[0]) and progress == expected[1]


@pytest.mark.parametrize("every, written", [(0, False), (3, True), (100, False)])
def test_a_checkpoint_is_written_as_often_as_the_config_says(bench, checkpoint, every, written):
    bench.train(BASE.replace(checkpoint_every=every), checkpoint=checkpoint)
    assert list(checkpoint.parent.iterdir()) == [checkpoint] * written
    if written:
        state = torch.load(checkpoint, weights_only=True)
        assert state["progress"]["step"] == 6 and len(state["progress"]["curve"]) == 6


@pytest.mark.parametrize(
    "change", [{"learning_rate": 2.0e-2}, {"seed": 1}, {"epochs": 3}, {"objective": "distill"}]
)
def test_a_checkpoint_of_another_config_is_refused_by_its_path(bench, checkpoint, change):
    loop.save(checkpoint, loop.set_up(bench.adapter(BASE), bench.context(BASE), 8, None))
    adapter = bench.adapter(BASE.replace(**change))
    before = weights_of(adapter)
    with pytest.raises(store.RecordError, match=r"checkpoint\.pt: is no checkpoint of this config"):
        bench.train(BASE.replace(**change), checkpoint=checkpoint, adapter=adapter)
    assert same_weights(weights_of(adapter), before) and checkpoint.exists()


@pytest.mark.parametrize("share", [0, 0.01, 0.99])
def test_a_truncated_checkpoint_is_refused_by_its_path(bench, checkpoint, share):
    loop.save(checkpoint, loop.set_up(bench.adapter(BASE), bench.context(BASE), 8, None))
    checkpoint.write_bytes(checkpoint.read_bytes()[: int(share * checkpoint.stat().st_size)])
    with pytest.raises(store.RecordError, match=r"checkpoint\.pt: truncated or malformed"):
        bench.train(BASE, checkpoint=checkpoint)


@pytest.mark.parametrize("saved", [{"a": 1}, {}, [1, 2], torch.zeros(3), {"config": None}])
def test_a_file_that_is_no_checkpoint_is_refused_by_its_path_and_kept(bench, checkpoint, saved):
    torch.save(saved, checkpoint)
    adapter = bench.adapter(BASE)
    before, content = weights_of(adapter), checkpoint.read_bytes()
    words = r"checkpoint\.pt: is no checkpoint of this config; delete it"
    with pytest.raises(store.RecordError, match=words):
        bench.train(BASE, lambda adapter: pytest.fail("evaluated"), checkpoint, adapter)
    assert same_weights(weights_of(adapter), before) and checkpoint.read_bytes() == content


# ---------------------------------------------------------------- bad losses


@pytest.mark.parametrize(
    "objective, term",
    [
        ("option1_reconstruction", "reconstruction"),
        ("answer_ce", "cross_entropy"),
        ("distill", "kl"),
    ],
)
def test_a_nan_weight_stops_the_training_at_the_first_step_by_the_terms_name(
    bench, objective, term
):
    config = BASE.replace(objective=objective)
    adapter = bench.adapter(config)
    torch.nn.init.constant_(adapter.skip.bias, math.nan)
    before = weights_of(adapter)
    words = rf"^step 0: {term}=nan .*expected a finite number.*learning_rate"
    with pytest.raises(TrainingError, match=words):
        bench.train(config, adapter=adapter)
    after = weights_of(adapter)
    assert all(torch.equal(after[name], before[name]) for name in before if name != "skip.bias")


def pretend(monkeypatch, values) -> list[dict]:
    """Let the loss take these values, one per step, with a gradient of one.

    Returns a list that fills with the weights before each step.
    """
    remaining, seen = iter(values), []

    def loss(adapter):
        seen.append(weights_of(adapter))
        return next(remaining) + adapter.gain - adapter.gain.detach()

    replace_answer_ce(monkeypatch, loss)
    return seen


@pytest.mark.parametrize(
    "bad, text", [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (3_001.0, "3001")]
)
def test_a_bad_term_stops_the_training_before_the_weights_change(bench, monkeypatch, bad, text):
    seen = pretend(monkeypatch, [3.0, 2.0, 5.0, bad])
    adapter = bench.adapter(BASE)
    with pytest.raises(TrainingError, match=rf"^step 3: pretended={text} \(first step 3\)"):
        bench.train(BASE, adapter=adapter)
    assert same_weights(weights_of(adapter), seen[3]) and not same_weights(seen[3], seen[1])


@pytest.mark.parametrize("first, highest", [(3.0, 3_000.0), (1.0, 1_000.0), (0.0, 1_000.0)])
def test_a_term_has_exploded_above_a_thousand_times_its_first_value_or_one(
    bench, monkeypatch, first, highest
):
    config = BASE.replace(epochs=1)
    pretend(monkeypatch, [first, highest, highest / 2, highest])
    assert len(bench.train(config)[1].curve) == 4
    pretend(monkeypatch, [first, highest, highest * 1.001])
    with pytest.raises(TrainingError, match=r"^step 2: pretended="):
        bench.train(config)


def test_an_infinite_gradient_of_a_finite_loss_stops_the_training(bench, monkeypatch):
    replace_answer_ce(
        monkeypatch, lambda adapter: 1 + (adapter.gain - adapter.gain.detach()).abs().sqrt()
    )
    with pytest.raises(TrainingError, match=r"^step 0: gradient_norm="):
        bench.train(BASE)


def test_a_far_too_high_learning_rate_is_stopped(bench):
    with pytest.raises(TrainingError, match=r"^step [1-9]\d*: reconstruction="):
        bench.train(OPTION1.replace(learning_rate=1.0e6, epochs=5))


def test_no_training_examples_are_refused(bench):
    empty = Encoded([], [], [], [], [], shortened=0, dropped=3)
    with pytest.raises(ValueError, match="train_examples=0: expected at least one"):
        loop.train(bench.adapter(BASE), bench.context(BASE), empty, bench.counts, fingerprint)


def test_an_unknown_objective_is_refused_before_any_evaluation(bench):
    config = BASE.replace(objective="answer_cee")
    with pytest.raises(ValueError, match=r"did you mean 'answer_ce'"):
        bench.train(config, lambda adapter: pytest.fail("evaluated"))


# ---------------------------------------------------------------- records


def test_a_step_records_every_term_with_its_weight_and_tokens(bench):
    config = OPTION3.replace(reconstruction_weight=0.5, ce_weight=2.0)
    _, progress = bench.train(config)
    assert [row["step"] for row in progress.curve] == list(range(8))
    columns = {"loss", "gradient_norm", "learning_rate", "seconds", "examples", "step"}
    for term in ("reconstruction", "cross_entropy"):
        columns |= {term, f"{term}_weighted", f"{term}_tokens"}
    for step, row in enumerate(progress.curve):
        assert set(row) == columns
        error, ce = row["reconstruction_weighted"], row["cross_entropy_weighted"]
        assert error == pytest.approx(0.5 * row["reconstruction"])
        assert ce == pytest.approx(2.0 * row["cross_entropy"])
        assert row["loss"] == pytest.approx(error + ce)
        batch = examples_at(config, bench.encoded, step)
        assert row["reconstruction_tokens"] == sum(map(len, batch.prompts))
        assert row["cross_entropy_tokens"] == sum(map(len, batch.answers))


@pytest.mark.parametrize("objective", ["as_found", "answer_ce", "distill", "option2_prompt_ce"])
def test_the_first_row_is_the_objective_of_the_first_batch_before_any_step(bench, objective):
    config = BASE.replace(objective=objective)
    _, progress = bench.train(config)
    batch = examples_at(config, bench.encoded, 0)
    terms = find(objective)(bench.adapter(config), batch, bench.context(config))
    for name, term in terms.items():
        assert progress.curve[0][name] == pytest.approx(term.value.item(), rel=1e-6)
        assert progress.curve[0][f"{name}_tokens"] == term.tokens


def test_the_learning_rate_warms_up_linearly_and_decays_in_a_cosine(bench):
    _, progress = bench.train(OPTION1.replace(epochs=5, warmup=0.2, learning_rate=1.0e-3))
    rates = [row["learning_rate"] for row in progress.curve]
    falling = [0.5 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    assert rates == pytest.approx([1.0e-3 * share for share in [0, 0.25, 0.5, 0.75, *falling]])
    assert max(rates) == 1.0e-3 and rates[-1] < 0.01 * max(rates)


def test_without_warm_up_the_first_step_has_the_full_rate(bench):
    _, progress = bench.train(OPTION1.replace(warmup=0.0))
    assert progress.curve[0]["learning_rate"] == BASE.learning_rate


@pytest.fixture
def slope_of_five(monkeypatch):
    """`answer_ce` with a gradient of norm 5: 3 and 4 in two of the adapter's parameters."""
    replace_answer_ce(
        monkeypatch, lambda adapter: 3 * adapter.gain + 4 * adapter.output_norm.bias[0]
    )


@pytest.mark.parametrize("limit, share", [(0.5, 0.1), (5.1, 1.0), (1.0e-3, 2.0e-4)])
def test_the_recorded_gradient_norm_is_that_before_clipping(bench, slope_of_five, limit, share):
    config = BASE.replace(max_grad_norm=limit)
    adapter = bench.adapter(config)
    _, progress = bench.train(config, adapter=adapter)
    assert [row["gradient_norm"] for row in progress.curve] == pytest.approx([5.0] * 8)
    assert float(adapter.gain.grad) == pytest.approx(3 * share, rel=1e-4)
    assert float(adapter.output_norm.bias.grad[0]) == pytest.approx(4 * share, rel=1e-4)


def test_a_tiny_limit_on_the_gradient_bounds_the_step(bench, slope_of_five):
    config = BASE.replace(weight_decay=0.0, warmup=0.0, epochs=1)
    moved = []
    for limit in (1.0, 1.0e-12):  # far below AdamW's epsilon of 1e-8
        adapter = bench.adapter(config)
        before = adapter.gain.item()
        bench.train(config.replace(max_grad_norm=limit), adapter=adapter)
        moved.append(abs(adapter.gain.item() - before))
    assert 1.0e-2 < moved[0] < 4.1e-2  # four steps of at most the learning rate, down a cosine
    assert moved[1] < 1.0e-3 * moved[0]


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weight_decay_shrinks_weights_without_a_gradient(bench, monkeypatch, decay):
    replace_answer_ce(monkeypatch, lambda adapter: adapter.gain + 0 * adapter.skip.weight.sum())
    config = BASE.replace(weight_decay=decay, warmup=0.0, batch_size=N, epochs=1)
    adapter = bench.adapter(config)
    before = adapter.skip.weight.detach().clone()
    bench.train(config, adapter=adapter)  # one step, by the learning rate times the decay
    torch.testing.assert_close(adapter.skip.weight.detach(), before * (1 - 1.0e-2 * decay))


@pytest.mark.parametrize("every, steps", [(3, [0, 3, 6, 8]), (4, [0, 4, 8]), (0, [8])])
def test_the_selection_split_is_evaluated_at_the_start_regularly_and_once_at_the_end(
    bench, every, steps
):
    seen = []

    def scores(adapter):
        seen.append(fingerprint(adapter)["sum"])
        return fingerprint(adapter)

    config = BASE.replace(selection_every=every)
    weights, progress = bench.train(config, scores)
    assert [row["step"] for row in progress.selection] == steps
    assert [row["sum"] for row in progress.selection] == seen and len(set(seen)) == len(seen)
    if every:
        assert seen[0] == fingerprint(bench.adapter(config))["sum"]
    last = bench.adapter(config)
    last.load_state_dict(weights)
    assert seen[-1] == fingerprint(last)["sum"]


# ---------------------------------------------------------------- learning


def test_reconstruction_lowers_its_loss_and_brings_the_embeddings_nearer(bench):
    config = OPTION1.replace(epochs=10, initialisation="random")
    table, codebook = bench.lm.embedding_table, bench.compression.compress(bench.lm.embedding_table)
    used = torch.from_numpy(bench.counts.nonzero()[0])
    adapter = bench.adapter(config)

    def error():
        return (adapters.decode(adapter, codebook)[used] - table[used]).square().mean()

    before = error()
    _, progress = bench.train(config, adapter=adapter)
    values = [row["reconstruction"] for row in progress.curve]
    assert len(values) == 40 and np.mean(values[-4:]) < 0.9 * np.mean(values[:4])
    assert error() < 0.9 * before


@pytest.mark.slow
def test_the_answers_loss_falls_on_the_shipped_model(lm):
    config = StudyConfig(
        device="cpu", objective="answer_ce", batch_size=8, epochs=24, learning_rate=3.0e-3
    )
    examples = almanac.table(8, split="train", names="seen").to_pylist()
    shipped = make_bench(lm, encode(examples, lm.tokenizer, config), config.compressed_width)
    _, progress = shipped.train(config)
    values = [row["cross_entropy"] for row in progress.curve]
    assert len(values) == 24 and values[-1] < 0.8 * values[0]
