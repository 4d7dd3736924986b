"""How large each term of a loss is, what it asks of the adapter, and how much of the applied update it decides.

The value of a term says nothing about its pull. What counts is its gradient, at the adapter's parameters or at the
reconstructed embeddings, and after AdamW has rescaled every parameter, its share of the step. Both are exact here: with
the first moment followed term by term, AdamW's step (without its weight decay) is a sum over the terms.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import embedding

from stage1 import adapter as adapters
from stage1.compress import Compression
from stage1.config import StudyConfig
from stage1.evaluate import reconstruction
from stage1.generation import by_length
from stage1.objectives import Examples, Objective, Setting, Term, Terms, answer_ce, as_found, option2_prompt_ce
from stage1.prompts import Encoded

Vectors = dict[str, Float[Tensor, " P"]]
"""One vector per term, all parameters in one row."""
LIKELIHOOD = {"reconstruction": 0.5, "cross_entropy": 1.0, "kl": 1.0}
"""Kendall et al.'s factor before 1 / variance: one half for a squared error, one for a likelihood of classes."""


def flat(tensors: Sequence[Tensor]) -> Float[Tensor, " P"]:
    return torch.cat([tensor.flatten() for tensor in tensors])


def term_gradients(terms: Terms, parameters: Sequence[Tensor], keep_graph: bool = True) -> Vectors:
    """The gradient of each term's unweighted value; zero where a term does not depend on a parameter."""
    differentiate = partial(torch.autograd.grad, inputs=parameters, materialize_grads=True)
    last = list(terms)[-1]
    return {n: flat(differentiate(term.value, retain_graph=keep_graph or n != last)) for n, term in terms.items()}


def put(gradient: Float[Tensor, " P"], parameters: Sequence[nn.Parameter]) -> None:
    """Give each parameter its part of the vector as its gradient."""
    for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def number(weight: float | Tensor) -> float:
    """A weight as a number; learned ones are tensors with a gradient of their own."""
    return float(weight.detach() if isinstance(weight, Tensor) else weight)


class Lookup(nn.Module):
    """Stands in for an adapter: the embedding of each token from a table, where the codebook holds the token ids."""

    def __init__(self, table: Float[Tensor, "V D"]):
        super().__init__()
        self.table = nn.Parameter(table.detach().clone())

    def forward(self, ids: Float[Tensor, "*B 1"]) -> Float[Tensor, "*B D"]:
        return embedding(ids[..., 0].long(), self.table)


def looking_up(setting: Setting) -> Setting:
    """The setting with token ids in the place of compressed embeddings, as `Lookup` wants them (exact below 2^24)."""
    ids = torch.arange(len(setting.codebook), device=setting.codebook.device, dtype=torch.float32)[:, None]
    return Setting(setting.lm, ids, setting.config, setting.variance)


def embedding_gradients(
    objective: Objective, adapter: nn.Module, batch: Examples, setting: Setting
) -> tuple[Terms, Vectors]:
    """The terms, and the gradient of each at the reconstructed embeddings, one row per vocabulary entry: the adapter
    works token by token, so the occurrences of a token in the batch add up. Flattened, V times D."""
    lookup = Lookup(adapters.decode(adapter, setting.codebook))
    terms = objective(lookup, batch, looking_up(setting))
    return terms, term_gradients(terms, list(lookup.parameters()), keep_graph=False)


def cosine_to_others(vectors: Vectors, name: str) -> float:
    """Cosine between one term's vector and the sum of the others'; nan where one of them is zero."""
    others = sum((vector for other, vector in vectors.items() if other != name), start=torch.tensor(0.0))
    length = float(vectors[name].norm() * others.norm())
    return float(vectors[name] @ others) / length if length else math.nan


def shares(vectors: Vectors) -> dict[str, float]:
    """How much of the vectors' sum each one makes up: its projection on the sum over the sum's length. They add up to
    one; one that points against the sum has a negative share."""
    whole = sum(vectors.values(), start=torch.tensor(0.0))
    length = float(whole @ whole)
    return {name: float(vector @ whole) / length if length else math.nan for name, vector in vectors.items()}


class Update:
    """AdamW's step taken apart: its first moment, followed term by term (Loshchilov & Hutter, 2019, algorithm 2)."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]):
        self.optimizer, self.parameters = optimizer, parameters
        self.beta1, self.beta2 = optimizer.param_groups[0]["betas"]
        self.moments: Vectors = {}

    def follow(self, applied: Vectors) -> None:
        """Take in what each term adds to the gradient of this step, weighted and clipped."""
        for name, gradient in applied.items():
            moment = self.moments.get(name, torch.zeros_like(gradient))
            self.moments[name] = self.beta1 * moment + (1 - self.beta1) * gradient

    def state_dict(self) -> Vectors:
        return self.moments

    def load_state_dict(self, moments: Vectors) -> None:
        device = self.parameters[0].device
        self.moments = {name: moment.to(device) for name, moment in moments.items()}

    def parts(self) -> Vectors:
        """What each term adds to the step just taken, per unit of learning rate."""
        state = [self.optimizer.state[parameter] for parameter in self.parameters]
        taken = float(state[0]["step"])
        scale = (flat([one["exp_avg_sq"] for one in state]) / (1 - self.beta2**taken)).sqrt()
        scale += self.optimizer.param_groups[0]["eps"]
        return {name: moment / (1 - self.beta1**taken) / scale for name, moment in self.moments.items()}


def readings(
    terms: Terms, gradients: Vectors, at_embeddings: dict[str, Float[Tensor, " E"]], applied: Vectors, update: Update
) -> list[dict]:
    """One row per term: value; weight; norm of its unweighted gradient and cosine to the other terms' at the adapter's
    parameters, and at the reconstructed embeddings (`embedding_`); its share of the gradient and of AdamW's step."""
    of_gradient, of_step = shares(applied), shares(update.parts())
    return [
        {
            "term": name,
            "value": float(terms[name].value.detach()),
            "weight": number(terms[name].weight),
            "gradient_norm": float(gradients[name].norm()),
            "cosine": cosine_to_others(gradients, name),
            "embedding_gradient_norm": float(at_embeddings[name].norm()),
            "embedding_cosine": cosine_to_others(at_embeddings, name),
            "gradient_share": of_gradient[name],
            "step_share": of_step[name],
        }
        for name in gradients
    ]


