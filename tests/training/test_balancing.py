"""Balancing rules against their published formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stage1.loss_parts import Term, total
from stage1.training.balancing import Uncertainty, equal_norms


@given(long=st.floats(1e-4, 1e4), other=st.floats(1e-4, 1e4), scale=st.floats(1e-3, 1e3))
def test_equal_norms_are_equal_whatever_the_scale_of_a_term(long, other, scale):
    def weights(long) -> list[float]:
        gradients = {
            "reconstruction": torch.tensor([long, 0.0]),
            "cross_entropy": torch.tensor([other, -other]),
        }
        terms = {name: Term(torch.tensor(2.0), 1, 7.0) for name in gradients}
        weighted = equal_norms(terms, gradients)
        one, two = (weighted[name].weight * float(gradients[name].norm()) for name in gradients)
        assert one == pytest.approx(two, rel=1e-5)
        return [term.weight for term in weighted.values()]

    (one, other_one), (two, other_two) = weights(long), weights(scale * long)
    assert one + other_one == pytest.approx(2) and two + other_two == pytest.approx(2)
    assert scale * two / other_two == pytest.approx(one / other_one, rel=1e-3)


def test_uncertainty_starts_at_its_likelihoods_factors_and_follows_the_formula():
    rule = Uncertainty()
    terms = {
        "reconstruction": Term(torch.tensor(0.2), 5),
        "cross_entropy": Term(torch.tensor(3.0), 2, 9.0),
    }
    assert [term.weight for term in rule(terms).values()] == [0.5, 1.0, 1.0]
    with torch.no_grad():
        rule.log_variance["reconstruction"].fill_(-1.0)
        rule.log_variance["cross_entropy"].fill_(0.5)
    loss = total(rule(terms))
    error, ce = math.exp(1) / 2 * 0.2, math.exp(-0.5) * 3
    assert float(loss.detach()) == pytest.approx(error - 0.5 + ce + 0.25)
    loss.backward()
    assert float(rule.log_variance["reconstruction"].grad) == pytest.approx(0.5 - error)
    assert float(rule.log_variance["cross_entropy"].grad) == pytest.approx(0.5 - ce)
    assert rule.log_variance["kl"].grad is None
    assert [term.tokens for term in rule(terms).values()] == [5, 2, 0]


@pytest.mark.parametrize(
    "name, value, rest",
    [("reconstruction", 0.3, math.log(0.3)), ("cross_entropy", 4.0, math.log(8.0))],
)
def test_uncertainty_converges_to_the_terms_own_scale(name, value, rest):
    """exp(-s) v / 2 + s / 2 is least at s = log v, and exp(-s) v + s / 2 at s = log 2v."""
    rule = Uncertainty()
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        total(rule({name: Term(torch.tensor(value), 1)})).backward()
        optimizer.step()
    assert float(rule.log_variance[name].detach()) == pytest.approx(rest, abs=1e-4)
