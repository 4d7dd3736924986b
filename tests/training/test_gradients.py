"""The scale of loss terms: gradients against autograd, AdamW's step taken apart against AdamW, rules and references."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from stage1 import adapter as adapters
from stage1.adapter import Adapter
from stage1.compress import Compression, fit_pca, variance
from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded
from stage1.evaluation import conditions
from stage1.model import language_model
from stage1.objectives import ExampleBatch, ObjectiveContext, Term, find, total
from stage1.training import loss_scale

PROMPTS = [[1, 10, 11, 12, 10], [1, 20], [1, 11, 30, 31, 32, 33]]
ANSWERS = [[30, 2], [31, 32, 2], [2]]
SEVERAL_TERMS = ["option3_teacher_forced", "as_found"]
CONFIG = StudyConfig(
    device="cpu", compressed_width=4, initialisation="random", max_prompt_tokens=7, max_answer_tokens=4,
    eval_batch_size=2, reconstruction_weight=0.3, ce_weight=1.7,
)  # fmt: skip


@dataclass
class World:
    """A tiny model that reads attentively, an adapter and three examples."""

    adapter: Adapter
    context: ObjectiveContext
    compression: Compression
    counts: np.ndarray
    batch: Examples

    def terms(self, objective: str):
        return find(objective)(self.adapter, self.batch, self.context)


@pytest.fixture(scope="module")
def world(tiny_folder) -> World:
    lm = language_model.load(CONFIG.replace(language_model=str(tiny_folder)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    counts = np.random.default_rng(0).integers(0, 50, len(lm.embedding_table))
    compression = fit_pca(lm.embedding_table, torch.from_numpy(counts), 4)
    adapter = adapters.make(compression, lm.embedding_table, torch.from_numpy(counts), CONFIG)
    spread = variance(lm.embedding_table, torch.from_numpy(counts))
    context = ObjectiveContext(lm, compression.compress(lm.embedding_table), CONFIG, spread)
    return World(adapter, context, compression, counts, ExampleBatch(PROMPTS, ANSWERS))


def flat_grad(loss, parameters) -> torch.Tensor:
    got = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [
            torch.zeros(p.numel()) if g is None else g.flatten()
            for g, p in zip(got, parameters, strict=True)
        ]
    )


def near(one: torch.Tensor, other: torch.Tensor, share: float = 1e-5) -> None:
    """Equal up to a share of the largest entry."""
    assert other.abs().max() > 1e-4
    torch.testing.assert_close(one, other, rtol=0, atol=share * float(other.abs().max()))


# ---------------------------------------------------------------- gradients of the terms


@pytest.mark.parametrize("objective", SEVERAL_TERMS)
def test_each_terms_gradient_is_that_of_its_unweighted_value_and_they_add_up_to_the_losss(
    world, objective
):
    parameters = list(world.adapter.parameters())
    terms = world.terms(objective)
    got = loss_scale.term_gradients(terms, parameters)
    assert list(got) == ["reconstruction", "cross_entropy"]
    for name in got:
        near(got[name], flat_grad(world.terms(objective)[name].value, parameters))
    whole = flat_grad(total(world.terms(objective)), parameters)
    near(sum(terms[name].weight * got[name] for name in got), whole)


def test_a_term_that_does_not_depend_on_a_parameter_has_no_gradient_there():
    one, other = nn.Parameter(torch.tensor([2.0, 3.0])), nn.Parameter(torch.tensor([5.0]))
    terms = {
        "reconstruction": Term((one**2).sum(), 1, 9.0),
        "cross_entropy": Term((one[0] * other).sum(), 1),
    }
    got = loss_scale.term_gradients(terms, [one, other])
    assert [vector.tolist() for vector in got.values()] == [[4, 6, 0], [5, 0, 2]]
    loss_scale.put(got["reconstruction"] - got["cross_entropy"], [one, other])
    assert one.grad.tolist() == [-1, 6] and other.grad.tolist() == [-2]


@pytest.mark.parametrize("objective", SEVERAL_TERMS)
def test_the_gradient_at_the_embeddings_gives_the_adapters_by_the_chain_rule(world, objective):
    """The adapter sees the loss through its table of embeddings alone: the product of the table's gradient with the
    table's Jacobian is the gradient at its parameters."""
    _, at_embeddings = loss_scale.embedding_gradients(
        find(objective), world.adapter, world.batch, world.context
    )
    parameters = list(world.adapter.parameters())
    at_parameters = loss_scale.term_gradients(world.terms(objective), parameters)
    assert list(at_embeddings) == list(at_parameters)
    for name, gradient in at_embeddings.items():
        table = world.adapter(world.context.codebook)
        assert len(gradient) == table.numel()
        near(
            flat_grad((table * gradient.view_as(table)).sum(), parameters),
            at_parameters[name],
            1e-4,
        )


