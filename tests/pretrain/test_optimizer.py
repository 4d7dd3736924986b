"""Muon for stacks of matrices against PyTorch's for one, and the schedule of rows and rates."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stage1.pretrain.optimizer import Muon, optimizers, orthogonalised, set_rates
from stage1.pretrain.recipe import PRESETS, ReaderConfig, parameters
from stage1.pretrain.schedule import counts, plan, rate_share, shares
from stage1.pretrain.transformer import Shape, Transformer

CONFIG = ReaderConfig(steps=200, batch=10, device="cpu")
ROWS = {"text": 300, "cloze": 40, "questions": 25}
SMALL = Shape(width=32, depth=2, hidden=64, heads=2, vocabulary=50, tied=False)

# ---------------------------------------------------------------- Muon


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 2, 16, 8), (4, 8, 24)])
def test_a_stack_moves_as_its_matrices_do_under_pytorchs_muon(shape):
    generator = torch.Generator().manual_seed(0)
    stack = nn.Parameter(torch.randn(shape, generator=generator))
    single = [nn.Parameter(m.clone()) for m in stack.detach().flatten(0, -3)]
    ours = Muon([stack], lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(single, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = stack.detach().clone()
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        stack.grad = gradient
        for matrix, part in zip(single, gradient.flatten(0, -3), strict=True):
            matrix.grad = part.clone()
        ours.step()
        reference.step()
    expected = torch.stack([*single]).detach().view(shape)
    moved = (expected - start).abs().mean()
    assert (stack - expected).abs().mean() < 0.05 * moved  # bfloat16 sums in another order


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)])
def test_singular_values_come_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalised(matrix).float()
    values = (left.mT @ result @ right.mT).diagonal()
    assert values.min() > 0.5 and values.max() < 1.4


def test_matrices_have_muon_and_everything_else_has_adamw():
    model = Transformer(SMALL, 0)
    muon, adam = optimizers(model, 0.01, 0.02, 0.1)
    held = [{id(p) for g in o.param_groups for p in g["params"]} for o in (muon, adam)]
    for name, parameter in model.named_parameters():
        is_matrix = name in ("qkv", "out", "gate_up", "down")
        assert (id(parameter) in held[0], id(parameter) in held[1]) == (is_matrix, not is_matrix)
    assert muon.param_groups[0]["weight_decay"] == 0.1
    assert adam.param_groups[0]["weight_decay"] == 0
    set_rates([muon, adam], 0.5)
    assert [o.param_groups[0]["lr"] for o in (muon, adam)] == [0.005, 0.01]
    set_rates([muon, adam], 1.0)
    assert [o.param_groups[0]["lr"] for o in (muon, adam)] == [0.01, 0.02]


# ---------------------------------------------------------------- schedule


@pytest.mark.parametrize("steps", [1, 2, 29, 300])
def test_the_rate_warms_up_stays_and_decays(steps):
    config = replace(CONFIG, steps=steps, warmup=0.1, decay=0.4)
    rates = [rate_share(config, step) for step in range(steps)]
    assert min(rates) > 0 and max(rates) <= 1
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_rate_has_a_plateau():
    rates = [rate_share(CONFIG, step) for step in range(200)]
    assert rates[0] == pytest.approx(1 / 4) and rates[4:121] == [1.0] * 117
    assert rates[199] == pytest.approx(1 / 80)
    flat = replace(CONFIG, warmup=0.0, decay=0.0)
    assert [rate_share(flat, step) for step in (0, 100, 199)] == [1.0, 1.0, 1.0]


def test_questions_start_late_and_grow():
    found = [1 - shares(CONFIG, step, ROWS)["text"] for step in range(200)]
    assert found[:80] == [0.0] * 80 and found == sorted(found)
    assert found[80] > 0 and found[-1] == pytest.approx(0.6, abs=0.01)


def test_cloze_questions_give_way_to_questions():
    early, late = (shares(CONFIG, step, ROWS) for step in (81, 199))
    assert early["cloze"] > 20 * early["questions"]
    assert late["cloze"] / (1 - late["text"]) == pytest.approx(0.3, abs=0.01)
    for step in range(200):
        assert sum(shares(CONFIG, step, ROWS).values()) == pytest.approx(1)


@pytest.mark.parametrize("missing", [{"cloze"}, {"questions"}, {"cloze", "questions"}])
def test_kinds_without_rows_leave_their_share_to_others(missing):
    rows = {name: 0 if name in missing else n for name, n in ROWS.items()}
    total = dict(zip(rows, counts(CONFIG, rows).sum(0).tolist(), strict=True))
    assert sum(total.values()) == 2_000
    assert all((total[name] > 0) == (name not in missing) for name in rows)
    assert plan(CONFIG, rows).max() < sum(rows.values())


def test_a_plan_reads_every_row_once_before_any_again():
    order = plan(CONFIG, ROWS)
    assert order.shape == (200, 10)
    times = np.bincount(order.ravel(), minlength=sum(ROWS.values()))
    for part in np.split(times, np.cumsum([*ROWS.values()])[:-1]):
        assert part.max() - part.min() <= 1 and part.sum() > 0
    assert (order[:80] < 300).all()  # text alone


def test_counts_follow_the_shares_to_a_row():
    per_step = counts(CONFIG, ROWS)
    ideal = np.array([[*shares(CONFIG, step, ROWS).values()] for step in range(200)]) * 10
    assert (per_step.sum(1) == 10).all() and (per_step >= 0).all()
    assert np.abs(np.cumsum(per_step - ideal, axis=0)).max() <= 1


def test_the_seed_decides_the_plan():
    first, again, other = (plan(replace(CONFIG, seed=seed), ROWS) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


# ---------------------------------------------------------------- recipe


@pytest.mark.parametrize(
    "field, value",
    [
        ("width", 0), ("width", 63), ("depth", 0), ("steps", 0), ("microbatches", 3),
        ("muon_rate", 0.0), ("adam_rate", -1.0), ("decay", 1.5), ("questions_from", 1.0),
        ("hidden", -1), ("dropout", 1.0),
    ],
)  # fmt: skip
def test_an_impossible_recipe_is_refused_by_its_field(field, value):
    with pytest.raises(ValueError, match=rf"{field}={value}: expected"):
        ReaderConfig(**{field: value})


def test_kernels_of_a_gpu_are_refused_on_a_cpu():
    with pytest.raises(ValueError, match="attention='flex': expected 'auto' or 'dense' where"):
        ReaderConfig(attention="flex", device="cpu")


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_before_a_model_is_built(tied):
    shape = SMALL._replace(tied=tied)
    assert parameters(shape) == sum(p.numel() for p in Transformer(shape, 0).parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recipes_of_whole_heads(name):
    config = ReaderConfig(**PRESETS[name])
    assert config.width / config.head_count == 64
