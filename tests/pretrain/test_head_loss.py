"""The chunked cross-entropy against the plain one: values and gradients."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from stage1.pretrain import head_loss
from stage1.pretrain.head_loss import weighted_cross_entropy

N, D, V = 37, 8, 19


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).requires_grad_()
    head = torch.randn(V, D, generator=generator).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    weights = torch.rand(N, generator=generator) * (torch.arange(N) % 3 > 0)
    return hidden, head, targets, weights


@pytest.mark.parametrize("size", [1, 5, 37, 1000])
def test_losses_and_gradients_are_those_of_the_plain_loss(inputs, monkeypatch, size):
    monkeypatch.setattr(head_loss, "CHUNK_LOGITS", size * V)
    hidden, head, targets, weights = inputs
    loss, each, right = weighted_cross_entropy(hidden, head, targets, weights)
    logits = hidden @ head.T
    plain = cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(each, plain)
    torch.testing.assert_close(loss, weights @ plain)
    assert torch.equal(right, logits.argmax(1) == targets)
    found = torch.autograd.grad(3 * loss, (hidden, head))
    expected = torch.autograd.grad(3 * (weights @ plain), (hidden, head))
    torch.testing.assert_close(found, expected)


def test_single_losses_have_no_gradient(inputs):
    _, each, right = weighted_cross_entropy(*inputs)
    assert not each.requires_grad and not right.requires_grad


def test_a_float32_head_reads_bfloat16_states_and_gets_a_float32_gradient(inputs):
    hidden, head, targets, weights = inputs
    states = hidden.detach().bfloat16().requires_grad_()
    loss, each, _ = weighted_cross_entropy(states, head, targets, weights)
    assert each.dtype == loss.dtype == torch.float32
    loss.backward()
    assert states.grad.dtype == torch.bfloat16 and head.grad.dtype == torch.float32
    plain = weights @ cross_entropy(hidden @ head.T, targets, reduction="none")
    expected = torch.autograd.grad(plain, (hidden, head))
    for found, gradient in zip((states.grad, head.grad), expected, strict=True):
        torch.testing.assert_close(found.float(), gradient, rtol=0.1, atol=0.05)


def test_weights_of_zero_leave_no_gradient(inputs):
    hidden, head, targets, _ = inputs
    loss, each, _ = weighted_cross_entropy(hidden, head, targets, torch.zeros(N))
    loss.backward()
    assert loss == 0 and each.min() > 0
    assert not hidden.grad.any() and not head.grad.any()
