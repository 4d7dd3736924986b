"""Losses from hidden states in chunks: values and gradients match plain torch."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from stage1.model import fused_loss
from stage1.model.fused_loss import mean_cross_entropy, mean_kl

N, D, V = 23, 16, 50
CHUNKS = [1, 7, 22, 23, 1_024]
"""Single positions, a rest, a rest of one position, exactly one chunk, and less than one."""


@pytest.fixture
def head():
    torch.manual_seed(0)
    return nn.Linear(D, V, bias=False).requires_grad_(False)


@pytest.fixture
def hidden():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1)) * 3


@pytest.fixture
def teacher():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(2)) * 3


@pytest.fixture
def targets():
    return torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(3))


def plain_kl(hidden, head, teacher):
    p, q = head(teacher).log_softmax(-1), head(hidden).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def plain_ce(hidden, head, targets):
    return cross_entropy(head(hidden), targets)


LOSSES = {"ce": (mean_cross_entropy, plain_ce), "kl": (mean_kl, plain_kl)}


@pytest.fixture(params=LOSSES)
def losses(request, targets, teacher):
    """The fused loss and its plain form, as functions of hidden states and head."""

    def bound(loss):
        return lambda hidden, head: loss(
            hidden, head, targets if request.param == "ce" else teacher.to(hidden.dtype)
        )

    return [bound(loss) for loss in LOSSES[request.param]]


def value_and_gradient(loss, hidden, head, scale=1.0):
    leaf = hidden.clone().requires_grad_()
    value = loss(leaf, head)
    (scale * value).backward()
    return value.detach(), leaf.grad


def in_float64(plain, hidden, head, scale=1.0):
    wide = nn.Linear(D, V, bias=head.bias is not None, dtype=torch.float64).requires_grad_(False)
    wide.load_state_dict(head.state_dict())
    return value_and_gradient(plain, hidden.double(), wide, scale)


def assert_close(result, expected, rtol=2e-6):
    torch.testing.assert_close(result[0].double(), expected[0], rtol=rtol, atol=0)
    torch.testing.assert_close(
        result[1].double(), expected[1], rtol=0, atol=rtol * float(expected[1].abs().max())
    )


@pytest.mark.parametrize("chunk", CHUNKS)
def test_values_and_gradients_match_plain_torch_at_any_chunk_size(
    losses, hidden, head, monkeypatch, chunk
):
    monkeypatch.setattr(fused_loss, "CHUNK", chunk)
    fused, plain = losses
    assert_close(value_and_gradient(fused, hidden, head), in_float64(plain, hidden, head))


def test_the_heads_bias_is_used(losses, hidden):
    fused, plain = losses
    biased = nn.Linear(D, V).requires_grad_(False)
    biased.bias.normal_(0, 2, generator=torch.Generator().manual_seed(4))
    assert_close(value_and_gradient(fused, hidden, biased), in_float64(plain, hidden, biased))
    unbiased = nn.Linear(D, V, bias=False).requires_grad_(False)
    unbiased.load_state_dict({"weight": biased.weight})
    assert abs(fused(hidden, biased) - fused(hidden, unbiased)) > 0.01


@pytest.mark.parametrize("scale", [2.0, -0.5, 0.0])
def test_the_gradient_scales_with_the_upstream_gradient(losses, hidden, head, scale):
    fused, plain = losses
    result = value_and_gradient(fused, hidden, head, scale)
    assert_close(result, in_float64(plain, hidden, head, scale))
    assert torch.equal(result[1], scale * value_and_gradient(fused, hidden, head)[1])


def test_the_gradient_flows_on_to_the_parameters_behind_the_hidden_states(losses, head):
    fused, plain = losses
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(5))
    weights = [torch.eye(D).mul(1.5).requires_grad_() for _ in range(2)]
    (fused(x @ weights[0], head) + weights[0].sum()).backward()
    (plain(x @ weights[1], head) + weights[1].sum()).backward()
    torch.testing.assert_close(weights[0].grad, weights[1].grad, rtol=1e-4, atol=1e-5)


class Products(TorchFunctionMode):
    """Counts matrix products other than the head's own."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += getattr(function, "__name__", "") in ("matmul", "__matmul__", "mm")
        return function(*args, **(kwargs or {}))


def test_no_gradient_is_computed_without_need(losses, hidden, head, monkeypatch):
    monkeypatch.setattr(fused_loss, "CHUNK", 7)
    fused, _ = losses
    with Products() as needed:
        value = fused(hidden.clone().requires_grad_(), head)
    with Products() as unneeded, torch.no_grad():
        same = fused(hidden.clone().requires_grad_() * 1, head)
    assert value.requires_grad and not same.requires_grad and torch.equal(value, same)
    assert (needed.count, unneeded.count) == (4, 0)


def test_teacher_and_head_get_no_gradient(hidden, head, teacher):
    leaf, other = hidden.clone().requires_grad_(), teacher.clone().requires_grad_()
    mean_kl(leaf, head, other).backward()
    assert leaf.grad.abs().max() > 0 and other.grad is None and head.weight.grad is None


def test_the_kl_divergence_of_a_model_from_itself_and_its_gradient_are_zero(hidden, head):
    value, gradient = value_and_gradient(partial(mean_kl, teacher=hidden), hidden, head)
    assert abs(value) < 1e-7 and gradient.abs().max() < 1e-7


def test_losses_stay_finite_where_probabilities_vanish(losses, hidden, head):
    fused, plain = losses
    expected = in_float64(plain, 100 * hidden, head)
    assert expected[0] > 50
    result = value_and_gradient(fused, 100 * hidden, head)
    assert_close(result, expected, rtol=1e-4)  # logits of some hundreds are rounded to 1e-5


def test_bfloat16_hidden_states_give_a_float32_loss_and_a_bfloat16_gradient(losses, hidden, head):
    """Logits have eight bits then; what is computed from them has more."""
    fused, plain = losses
    head = head.bfloat16()
    value, gradient = value_and_gradient(fused, hidden.bfloat16(), head)
    expected = in_float64(plain, hidden.bfloat16(), head)
    assert value.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(value.double(), expected[0], rtol=5e-3, atol=0)
    torch.testing.assert_close(
        gradient.double(), expected[1], rtol=0, atol=0.02 * float(expected[1].abs().max())
    )


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [7, 1_024])
def test_compiled_losses_match(hidden, head, targets, teacher, monkeypatch, chunk):
    """Without code generation, which is slow on a CPU, and the tests' run-time type checker."""
    compiled = []

    def traced(function):
        compiled.append(function)
        return torch.compile(inspect.unwrap(function), dynamic=True, backend="aot_eager")

    monkeypatch.setattr(fused_loss, "CHUNK", chunk)
    monkeypatch.setattr(fused_loss, "compiled", traced)
    for loss in (partial(mean_cross_entropy, targets=targets), partial(mean_kl, teacher=teacher)):
        result = value_and_gradient(partial(loss, compile=True), hidden, head)
        expected = value_and_gradient(loss, hidden, head)
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)
    assert compiled == [fused_loss.ce_and_gradient, fused_loss.kl_and_gradient]