@pytest.mark.parametrize("objective", SEVERAL_TERMS)
def test_embeddings_of_tokens_that_no_prompt_has_get_no_gradient(world, objective):
    _, got = loss_scale.embedding_gradients(
        find(objective), world.adapter, world.batch, world.context
    )
    rows = {
        name: set(vector.view(len(world.counts), -1).abs().sum(1).nonzero()[:, 0].tolist())
        for name, vector in got.items()
    }
    used = {token for prompt in PROMPTS for token in prompt}
    assert rows["reconstruction"] == used
    assert rows["cross_entropy"] == used | (
        {world.context.lm.pad_token} if objective == "as_found" else set()
    )


@pytest.mark.parametrize("objective", [*SEVERAL_TERMS, "option2_prompt_ce", "answer_ce", "distill"])
def test_looking_up_the_adapters_embeddings_is_the_adapters_loss(world, objective):
    lookup = loss_scale.Lookup(adapters.decode(world.adapter, world.context.codebook))
    looked_up = find(objective)(lookup, world.batch, loss_scale.looking_up(world.context))
    for name, term in world.terms(objective).items():
        assert (looked_up[name].tokens, looked_up[name].weight) == (term.tokens, term.weight)
        torch.testing.assert_close(looked_up[name].value, term.value, rtol=1e-6, atol=1e-7)


def test_a_lookup_leaves_its_table_alone():
    table = torch.zeros(3, 2)
    lookup = loss_scale.Lookup(table)
    with torch.no_grad():
        lookup.table += 1
    assert lookup(torch.tensor([[2.0]])).tolist() == [[1, 1]] and not table.any()


# ---------------------------------------------------------------- cosines and shares

VECTORS = st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=2, max_size=4)


@pytest.mark.parametrize(
    "vectors, expected",
    [
        ({"a": [1.0, 0.0], "b": [0.0, 3.0]}, 0.0),
        ({"a": [2.0, 0.0], "b": [5.0, 0.0]}, 1.0),
        ({"a": [2.0, 0.0], "b": [-5.0, 0.0]}, -1.0),
        ({"a": [1.0, 0.0], "b": [1.0, 0.0], "c": [0.0, 1.0]}, math.sqrt(0.5)),
        ({"a": [3.0, 4.0], "b": [4.0, 3.0]}, 0.96),
        ({"a": [0.0, 0.0], "b": [4.0, 3.0]}, math.nan),
        ({"a": [1.0, 2.0], "b": [1.0, 1.0], "c": [-1.0, -1.0]}, math.nan),
    ],
)
def test_the_cosine_is_that_with_the_sum_of_the_others(vectors, expected):
    tensors = {name: torch.tensor(vector) for name, vector in vectors.items()}
    assert loss_scale.cosine_to_others(tensors, "a") == pytest.approx(
        expected, abs=1e-6, nan_ok=True
    )