def equal_norms(terms: Terms, gradients: Vectors) -> Terms:
    """Weights that give every term a gradient of the same norm and sum to the number of terms: what GradNorm (Chen et
    al., 2018) steers towards with alpha = 0, set directly at each step."""
    inverse = {name: 1 / max(float(gradient.norm()), 1.0e-12) for name, gradient in gradients.items()}
    unit = len(inverse) / sum(inverse.values())
    return {name: term._replace(weight=unit * inverse[name]) for name, term in terms.items()}


class Uncertainty(nn.Module):
    """Weights learned with the adapter, from one log variance s per term (Kendall et al., 2018, equations 7 and 10):
    exp(-s) / 2 for a squared error, exp(-s) for a likelihood, and s / 2 added to the loss."""

    def __init__(self):
        super().__init__()
        self.log_variance = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in LIKELIHOOD})

    def forward(self, terms: Terms) -> Terms:
        s = self.log_variance
        weighted = {name: term._replace(weight=LIKELIHOOD[name] * (-s[name]).exp()) for name, term in terms.items()}
        return weighted | {"log_variance": Term(sum(s[name] for name in terms) / 2, 0)}


def reconstruction_references(
    table: Float[Tensor, "V D"], counts: np.ndarray, compression: Compression, config: StudyConfig
) -> pd.DataFrame:
    """mse and fvu of what needs no training, over the tokens that `counts` stand for: the values that make another
    one large or small. The two random starts are those of the config's seed."""
    share = torch.from_numpy(counts / counts.sum()).to(table)
    starts = {
        f"random start, {scaling}": config.replace(initialisation="random", output_scaling=scaling)
        for scaling in ("unit_rms", "calibrated")
    }
    codebook, weights = compression.compress(table), torch.from_numpy(counts)
    rebuilt: dict[str, Tensor] = {
        name: adapters.decode(adapters.make(compression, table, weights, start), codebook)
        for name, start in starts.items()
    }
    rebuilt |= {"zero": torch.zeros_like(table), "constant mean": (share @ table).expand_as(table)}
    rebuilt["pca_inverse"] = compression.expand(codebook)
    rows = {name: reconstruction(table, guess, counts) for name, guess in rebuilt.items()}
    rows["original embeddings"] = {"mse": 0.0, "fvu": 0.0}
    return pd.DataFrame(rows, index=["mse", "fvu"]).T.rename_axis("predictor").reset_index()


@torch.no_grad()
def ce_references(encoded: Encoded, setting: Setting) -> pd.DataFrame:
    """Cross-entropy in nats per token, for each set of tokens that an objective supervises: of the frozen model reading
    the original embeddings, of the best constant distribution (their own frequencies), and of the uniform one."""
    reading = {"answer": answer_ce, "prompt": option2_prompt_ce, "prompt, padding, answer": as_found}
    original, ids = Lookup(setting.lm.embedding_table.float()), looking_up(setting)
    batches = [
        Examples([encoded.prompts[i] for i in batch], [encoded.answers[i] for i in batch])
        for batch in by_length(encoded.prompts, setting.config.eval_batch_size)
    ]
    rows = []
    for tokens, objective in reading.items():
        terms = [objective(original, batch, ids)["cross_entropy"] for batch in batches]
        supervised = sum(term.tokens for term in terms)
        row = {"tokens": tokens, "original embeddings": sum(t.tokens * float(t.value) for t in terms) / supervised}
        row |= {"own frequencies": entropy(frequencies(encoded, setting, tokens))}
        rows.append(row | {"uniform": math.log(len(ids.codebook)), "supervised": supervised})
    return pd.DataFrame(rows)


def frequencies(encoded: Encoded, setting: Setting, tokens: str) -> np.ndarray:
    """How often each vocabulary entry is a label, [V], for the sets of tokens that `ce_references` names."""
    V, config = len(setting.codebook), setting.config
    # The first token of a prompt is nobody's label.
    prompts = np.bincount([i for ids in encoded.prompts for i in ids[1:]], minlength=V)
    answers = np.bincount([i for ids in encoded.answers for i in ids], minlength=V)
    whole = prompts + answers
    rows = config.max_prompt_tokens + config.max_answer_tokens - 1
    whole[setting.lm.pad_token] += len(encoded) * rows - whole.sum()
    return {"answer": answers, "prompt": prompts, "prompt, padding, answer": whole}[tokens]


def entropy(counts: np.ndarray) -> float:
    """In nats, of the distribution that the counts stand for."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def crossover(grid: Mapping[float, float]) -> float:
    """The weight at which a share that grows with it passes one half, by interpolation in log weight; nan where it
    never does. `grid` maps weights to shares."""
    points = sorted((weight, share) for weight, share in grid.items() if weight > 0)
    for (low, below), (high, above) in pairwise(points):
        if below <= 0.5 <= above and below < above:
            return float(low * (high / low) ** ((0.5 - below) / (above - below)))
    return math.nan
