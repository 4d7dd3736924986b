"""What each term of a loss contributes: its gradient, and its share of the optimizer's step.

A term's value says nothing about its influence. Its gradient does, at the adapter's parameters or
at the reconstructed embeddings, and so does its share of the step, after AdamW has rescaled every
parameter. Both are exact: with the first moment kept per term, AdamW's step (without its weight
decay) is a sum over the terms.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import embedding

from stage1 import adapter as adapters
from stage1.loss_parts import Batch, ObjectiveContext, Terms
from stage1.objectives import Objective

Vectors = dict[str, Float[Tensor, " P"]]
"""One flat vector per term."""


def flat(tensors: Sequence[Tensor]) -> Float[Tensor, " P"]:
    return torch.cat([tensor.flatten() for tensor in tensors])


def vector_sum(vectors: Sequence[Tensor]) -> Tensor:
    return sum(vectors, start=torch.tensor(0.0))


def term_gradients(terms: Terms, parameters: Sequence[Tensor], keep_graph: bool = False) -> Vectors:
    """Return the gradient of each term's unweighted value; zero where it does not depend on it.

    Frees the graph after the last term, unless `keep_graph`.
    """
    gradients, last = {}, list(terms)[-1]
    for name, term in terms.items():
        retain = keep_graph or name != last
        gradients[name] = flat(
            torch.autograd.grad(term.value, parameters, retain_graph=retain, materialize_grads=True)
        )
    return gradients


def assign_gradient(gradient: Float[Tensor, " P"], parameters: Sequence[nn.Parameter]) -> None:
    """Set each parameter's `grad` to its part of the flat vector."""
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, gradient.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter).clone()


class Lookup(nn.Module):
    """An embedding table in place of an adapter; its codebook holds token ids."""

    def __init__(self, table: Float[Tensor, "V D"]):
        super().__init__()
        self.table = nn.Parameter(table.detach().clone())

    def forward(self, ids: Float[Tensor, "*B 1"]) -> Float[Tensor, "*B D"]:
        return embedding(ids[..., 0].long(), self.table)


def lookup_context(context: ObjectiveContext) -> ObjectiveContext:
    """Return the context with token ids as codebook, for `Lookup` (exact below 2^24)."""
    codebook = context.codebook
    ids = torch.arange(len(codebook), device=codebook.device, dtype=torch.float32)[:, None]
    return replace(context, codebook=ids)


def embedding_gradients(
    objective: Objective, adapter: nn.Module, batch: Batch, context: ObjectiveContext
) -> tuple[Terms, Vectors]:
    """Return the terms, and each one's gradient at the reconstructed embeddings (flat V x D).

    The adapter works token by token, so the occurrences of a token in the batch add up.
    """
    lookup = Lookup(adapters.decode(adapter, context.codebook))
    terms = objective(lookup, batch, lookup_context(context))
    return terms, term_gradients(terms, list(lookup.parameters()))


def cosine_to_others(vectors: Vectors, name: str) -> float:
    """Return the cosine of one term's vector to the sum of the others; nan where one is zero."""
    others = vector_sum([vector for other, vector in vectors.items() if other != name])
    length = float(vectors[name].norm() * others.norm())
    return float(vectors[name] @ others) / length if length else math.nan


def shares(vectors: Vectors) -> dict[str, float]:
    """Return each vector's share of the sum: its projection on the sum over the sum's length.

    Shares add up to one; a vector that points against the sum has a negative share.
    """
    whole = vector_sum(list(vectors.values()))
    squared = float(whole @ whole)
    return {n: float(v @ whole) / squared if squared else math.nan for n, v in vectors.items()}


class TermMoments:
    """AdamW's first moment, kept per term (Loshchilov & Hutter, 2019, algorithm 2)."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]):
        self.optimizer, self.parameters = optimizer, parameters
        self.beta1, self.beta2 = optimizer.param_groups[0]["betas"]
        self.moments: Vectors = {}

    def update(self, applied: Vectors) -> None:
        """Update with each term's part of this step's gradient, weighted and clipped."""
        for name, gradient in applied.items():
            moment = self.moments.get(name, torch.zeros_like(gradient))
            self.moments[name] = self.beta1 * moment + (1 - self.beta1) * gradient

    def state_dict(self) -> Vectors:
        return self.moments

    def load_state_dict(self, moments: Vectors) -> None:
        device = self.parameters[0].device
        self.moments = {name: moment.to(device) for name, moment in moments.items()}

    def step_parts(self) -> Vectors:
        """Return each term's part of the last step, per unit of learning rate."""
        states = [self.optimizer.state[parameter] for parameter in self.parameters]
        steps = float(states[0]["step"])
        second_moment = flat([state["exp_avg_sq"] for state in states])
        scale = (second_moment / (1 - self.beta2**steps)).sqrt()
        scale += self.optimizer.param_groups[0]["eps"]
        correction = 1 - self.beta1**steps
        return {name: moment / correction / scale for name, moment in self.moments.items()}


def readings(
    terms: Terms,
    gradients: Vectors,
    at_embeddings: dict[str, Float[Tensor, " E"]],
    applied: Vectors,
    moments: TermMoments,
) -> list[dict]:
    """Return one row per term.

    Its value and weight; norm of its unweighted gradient and cosine to the other terms', at the
    adapter's parameters and at the reconstructed embeddings (`embedding_`); its shares of the
    gradient and of AdamW's step.
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