@given(vectors=VECTORS)
def test_shares_add_up_to_one(vectors):
    tensors = {
        str(i): torch.tensor(vector, dtype=torch.float64) for i, vector in enumerate(vectors)
    }
    shares = loss_scale.shares(tensors)
    whole = np.sum(vectors, axis=0)
    if whole.any():
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["0"] == pytest.approx(np.dot(vectors[0], whole) / np.dot(whole, whole))
    else:
        assert all(map(math.isnan, shares.values()))


def test_what_points_against_the_sum_has_a_negative_share():
    assert loss_scale.shares({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([-1.0, 0.0])}) == {
        "a": 1.5,
        "b": -0.5,
    }


# ---------------------------------------------------------------- AdamW's step


@pytest.mark.parametrize("limit", [math.inf, 0.5], ids=["not clipped", "clipped"])
def test_the_parts_of_an_update_add_up_to_what_adamw_did(limit):
    """Two terms whose weights change at every step; in float64, so that the comparison is sharp."""
    start = torch.Generator().manual_seed(0)
    parameters = [
        nn.Parameter(torch.randn(shape, generator=start, dtype=torch.float64))
        for shape in ((3, 4), (5,))
    ]
    one, other = parameters
    optimizer = torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.0)
    update, clipped = loss_scale.Update(optimizer, parameters), 0
    for step in range(8):
        terms = {"reconstruction": Term((one**2).mean() + other[0] ** 4, 1)}
        terms |= {"cross_entropy": Term(one.sum().cos() * other.sum(), 1)}
        weights = {"reconstruction": 1.0 + step, "cross_entropy": 3.0 / (1 + step)}
        gradients = loss_scale.term_gradients(terms, parameters)
        optimizer.zero_grad()
        sum(weights[name] * term.value for name, term in terms.items()).backward()
        norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        share = min(1.0, limit / (norm + 1e-6))  # torch's own small number
        clipped += share < 1
        before = torch.cat([p.detach().flatten() for p in parameters])
        optimizer.step()
        update.follow({name: share * weights[name] * gradients[name] for name in terms})
        moved = torch.cat([p.detach().flatten() for p in parameters]) - before
        parts = list(update.parts().values())
        torch.testing.assert_close(sum(parts), -moved / 0.02, rtol=1e-9, atol=1e-11)
        assert len(parts) == 2 and min(float(part.norm()) for part in parts) > 0.01
    assert clipped == (0 if limit == math.inf else 8)


def test_an_update_goes_on_from_its_state():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.8, 0.9))
    whole, resumed = (loss_scale.Update(optimizer, [parameter]) for _ in range(2))
    first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 0.0, -1.0])
    whole.follow({"reconstruction": first})
    resumed.load_state_dict({name: moment.clone() for name, moment in whole.state_dict().items()})
    for update in (whole, resumed):
        update.follow({"reconstruction": second})
    torch.testing.assert_close(whole.moments["reconstruction"], 0.8 * 0.2 * first + 0.2 * second)
    assert torch.equal(whole.moments["reconstruction"], resumed.moments["reconstruction"])


# ---------------------------------------------------------------- balancing


@given(long=st.floats(1e-4, 1e4), other=st.floats(1e-4, 1e4), scale=st.floats(1e-3, 1e3))
def test_equal_norms_are_equal_whatever_the_scale_of_a_term(long, other, scale):
    def pulls(long) -> tuple[dict, float]:
        gradients = {
            "reconstruction": torch.tensor([long, 0.0]),
            "cross_entropy": torch.tensor([other, -other]),
        }
        terms = {name: Term(torch.tensor(2.0), 1, 7.0) for name in gradients}
        weighed = loss_scale.equal_norms(terms, gradients)
        weights = {name: weighed[name].weight for name in gradients}
        assert sum(weights.values()) == pytest.approx(2)
        return {name: weights[name] * float(gradients[name].norm()) for name in weights}, weights[
            "reconstruction"
        ]

    (one, weight), (rescaled, lighter) = pulls(long), pulls(scale * long)
    assert one["reconstruction"] == pytest.approx(one["cross_entropy"], rel=1e-5)
    assert rescaled["reconstruction"] == pytest.approx(rescaled["cross_entropy"], rel=1e-5)
    assert scale * lighter / (2 - lighter) == pytest.approx(weight / (2 - weight), rel=1e-3)


