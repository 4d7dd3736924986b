"""Gradients of terms against autograd, and AdamW's step taken apart against AdamW."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stage1 import adapter as adapters
from stage1.baselines import Adapter
from stage1.compress import fit_pca, variance
from stage1.config import StudyConfig
from stage1.loss_parts import ExampleBatch, ObjectiveContext, Term, total
from stage1.objectives import find
from stage1.training import gradients
from stage1.training.gradients import TermMoments, term_gradients

PROMPTS = [[1, 10, 11, 12, 10], [1, 20], [1, 11, 30, 31, 32, 33]]
ANSWERS = [[30, 2], [31, 32, 2], [2]]
SEVERAL_TERMS = ["option3_teacher_forced", "as_found"]
CONFIG = StudyConfig(
    device="cpu", compressed_width=4, initialisation="random", max_prompt_tokens=7,
    max_answer_tokens=4, reconstruction_weight=0.3, ce_weight=1.7,
)  # fmt: skip


@dataclass
class World:
    """An adapter, a context and three examples."""

    adapter: Adapter
    context: ObjectiveContext
    batch: ExampleBatch

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.adapter.parameters())

    def terms(self, objective: str):
        return find(objective)(self.adapter, self.batch, self.context)

    def at_embeddings(self, objective: str):
        given = (self.adapter, self.batch, self.context)
        return gradients.embedding_gradients(find(objective), *given)[1]


@pytest.fixture(scope="module")
def world(sharp_lm) -> World:
    table = sharp_lm.embedding_table
    counts = torch.from_numpy(np.random.default_rng(0).integers(0, 50, len(table)))
    compression = fit_pca(table, counts, 4)
    adapter = adapters.make(compression, table, counts, CONFIG)
    codebook, spread = compression.compress(table), variance(table, counts)
    context = ObjectiveContext(sharp_lm, codebook, CONFIG, spread)
    return World(adapter, context, ExampleBatch(PROMPTS, ANSWERS))


def flat_grad(loss, parameters) -> torch.Tensor:
    parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def assert_near(one: torch.Tensor, other: torch.Tensor, share: float = 1e-5) -> None:
    """Assert that both are equal up to a share of the largest entry."""
    assert other.abs().max() > 1e-4
    torch.testing.assert_close(one, other, rtol=0, atol=share * float(other.abs().max()))


# ---------------------------------------------------------------- gradients of the terms


@pytest.mark.parametrize("objective", SEVERAL_TERMS)
def test_a_terms_gradient_is_of_its_unweighted_value_and_all_add_up_to_the_losss(world, objective):
    terms = world.terms(objective)
    got = term_gradients(terms, world.parameters)
    assert list(got) == ["reconstruction", "cross_entropy"]
    for name in got:
        expected = flat_grad(world.terms(objective)[name].value, world.parameters)
        assert_near(got[name], expected)
    whole = flat_grad(total(world.terms(objective)), world.parameters)
    assert_near(sum(terms[name].weight * got[name] for name in got), whole)


def test_a_term_has_no_gradient_at_a_parameter_it_does_not_depend_on():
    one, other = nn.Parameter(torch.tensor([2.0, 3.0])), nn.Parameter(torch.tensor([5.0]))
    terms = {
        "reconstruction": Term((one**2).sum(), 1, 9.0),
        "cross_entropy": Term((one[0] * other).sum(), 1),
    }
    got = term_gradients(terms, [one, other])
    assert [vector.tolist() for vector in got.values()] == [[4, 6, 0], [5, 0, 2]]
    gradients.assign_gradient(got["reconstruction"] - got["cross_entropy"], [one, other])
    assert one.grad.tolist() == [-1, 6] and other.grad.tolist() == [-2]


@pytest.mark.parametrize("objective", SEVERAL_TERMS)
def test_the_gradient_at_the_embeddings_gives_the_adapters_by_the_chain_rule(world, objective):
    """The loss depends on the adapter through its table of embeddings alone."""
    at_embeddings = world.at_embeddings(objective)
    at_parameters = term_gradients(world.terms(objective), world.parameters)
    assert list(at_embeddings) == list(at_parameters)
    for name, gradient in at_embeddings.items():
        table = world.adapter(world.context.codebook)
        assert len(gradient) == table.numel()
        product = (table * gradient.view_as(table)).sum()
        assert_near(flat_grad(product, world.parameters), at_parameters[name], 1e-4)


@pytest.mark.parametrize("objective", SEVERAL_TERMS)
def test_only_embeddings_of_tokens_in_prompts_get_a_gradient(world, objective):
    rows = {}
    for name, vector in world.at_embeddings(objective).items():
        sizes = vector.view(len(world.context.codebook), -1).abs().sum(1)
        rows[name] = set(sizes.nonzero()[:, 0].tolist())
    used = {token for prompt in PROMPTS for token in prompt}
    padding = {world.context.lm.pad_token} if objective == "as_found" else set()
    assert rows == {"reconstruction": used, "cross_entropy": used | padding}


@pytest.mark.parametrize("objective", [*SEVERAL_TERMS, "option2_prompt_ce", "distill"])
def test_a_lookup_of_the_adapters_embeddings_has_the_adapters_loss(world, objective):
    lookup = gradients.Lookup(adapters.decode(world.adapter, world.context.codebook))
    found = find(objective)(lookup, world.batch, gradients.lookup_context(world.context))
    for name, term in world.terms(objective).items():
        assert (found[name].tokens, found[name].weight) == (term.tokens, term.weight)
        torch.testing.assert_close(found[name].value, term.value, rtol=1e-6, atol=1e-7)


def test_a_lookup_trains_a_copy_of_its_table():
    table = torch.zeros(3, 2)
    lookup = gradients.Lookup(table)
    with torch.no_grad():
        lookup.table += 1
    assert lookup(torch.tensor([[2.0]])).tolist() == [[1, 1]] and not table.any()


# ---------------------------------------------------------------- cosines and shares

VECTORS = st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=2, max_size=4)


@pytest.mark.parametrize(
    "vectors, expected",
    [
        ({"a": [1.0, 0.0], "b": [0.0, 3.0]}, 0.0),
        ({"a": [2.0, 0.0], "b": [-5.0, 0.0]}, -1.0),
        ({"a": [1.0, 0.0], "b": [1.0, 0.0], "c": [0.0, 1.0]}, math.sqrt(0.5)),
        ({"a": [3.0, 4.0], "b": [4.0, 3.0]}, 0.96),
        ({"a": [0.0, 0.0], "b": [4.0, 3.0]}, math.nan),
        ({"a": [1.0, 2.0], "b": [1.0, 1.0], "c": [-1.0, -1.0]}, math.nan),
    ],
)
def test_the_cosine_is_to_the_sum_of_the_others(vectors, expected):
    tensors = {name: torch.tensor(vector) for name, vector in vectors.items()}
    cosine = gradients.cosine_to_others(tensors, "a")
    assert cosine == pytest.approx(expected, abs=1e-6, nan_ok=True)


@given(vectors=VECTORS)
def test_shares_add_up_to_one(vectors):
    tensors = {str(i): torch.tensor(row, dtype=torch.float64) for i, row in enumerate(vectors)}
    shares = gradients.shares(tensors)
    whole = np.sum(vectors, axis=0)
    if whole.any():
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["0"] == pytest.approx(np.dot(vectors[0], whole) / np.dot(whole, whole))
    else:
        assert all(map(math.isnan, shares.values()))


def test_a_vector_against_the_sum_has_a_negative_share():
    vectors = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([-1.0, 0.0])}
    assert gradients.shares(vectors) == {"a": 1.5, "b": -0.5}


# ---------------------------------------------------------------- AdamW's step


@pytest.mark.parametrize("limit", [math.inf, 0.5], ids=["not clipped", "clipped"])
def test_the_parts_of_a_step_add_up_to_adamws(limit):
    """Two terms whose weights change at every step; in float64, for a tight tolerance."""
    start = torch.Generator().manual_seed(0)
    parameters = [
        nn.Parameter(torch.randn(shape, generator=start, dtype=torch.float64))
        for shape in ((3, 4), (5,))
    ]
    one, other = parameters
    optimizer = torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.0)
    moments, clipped = TermMoments(optimizer, parameters), 0
    for step in range(8):
        terms = {
            "reconstruction": Term((one**2).mean() + other[0] ** 4, 1),
            "cross_entropy": Term(one.sum().cos() * other.sum(), 1),
        }
        weights = {"reconstruction": 1.0 + step, "cross_entropy": 3.0 / (1 + step)}
        vectors = term_gradients(terms, parameters, keep_graph=True)
        optimizer.zero_grad()
        sum(weights[name] * term.value for name, term in terms.items()).backward()
        norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        share = min(1.0, limit / (norm + 1e-6))  # torch's own epsilon
        clipped += share < 1
        before = gradients.flat(parameters).detach()
        optimizer.step()
        moments.update({name: share * weights[name] * vectors[name] for name in terms})
        moved = gradients.flat(parameters).detach() - before
        parts = list(moments.step_parts().values())
        torch.testing.assert_close(sum(parts), -moved / 0.02, rtol=1e-9, atol=1e-11)
        assert len(parts) == 2 and min(float(part.norm()) for part in parts) > 0.01
    assert clipped == (0 if limit == math.inf else 8)


def test_moments_continue_from_their_state():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.8, 0.9))
    whole, resumed = (TermMoments(optimizer, [parameter]) for _ in range(2))
    first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 0.0, -1.0])
    whole.update({"reconstruction": first})
    resumed.load_state_dict({name: moment.clone() for name, moment in whole.state_dict().items()})
    for moments in (whole, resumed):
        moments.update({"reconstruction": second})
    torch.testing.assert_close(whole.moments["reconstruction"], 0.8 * 0.2 * first + 0.2 * second)
    assert torch.equal(whole.moments["reconstruction"], resumed.moments["reconstruction"])
