"""Readings of the terms' gradients and balancing rules, in training."""

import math

import pytest
import torch
from training_bench import BASE, RULES, SEVERAL, assert_identical

from stage1.training import gradients, microbatches, observer

OPTION3 = BASE.replace(objective="option3_teacher_forced")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("objective", SEVERAL)
def test_reading_the_gradients_does_not_change_the_training(bench, objective, rule):
    config = BASE.replace(objective=objective, balancing=rule, ce_weight=0.5)
    plain, one = bench.train(config)
    read, two = bench.train(config.replace(gradients_every=1))
    assert not one.gradients and two.gradients
    two.gradients = []
    assert_identical((read, two), (plain, one))


@pytest.mark.parametrize("every, steps", [(3, [0, 3, 6]), (1, range(8)), (0, [])])
def test_the_gradients_are_read_as_often_as_the_config_says(bench, every, steps):
    _, progress = bench.trained(OPTION3.replace(gradients_every=every))
    read = [(row["step"], row["term"]) for row in progress.gradients]
    assert read == [(step, term) for step in steps for term in ("reconstruction", "cross_entropy")]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("objective", SEVERAL)
def test_a_reading_agrees_with_the_curve_and_its_shares_add_up_to_one(bench, objective, rule):
    config = BASE.replace(objective=objective, balancing=rule, initialisation="random")
    _, progress = bench.trained(config.replace(gradients_every=2))
    assert len(progress.gradients) == 8
    for one, other in zip(progress.gradients[::2], progress.gradients[1::2], strict=True):
        row = progress.curve[one["step"]]
        for share in ("gradient_share", "step_share"):
            assert one[share] + other[share] == pytest.approx(1, abs=1e-4)
        for name in ("cosine", "embedding_cosine"):
            assert one[name] == pytest.approx(other[name], abs=1e-5) and abs(one[name]) <= 1 + 1e-5
        a, b = (reading["weight"] * reading["gradient_norm"] for reading in (one, other))
        norm = math.sqrt(a**2 + b**2 + 2 * one["cosine"] * a * b)
        assert row["gradient_norm"] == pytest.approx(norm, rel=1e-3)
        for reading in (one, other):
            assert reading["value"] == row[reading["term"]]
            assert reading["embedding_gradient_norm"] > 0
            weighted = reading["weight"] * reading["value"]
            assert row[f"{reading['term']}_weighted"] == pytest.approx(weighted)


@pytest.mark.parametrize("objective", ["option1_reconstruction", "answer_ce", "distill"])
@pytest.mark.parametrize("rule", RULES)
def test_a_single_term_is_neither_read_nor_balanced(bench, objective, rule):
    config = BASE.replace(objective=objective)
    training = bench.train(config.replace(balancing=rule, gradients_every=1))
    assert_identical(training, bench.trained(config))
    assert not training[1].gradients


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("limit", [0.05, 100.0])
def test_the_parts_of_a_recorded_step_add_up_to_the_step_taken(bench, monkeypatch, rule, limit):
    changes = {"balancing": rule, "max_grad_norm": limit, "weight_decay": 0.0}
    config = OPTION3.replace(gradients_every=3, initialisation="random", **changes)
    adapter, before, checked = bench.adapter(config), [], []
    readings, at_embeddings = observer.readings, microbatches.embedding_gradients

    def weights():
        return gradients.flat(list(adapter.parameters())).detach()

    def before_step(*given):
        before.append(weights())
        return at_embeddings(*given)

    def after_step(*given):
        moved = weights() - before[-1]
        parts = sum(given[-1].step_parts().values())
        rate = float(moved.norm() / parts.norm())
        checked.append((rate, float((moved + rate * parts).norm() / moved.norm())))
        return readings(*given)

    monkeypatch.setattr(microbatches, "embedding_gradients", before_step)
    monkeypatch.setattr(observer, "readings", after_step)
    _, progress = bench.train(config, adapter=adapter)
    for (rate, off), row in zip(checked, progress.curve[::3], strict=True):
        assert rate == pytest.approx(row["learning_rate"], rel=1e-3) and off < 1e-3


@pytest.mark.parametrize("objective", SEVERAL)
def test_equal_gradient_norms_hold_at_every_step(bench, objective):
    config = BASE.replace(objective=objective, balancing="equal_gradient_norms", gradients_every=1)
    _, progress = bench.train(config)
    norms = [row["weight"] * row["gradient_norm"] for row in progress.gradients]
    assert norms[::2] == pytest.approx(norms[1::2], rel=1e-5) and min(norms) > 0
    weights = [row["weight"] for row in progress.gradients]
    sums = [one + other for one, other in zip(weights[::2], weights[1::2], strict=True)]
    assert sums == pytest.approx([2.0] * 8) and len(set(weights)) == 16


@pytest.mark.parametrize("objective", SEVERAL)
def test_uncertainty_learns_its_weights_beside_the_adapter_and_records_them(bench, objective):
    """Replayed with AdamW on two log variances, which do not decay."""
    config = BASE.replace(objective=objective, balancing="uncertainty", weight_decay=5.0)
    _, progress = bench.train(config)
    factors = {"reconstruction": 0.5, "cross_entropy": 1.0}
    logs = {name: torch.nn.Parameter(torch.zeros(())) for name in factors}
    optimizer = torch.optim.AdamW(logs.values(), weight_decay=0.0)
    for row in progress.curve:
        half_sum = sum(float(s.detach()) for s in logs.values()) / 2
        assert row["log_variance"] == pytest.approx(half_sum, abs=1e-5)
        for name, factor in factors.items():
            weighted = factor * math.exp(-float(logs[name].detach())) * row[name]
            assert row[f"{name}_weighted"] == pytest.approx(weighted, rel=1e-5)
            logs[name].grad = torch.tensor(0.5 - weighted)
        optimizer.param_groups[0]["lr"] = row["learning_rate"]
        optimizer.step()
        terms = [row[f"{name}_weighted"] for name in (*factors, "log_variance")]
        assert row["loss"] == pytest.approx(sum(terms))
    # About 8 nats lower their weight; an error far below 1 raises its own.
    assert logs["cross_entropy"] > 0.02 and logs["reconstruction"] < -0.02