def test_uncertainty_starts_at_its_likelihoods_factors_and_follows_the_formula():
    rule = loss_scale.Uncertainty()
    terms = {
        "reconstruction": Term(torch.tensor(0.2), 5),
        "cross_entropy": Term(torch.tensor(3.0), 2, 9.0),
    }
    assert [term.weight for term in rule(terms).values()] == [0.5, 1.0, 1.0]
    with torch.no_grad():
        rule.log_variance["reconstruction"].fill_(-1.0)
        rule.log_variance["cross_entropy"].fill_(0.5)
    loss = total(rule(terms))
    expected = math.exp(1) / 2 * 0.2 - 0.5 + math.exp(-0.5) * 3 + 0.25
    assert float(loss.detach()) == pytest.approx(expected)
    loss.backward()
    assert float(rule.log_variance["reconstruction"].grad) == pytest.approx(
        0.5 - math.exp(1) / 2 * 0.2
    )
    assert float(rule.log_variance["cross_entropy"].grad) == pytest.approx(0.5 - math.exp(-0.5) * 3)
    assert rule.log_variance["kl"].grad is None
    assert [term.tokens for term in rule(terms).values()] == [5, 2, 0]


@pytest.mark.parametrize(
    "name, value, rest",
    [("reconstruction", 0.3, math.log(0.3)), ("cross_entropy", 4.0, math.log(8.0))],
)
def test_uncertainty_comes_to_rest_at_the_terms_own_scale(name, value, rest):
    """exp(-s) v / 2 + s / 2 is least at s = log v, and exp(-s) v + s / 2 at s = log 2v."""
    rule = loss_scale.Uncertainty()
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        total(rule({name: Term(torch.tensor(value), 1)})).backward()
        optimizer.step()
    assert float(rule.log_variance[name].detach()) == pytest.approx(rest, abs=1e-4)


# ---------------------------------------------------------------- references


@pytest.fixture(scope="module")
def references(world):
    """Of a config whose adapter would start at the PCA inverse: the two random starts are random all the same."""
    table, config = world.context.lm.embedding_table, CONFIG.replace(initialisation="pca_inverse")
    found = loss_scale.reconstruction_references(table, world.counts, world.compression, config)
    return found.set_index("predictor")


def test_reconstructions_that_need_no_training_have_their_textbook_errors(world, references):
    table, share = (
        world.context.lm.embedding_table.double().numpy(),
        world.counts / world.counts.sum(),
    )
    mean = share @ table
    spread = share @ ((table - mean) ** 2).mean(1)
    expected = {
        "zero": share @ (table**2).mean(1),
        "constant mean": spread,
        "original embeddings": 0.0,
    }
    for name, mse in expected.items():
        assert references.loc[name].tolist() == pytest.approx([mse, mse / spread], rel=1e-5)
    assert references.loc["pca_inverse", "fvu"] == pytest.approx(
        1 - world.compression.kept, rel=1e-4
    )
    # A random start knows nothing of the embeddings: its own mean square adds to theirs, or its own variance.
    assert references.loc["random start, unit_rms", "mse"] == pytest.approx(
        1 + expected["zero"], rel=0.1
    )
    assert references.loc["random start, calibrated", "fvu"] == pytest.approx(2, rel=0.1)


def test_the_references_are_measured_as_an_adapter_is(world, references):
    table, counts = world.context.lm.embedding_table, world.counts
    rebuilt = {"pca_inverse": world.compression.expand(world.context.codebook)}
    for scaling in ("unit_rms", "calibrated"):
        config = CONFIG.replace(output_scaling=scaling)
        start = adapters.make(world.compression, table, torch.from_numpy(counts), config)
        rebuilt[f"random start, {scaling}"] = adapters.decode(start, world.context.codebook)
    for name, guess in rebuilt.items():
        expected = conditions.reconstruction(table, guess, counts)
        assert references.loc[name].tolist() == pytest.approx([expected["mse"], expected["fvu"]])


