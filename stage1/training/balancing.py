"""Weights of several terms against each other, by two published rules instead of fixed weights."""

import torch
from torch import nn

from stage1 import names
from stage1.loss_parts import Term, Terms, total
from stage1.training.gradients import Vectors


def equal_norms(terms: Terms, gradients: Vectors) -> Terms:
    """Weight the terms for gradients of the same norm; the weights sum to the number of terms.

    GradNorm (Chen et al., 2018) steers towards these weights with alpha = 0; here they are set
    directly at each step.
    """
    inverse = {name: 1 / max(float(g.norm()), 1.0e-12) for name, g in gradients.items()}
    unit = len(inverse) / sum(inverse.values())
    return {name: term._replace(weight=unit * inverse[name]) for name, term in terms.items()}


class Uncertainty(nn.Module):
    """Learned weights from one log variance s per term (Kendall et al., 2018, eq. 7 and 10).

    The weight is exp(-s) / 2 for a squared error and exp(-s) for a cross-entropy; s / 2 is added to
    the loss.
    """

    def __init__(self):
        super().__init__()
        self.log_variance = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name in names.TERMS}
        )

    def forward(self, terms: Terms) -> Terms:
        """Return the weighted terms, with the sum of s / 2 as another term, `log_variance`."""
        s, weighted = self.log_variance, {}
        for name, term in terms.items():
            factor = names.TERMS[name].uncertainty_factor
            weighted[name] = term._replace(weight=factor * (-s[name]).exp())
        return weighted | {"log_variance": Term(sum(s[name] for name in terms) / 2, 0)}


def balanced(rule: str, uncertainty: Uncertainty, terms: Terms, gradients: Vectors) -> Terms:
    """Return the terms with the weights of the rule (`StudyConfig.balancing`).

    Also sets the gradients of learned log variances, which are no part of the adapter's.
    """
    if len(terms) > 1 and rule == "equal_gradient_norms":
        return equal_norms(terms, gradients)
    if len(terms) > 1 and rule == "uncertainty":
        weighted = uncertainty(terms)
        total(weighted).backward()
        return {
            name: term._replace(weight=float(torch.as_tensor(term.weight).detach()))
            for name, term in weighted.items()
        }
    return terms
