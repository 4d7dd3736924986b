"""What each term of a loss asks of the adapter: its gradient, and its share of the optimizer's step.

A term's value says nothing about its influence. Its gradient does, at the adapter's parameters or at the reconstructed
embeddings, and, after AdamW has rescaled every parameter, its share of the step. Both are exact here: with the first
moment kept for each term, AdamW's step (without its weight decay) is a sum over the terms.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import embedding

from stage1 import adapter as adapters
from stage1.objectives import ExampleBatch, Objective, ObjectiveContext, Terms

Vectors = dict[str, Float[Tensor, " P"]]
"""One vector per term, all parameters in one row."""


def flat(tensors: Sequence[Tensor]) -> Float[Tensor, " P"]:
    return torch.cat([tensor.flatten() for tensor in tensors])


def term_gradients(terms: Terms, parameters: Sequence[Tensor], keep_graph: bool = True) -> Vectors:
    """The gradient of each term's unweighted value; zero where a term does not depend on a parameter."""
    differentiate = partial(torch.autograd.grad, inputs=parameters, materialize_grads=True)
    last = list(terms)[-1]
    return {
        n: flat(differentiate(t.value, retain_graph=keep_graph or n != last))
        for n, t in terms.items()
    }


def assign_gradient(gradient: Float[Tensor, " P"], parameters: Sequence[nn.Parameter]) -> None:
    """Give each parameter its part of the vector as its gradient."""
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, gradient.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter).clone()


class Lookup(nn.Module):
    """Stands in for an adapter: each token's embedding from a table, where the codebook holds token ids."""

    def __init__(self, table: Float[Tensor, "V D"]):
        super().__init__()
        self.table = nn.Parameter(table.detach().clone())

    def forward(self, ids: Float[Tensor, "*B 1"]) -> Float[Tensor, "*B D"]:
        return embedding(ids[..., 0].long(), self.table)


def lookup_context(context: ObjectiveContext) -> ObjectiveContext:
    """The context with token ids as codebook, as `Lookup` expects it (exact below 2^24)."""
    codebook = context.codebook
    ids = torch.arange(len(codebook), device=codebook.device, dtype=torch.float32)[:, None]
    return ObjectiveContext(context.lm, ids, context.config, context.variance)


def embedding_gradients(
    objective: Objective, adapter: nn.Module, batch: ExampleBatch, context: ObjectiveContext
) -> tuple[Terms, Vectors]:
    """The terms, and the gradient of each at the reconstructed embeddings, flattened from V x D.

    The adapter works token by token, so the occurrences of a token in the batch add up.
    """
    lookup = Lookup(adapters.decode(adapter, context.codebook))
    terms = objective(lookup, batch, lookup_context(context))
    return terms, term_gradients(terms, list(lookup.parameters()), keep_graph=False)


def cosine_to_others(vectors: Vectors, name: str) -> float:
    """Cosine between one term's vector and the sum of the others'; nan where one of them is zero."""
    others = sum(
        (vector for other, vector in vectors.items() if other != name), start=torch.tensor(0.0)
    )
    length = float(vectors[name].norm() * others.norm())
    return float(vectors[name] @ others) / length if length else math.nan


def shares(vectors: Vectors) -> dict[str, float]:
    """Each vector's share of the sum: its projection on the sum over the sum's length.

    Shares add up to one; a vector that points against the sum has a negative share.
    """
    whole = sum(vectors.values(), start=torch.tensor(0.0))
    length = float(whole @ whole)
    return {
        name: float(vector @ whole) / length if length else math.nan
        for name, vector in vectors.items()
    }


class TermMoments:
    """AdamW's first moment, kept for each term (Loshchilov & Hutter, 2019, algorithm 2)."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]):
        self.optimizer, self.parameters = optimizer, parameters
        self.beta1, self.beta2 = optimizer.param_groups[0]["betas"]
        self.moments: Vectors = {}

    def update(self, applied: Vectors) -> None:
        """Take in each term's part of this step's gradient, weighted and clipped."""
        for name, gradient in applied.items():
            moment = self.moments.get(name, torch.zeros_like(gradient))
            self.moments[name] = self.beta1 * moment + (1 - self.beta1) * gradient

    def state_dict(self) -> Vectors:
        return self.moments

    def load_state_dict(self, moments: Vectors) -> None:
        device = self.parameters[0].device
        self.moments = {name: moment.to(device) for name, moment in moments.items()}

    def step_parts(self) -> Vectors:
        """Each term's part of the step just taken, per unit of learning rate."""
        state = [self.optimizer.state[parameter] for parameter in self.parameters]
        taken = float(state[0]["step"])
        scale = (flat([one["exp_avg_sq"] for one in state]) / (1 - self.beta2**taken)).sqrt()
        scale += self.optimizer.param_groups[0]["eps"]
        return {
            name: moment / (1 - self.beta1**taken) / scale for name, moment in self.moments.items()
        }


def readings(
    terms: Terms,
    gradients: Vectors,
    at_embeddings: dict[str, Float[Tensor, " E"]],
    applied: Vectors,
    moments: TermMoments,
) -> list[dict]:
    """One row per term.

    Its value and weight; norm of its unweighted gradient and cosine to the other terms', at the adapter's parameters and
    at the reconstructed embeddings (`embedding_`); its shares of the gradient and of AdamW's step.
    """
    of_gradient, of_step = shares(applied), shares(moments.step_parts())
    return [
        {
            "term": name,
            "value": float(terms[name].value.detach()),
            "weight": float(terms[name].weight),
            "gradient_norm": float(gradients[name].norm()),
            "cosine": cosine_to_others(gradients, name),
            "embedding_gradient_norm": float(at_embeddings[name].norm()),
            "embedding_cosine": cosine_to_others(at_embeddings, name),
            "gradient_share": of_gradient[name],
            "step_share": of_step[name],
        }
        for name in gradients
    ]
