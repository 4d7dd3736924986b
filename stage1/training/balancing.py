"""Weights of several terms against each other, by two published rules that replace fixed weights."""

import torch
from torch import nn

from stage1 import names
from stage1.objectives import Term, Terms, total
from stage1.training.gradients import Vectors


def equal_norms(terms: Terms, gradients: Vectors) -> Terms:
    """Weights that give every term a gradient of the same norm and sum to the number of terms.

    GradNorm (Chen et al., 2018) steers towards them with alpha = 0; here they are set directly at each step.
    """
    inverse = {
        name: 1 / max(float(gradient.norm()), 1.0e-12) for name, gradient in gradients.items()
    }
    unit = len(inverse) / sum(inverse.values())
    return {name: term._replace(weight=unit * inverse[name]) for name, term in terms.items()}


class Uncertainty(nn.Module):
    """Weights learned with the adapter, from one log variance s per term (Kendall et al., 2018, equations 7 and 10):
    exp(-s) / 2 for a squared error, exp(-s) for a likelihood, and s / 2 added to the loss."""

    def __init__(self):
        super().__init__()
        self.log_variance = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name in names.TERMS}
        )

    def forward(self, terms: Terms) -> Terms:
        s = self.log_variance
        factors = {name: names.TERMS[name].uncertainty_factor for name in terms}
        weighted = {
            name: term._replace(weight=factors[name] * (-s[name]).exp())
            for name, term in terms.items()
        }
        return weighted | {"log_variance": Term(sum(s[name] for name in terms) / 2, 0)}


def balanced(rule: str, uncertainty: Uncertainty, terms: Terms, gradients: Vectors) -> Terms:
    """The terms with the weights that the rule (`StudyConfig.balancing`) gives them.

    Learned log variances get their gradients here: the adapter's are assigned from the terms'.
    """
    if len(terms) > 1 and rule == "equal_gradient_norms":
        return equal_norms(terms, gradients)
    if len(terms) > 1 and rule == "uncertainty":
        weighted = uncertainty(terms)
        total(weighted).backward()
        return {
            n: t._replace(weight=float(torch.as_tensor(t.weight).detach()))
            for n, t in weighted.items()
        }
    return terms