def encoded() -> Encoded:
    names = [str(i) for i in range(len(PROMPTS))]
    return Encoded(names, names, [["x"]] * len(PROMPTS), PROMPTS, ANSWERS, shortened=0, dropped=0)


def labels(world) -> dict[str, list[int]]:
    """Every label of each set of tokens, row by row."""
    pad, begin, room = (
        world.context.lm.pad_token,
        CONFIG.max_prompt_tokens,
        CONFIG.max_answer_tokens,
    )
    answers = [token for answer in ANSWERS for token in answer]
    prompts = [token for prompt in PROMPTS for token in prompt[1:]]
    whole = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        row = prompt + [pad] * (begin - len(prompt)) + answer + [pad] * (room - len(answer))
        whole += row[1:]
    return {"answer": answers, "prompt": prompts, "prompt, padding, answer": whole}


def test_cross_entropy_without_an_adapter_lies_between_knowing_and_guessing(world):
    found = loss_scale.ce_references(encoded(), world.context).set_index("tokens")
    assert list(found.index) == ["answer", "prompt", "prompt, padding, answer"]
    for name, tokens in labels(world).items():
        assert found.loc[name, "supervised"] == len(tokens)
        assert found.loc[name, "own frequencies"] == pytest.approx(
            stats.entropy(np.unique(tokens, return_counts=True)[1])
        )
    assert found["uniform"].tolist() == pytest.approx([math.log(len(world.counts))] * 3)


def test_cross_entropy_from_the_original_embeddings_is_the_models_own_loss_on_the_token_ids(world):
    """One example at a time, so that batches of different sizes must be weighed by their tokens."""
    model, pad = world.context.lm.model, world.context.lm.pad_token
    sums = dict.fromkeys(labels(world), 0.0)
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        left, right = CONFIG.max_prompt_tokens - len(prompt), CONFIG.max_answer_tokens - len(answer)
        padded = prompt + [pad] * left + answer + [pad] * right
        real = [1] * len(prompt) + [0] * left + [1] * len(answer) + [0] * right
        for name, ids, supervised, mask in (
            ("answer", prompt + answer, [-100] * len(prompt) + answer, None),
            ("prompt", prompt, prompt, None),
            ("prompt, padding, answer", padded, padded, torch.tensor([real])),
        ):
            given, wanted = torch.tensor([ids]), torch.tensor([supervised])
            with torch.no_grad():
                loss = model(input_ids=given, attention_mask=mask, labels=wanted).loss
            sums[name] += float(loss) * int((wanted[:, 1:] != -100).sum())
    found = loss_scale.ce_references(encoded(), world.context).set_index("tokens")
    for name, tokens in labels(world).items():
        assert found.loc[name, "original embeddings"] == pytest.approx(
            sums[name] / len(tokens), rel=1e-5
        )


@pytest.mark.parametrize(
    "grid, expected",
    [
        ({1.0: 0.4, 100.0: 0.6}, 10.0),
        ({100.0: 0.6, 1.0: 0.4}, 10.0),
        ({0.01: 0.1, 0.1: 0.2, 1.0: 0.8, 10.0: 0.9}, 10**-0.5),
        ({1.0: 0.25, 16.0: 0.75, 1_000.0: 0.99}, 4.0),
        ({1.0: 0.3, 2.0: 0.5}, 2.0),
        ({1.0: 0.1, 10.0: 0.4}, math.nan),
        ({1.0: 0.6, 10.0: 0.9}, math.nan),
        ({1.0: 0.1}, math.nan),
        ({}, math.nan),
    ],
)
def test_the_crossover_is_where_a_share_passes_one_half_in_log_weight(grid, expected):
    assert loss_scale.crossover(grid) == pytest.approx(expected, nan_ok=True)
