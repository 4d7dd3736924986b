"""Losses from hidden states a chunk at a time: value and gradient are those of plain torch."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from stage1.model import fused_loss
from stage1.model.fused_loss import mean_cross_entropy, mean_kl

N, D, V = 23, 16, 50
CHUNKS = [1, 7, 22, 23, 24, 1_024]
"""Of one position each, with a rest, with a last position alone, and in a single one."""


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
    """The loss and its plain form, each of hidden states and head."""

    def given(loss):
        return lambda hidden, head: loss(
            hidden, head, targets if request.param == "ce" else teacher.to(hidden.dtype)
        )

    return [given(loss) for loss in LOSSES[request.param]]


def value_and_gradient(loss, hidden, head, scale=1.0):
    leaf = hidden.clone().requires_grad_()
    value = loss(leaf, head)
    (scale * value).backward()
    return value.detach(), leaf.grad


def exactly(plain, hidden, head, scale=1.0):
    """The plain loss in float64."""
    wide = nn.Linear(D, V, bias=head.bias is not None, dtype=torch.float64).requires_grad_(False)
    wide.load_state_dict(head.state_dict())
    return value_and_gradient(plain, hidden.double(), wide, scale)


def assert_near(got, expected, rtol=2e-6):
    torch.testing.assert_close(got[0].double(), expected[0], rtol=rtol, atol=0)
    torch.testing.assert_close(
        got[1].double(), expected[1], rtol=0, atol=rtol * float(expected[1].abs().max())
    )


@pytest.mark.parametrize("chunk", CHUNKS)
def test_value_and_gradient_are_those_of_plain_torch_however_the_positions_are_cut(
    losses, hidden, head, monkeypatch, chunk
):
    monkeypatch.setattr(fused_loss, "CHUNK", chunk)
    ours, plain = losses
    assert_near(value_and_gradient(ours, hidden, head), exactly(plain, hidden, head))


def test_a_head_with_a_bias_counts_it(losses, hidden):
    ours, plain = losses
    biased = nn.Linear(D, V).requires_grad_(False)
    biased.bias.normal_(0, 2, generator=torch.Generator().manual_seed(4))
    assert_near(value_and_gradient(ours, hidden, biased), exactly(plain, hidden, biased))
    unbiased = nn.Linear(D, V, bias=False).requires_grad_(False)
    unbiased.load_state_dict({"weight": biased.weight})
    assert abs(ours(hidden, biased) - ours(hidden, unbiased)) > 0.01


@pytest.mark.parametrize("scale", [2.0, -0.5, 0.0])
def test_the_gradient_scales_with_what_becomes_of_the_loss(losses, hidden, head, scale):
    ours, plain = losses
    got, expected = (
        value_and_gradient(ours, hidden, head, scale),
        exactly(plain, hidden, head, scale),
    )
    assert_near(got, expected)
    assert torch.equal(got[1], scale * value_and_gradient(ours, hidden, head)[1])


def test_the_gradient_flows_on_to_what_made_the_hidden_states(losses, head):
    ours, plain = losses
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(5))
    weights = [torch.eye(D).mul(1.5).requires_grad_() for _ in range(2)]
    (ours(x @ weights[0], head) + weights[0].sum()).backward()
    (plain(x @ weights[1], head) + weights[1].sum()).backward()
    torch.testing.assert_close(weights[0].grad, weights[1].grad, rtol=1e-4, atol=1e-5)


class Products(TorchFunctionMode):
    """Counts products of matrices other than those of the head itself."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += getattr(function, "__name__", "") in ("matmul", "__matmul__", "mm")
        return function(*args, **(kwargs or {}))


def test_no_gradient_is_computed_where_none_is_wanted(losses, hidden, head, monkeypatch):
    monkeypatch.setattr(fused_loss, "CHUNK", 7)
    ours, _ = losses
    with Products() as wanted:
        value = ours(hidden.clone().requires_grad_(), head)
    with Products() as unwanted, torch.no_grad():
        same = ours(hidden.clone().requires_grad_() * 1, head)
    assert value.requires_grad and not same.requires_grad and torch.equal(value, same)
    assert (wanted.count, unwanted.count) == (4, 0)


def test_teacher_and_head_get_no_gradient(hidden, head, teacher):
    leaf, other = hidden.clone().requires_grad_(), teacher.clone().requires_grad_()
    mean_kl(leaf, head, other).backward()
    assert leaf.grad.abs().max() > 0 and other.grad is None and head.weight.grad is None


def test_the_divergence_from_oneself_is_zero_and_so_is_its_gradient(hidden, head):
    value, gradient = value_and_gradient(
        lambda hidden, head: mean_kl(hidden, head, hidden.detach()), hidden, head
    )
    assert abs(value) < 1e-7 and gradient.abs().max() < 1e-7


def test_losses_so_large_that_probabilities_vanish_stay_finite(losses, hidden, head):
    ours, plain = losses
    got, expected = value_and_gradient(ours, 100 * hidden, head), exactly(plain, 100 * hidden, head)
    assert expected[0] > 50
    assert_near(got, expected, rtol=1e-4)  # logits of some hundreds are rounded to 1e-5


def test_hidden_states_in_bfloat16_give_a_loss_in_float32_and_a_gradient_of_their_own_kind(
    losses, hidden, head
):
    """The head gives logits of eight bits then; what is made of them has more."""
    ours, plain = losses
    head = head.bfloat16()
    value, gradient = value_and_gradient(ours, hidden.bfloat16(), head)
    expected = exactly(plain, hidden.bfloat16(), head)
    assert value.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(value.double(), expected[0], rtol=5e-3, atol=0)
    torch.testing.assert_close(
        gradient.double(), expected[1], rtol=0, atol=0.02 * float(expected[1].abs().max())
    )


@pytest.mark.parametrize("chunk", [7, 1_024])
def test_compiled_pieces_give_the_same(hidden, head, targets, teacher, monkeypatch, chunk):
    """Without code generation, which is slow on a CPU, and without the tests' run-time type checker."""
    compiled = []

    def without_code(piece):
        compiled.append(piece)
        return torch.compile(inspect.unwrap(piece), dynamic=True, backend="aot_eager")

    monkeypatch.setattr(fused_loss, "CHUNK", chunk)
    monkeypatch.setattr(fused_loss, "compiled", without_code)
    for function, other in ((mean_cross_entropy, targets), (mean_kl, teacher)):
        one, two = (
            value_and_gradient(lambda x, h, f=function, o=other, c=c: f(x, h, o, c), hidden, head)
            for c in (True, False)
        )
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
    assert compiled == [fused_loss.ce_piece, fused_loss.kl_piece]
