"""The objectives: what each supervises, its value and gradients by a plain reference, and what must not matter."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from stage1 import adapter as adapters
from stage1 import objectives
from stage1.compress import fit_pca, variance
from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import encode
from stage1.model import language_model
from stage1.model.generation import generate_ids
from stage1.model.language_model import FrozenLM
from stage1.objectives import (
    OBJECTIVES,
    ExampleBatch,
    ObjectiveContext,
    Term,
    TokenCounts,
    find,
    prompt_tokens,
    reads_tokens,
    total,
)

NAMES = [
    "as_found",
    "option1_reconstruction",
    "option2_prompt_ce",
    "option2_on_policy",
    "option3_teacher_forced",
    "answer_ce",
    "distill",
]
OF_EXAMPLES = [name for name in NAMES if name != "option1_reconstruction"]
MASKED = [name for name in OF_EXAMPLES if name != "as_found"]

PROMPTS, ANSWERS = [[1, 10, 11, 12], [1, 20]], [[30, 2], [31, 32, 2]]
PAD, END = 0, 2


@pytest.fixture(scope="module")
def sharp(tiny_folder):
    """A tiny model with weights large enough that its predictions depend on all that it reads."""
    lm = language_model.load(StudyConfig(language_model=str(tiny_folder), device="cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    assert (lm.pad_token, lm.end_tokens) == (PAD, [END])
    return lm


def world(lm, K=8, start="random", scaling="unit_rms", **changes):
    """An adapter and its context. Prompts fill at most 5 tokens, answers 4."""
    budgets = {"max_prompt_tokens": 5, "max_answer_tokens": 4, "max_new_tokens": 4}
    config = StudyConfig(
        device="cpu",
        initialisation=start,
        output_scaling=scaling,
        compressed_width=K,
        **{**budgets, **changes},
    )
    counts = torch.ones(len(lm.embedding_table), dtype=torch.int64)
    pca = fit_pca(lm.embedding_table, counts, K)
    adapter = adapters.make(pca, lm.embedding_table, counts, config)
    return adapter, ObjectiveContext(
        lm, pca.compress(lm.embedding_table), config, variance(lm.embedding_table, counts)
    )


def batch_for(name, prompts, answers) -> ExampleBatch | TokenCounts:
    return (
        prompt_tokens(prompts, torch.device("cpu"))
        if reads_tokens(find(name))
        else ExampleBatch(prompts, answers)
    )


def gradients(adapter, loss) -> torch.Tensor:
    got = torch.autograd.grad(loss, list(adapter.parameters()), allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(parameter).flatten() if gradient is None else gradient.flatten()
            for gradient, parameter in zip(got, adapter.parameters(), strict=True)
        ]
    )


def assert_same(adapter, loss, expected):
    """The same loss, and the same gradients up to float32 rounding relative to the largest."""
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    one, other = gradients(adapter, loss), gradients(adapter, expected)
    assert other.abs().max() > 1e-4
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@pytest.fixture
def spied(monkeypatch):
    """The positions that the output head was asked for, call by call, one string per row: `x` asked, `.` not."""
    calls, hidden = [], FrozenLM.hidden

    def spy(self, embeddings, where, mask=None, starts=None):
        rows = ["".join(".x"[asked] for asked in row) for row in where.tolist()]
        real = (
            None if mask is None else ["".join(".x"[real] for real in row) for row in mask.tolist()]
        )
        calls.append(SimpleNamespace(where=rows, mask=real, embeddings=embeddings.detach()))
        return hidden(self, embeddings, where, mask, starts)

    monkeypatch.setattr(FrozenLM, "hidden", spy)
    return calls


# ---------------------------------------------------------------- the reference: one example at a time, no padding


def read(adapter, context, prompt, answer, original=False):
    """Log-probabilities [T, V] after each token of one example, straight from the model."""
    table = context.lm.embedding_table
    begin = table[prompt] if original else adapter(context.codebook[prompt])
    inputs = torch.cat([begin, table[answer]])[None]
    return context.lm.model(inputs_embeds=inputs).logits[0].log_softmax(-1)


def mean(values) -> torch.Tensor:
    return torch.cat(list(values)).mean()


def reference_mse(adapter, context, prompts):
    table = context.lm.embedding_table
    return mean(
        (adapter(context.codebook[prompt]) - table[prompt]).square().mean(1) for prompt in prompts
    )


def reference_prompt_ce(adapter, context, prompts):
    return mean(
        -read(adapter, context, prompt, [])[torch.arange(len(prompt) - 1), prompt[1:]]
        for prompt in prompts
        if len(prompt) > 1
    )


def reference_answer_ce(adapter, context, prompts, answers):
    return mean(
        -read(adapter, context, prompt, answer)[torch.arange(len(answer)) + len(prompt) - 1, answer]
        for prompt, answer in zip(prompts, answers, strict=True)
    )


def reference_kl(adapter, context, prompts, answers):
    divergences = []
    for prompt, answer in zip(prompts, answers, strict=True):
        predicts = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        p = read(adapter, context, prompt, answer, original=True)[predicts]
        q = read(adapter, context, prompt, answer)[predicts]
        divergences.append((p.exp() * (p - q)).sum(1))
    return mean(divergences)


def reference_as_found_ce(adapter, context, prompts, answers):
    """transformers' own loss: labels everywhere, padding too, under an attention mask of the real tokens."""
    lm, config = context.lm, context.config
    rows, masks = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        left, right = config.max_prompt_tokens - len(prompt), config.max_answer_tokens - len(answer)
        rows.append(prompt + [lm.pad_token] * left + answer + [lm.pad_token] * right)
        masks.append([1] * len(prompt) + [0] * left + [1] * len(answer) + [0] * right)
    ids, mask = torch.tensor(rows), torch.tensor(masks)
    begin = config.max_prompt_tokens
    inputs = torch.cat(
        [adapter(context.codebook[ids[:, :begin]]), lm.embedding_table[ids[:, begin:]]], dim=1
    )
    return lm.model(inputs_embeds=inputs, attention_mask=mask, labels=ids).loss


def on_policy_answers(adapter, context, prompts):
    config = context.config
    return generate_ids(
        context.lm, prompts, lambda ids: adapter(context.codebook[ids]), config.max_new_tokens
    )


def expected_terms(name, adapter, context, prompts, answers) -> dict[str, Term]:
    """The terms that the objective documents, by the reference; on policy without gold answers."""
    config, mse = context.config, reference_mse(adapter, context, prompts)
    real, gold = sum(map(len, prompts)), sum(map(len, answers))
    everywhere = len(prompts) * (config.max_prompt_tokens + config.max_answer_tokens - 1)
    if name == "as_found":
        ce = reference_as_found_ce(adapter, context, prompts, answers)
        return {"reconstruction": Term(mse, real), "cross_entropy": Term(ce, everywhere)}
    if name == "option1_reconstruction":
        return {"reconstruction": Term(mse, real)}
    if name == "option2_prompt_ce":
        return {
            "cross_entropy": Term(
                reference_prompt_ce(adapter, context, prompts), real - len(prompts)
            )
        }
    if name == "option2_on_policy":
        own = on_policy_answers(adapter, context, prompts)
        return {"kl": Term(reference_kl(adapter, context, prompts, own), sum(map(len, own)))}
    if name == "distill":
        return {"kl": Term(reference_kl(adapter, context, prompts, answers), gold)}
    ce = Term(reference_answer_ce(adapter, context, prompts, answers), gold)
    if name == "answer_ce":
        return {"cross_entropy": ce}
    weighted = ce._replace(weight=config.ce_weight)
    return {
        "reconstruction": Term(mse, real, config.reconstruction_weight),
        "cross_entropy": weighted,
    }


# ---------------------------------------------------------------- the registry


def test_there_are_seven_objectives():
    assert list(OBJECTIVES) == NAMES
    assert all(find(name).__name__ == name for name in NAMES)


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("destill", "distill"),
        ("option3_teacher", "option3_teacher_forced"),
        ("as-found", "as_found"),
    ],
)
def test_an_unknown_objective_is_refused_with_the_nearest_one(wrong, right):
    with pytest.raises(
        ValueError, match=f"objective='{wrong}': expected one of as_found, .*, distill; .*'{right}'"
    ):
        find(wrong)


def test_only_the_reconstruction_reads_tokens_instead_of_examples():
    assert [name for name in NAMES if reads_tokens(find(name))] == ["option1_reconstruction"]


def test_every_objective_takes_an_adapter_a_batch_and_a_setting_and_says_what_it_is_for():
    for function in OBJECTIVES.values():
        assert list(inspect.signature(function).parameters) == ["adapter", "batch", "setting"]
        assert function.__doc__


def test_the_loss_is_the_weighted_sum_of_the_terms():
    terms = {"a": Term(torch.tensor(3.0), 7, 0.5), "b": Term(torch.tensor(5.0), 1)}
    assert float(total(terms)) == 6.5


# ---------------------------------------------------------------- what is supervised


@pytest.mark.parametrize(
    "name, wheres, tokens",
    [  # rows: prompt of 4 and answer of 2; prompt of 2 and answer of 3; a position predicts the token after it
        ("answer_ce", [["...xx.", ".xxx.."]], {"cross_entropy": 5}),
        ("distill", [["...xx.", ".xxx.."]] * 2, {"kl": 5}),
        (
            "option3_teacher_forced",
            [["...xx.", ".xxx.."]],
            {"reconstruction": 6, "cross_entropy": 5},
        ),
        ("option2_prompt_ce", [["xxx.", "x..."]], {"cross_entropy": 4}),
        ("as_found", [["xxxxxxxx.", "xxxxxxxx."]], {"reconstruction": 6, "cross_entropy": 16}),
        ("option1_reconstruction", [], {"reconstruction": 6}),
    ],
)
def test_the_supervised_positions_are_those_documented(sharp, spied, name, wheres, tokens):
    adapter, context = world(sharp)
    terms = find(name)(adapter, batch_for(name, PROMPTS, ANSWERS), context)
    assert [call.where for call in spied] == wheres
    assert {key: term.tokens for key, term in terms.items()} == tokens


def test_on_policy_the_generated_tokens_are_supervised(sharp, spied):
    adapter, context = world(sharp, gold_fraction=0.0, max_new_tokens=3)
    terms = find("option2_on_policy")(adapter, ExampleBatch(PROMPTS, ANSWERS), context)
    assert [call.where for call in spied] == [["...xxx.", ".xxx..."]] * 2
    assert terms["kl"].tokens == 6


@pytest.mark.parametrize("name", ["as_found", *MASKED])
def test_only_as_found_gives_an_attention_mask_which_skips_the_padding(sharp, spied, name):
    adapter, context = world(sharp)
    find(name)(adapter, ExampleBatch(PROMPTS, ANSWERS), context)
    as_found = ["xxxx.xx..", "xx...xxx."]  # budgets of 5 and 4
    assert [call.mask for call in spied] == (
        [as_found] if name == "as_found" else [None] * len(spied)
    )


@pytest.mark.parametrize(
    "name", ["option2_on_policy", "option3_teacher_forced", "answer_ce", "distill", "as_found"]
)
def test_the_model_reads_the_adapters_prompt_and_the_original_answer(sharp, spied, name):
    adapter, context = world(sharp, gold_fraction=1.0)
    find(name)(adapter, ExampleBatch(PROMPTS, ANSWERS), context)
    answer_begins = (
        5 if name == "as_found" else 4
    )  # the first row, whose prompt as_found pads to its budget
    row, table = spied[-1].embeddings[0], sharp.embedding_table
    torch.testing.assert_close(
        row[:4], adapter(context.codebook[PROMPTS[0]]).detach(), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(row[answer_begins : answer_begins + 2], table[ANSWERS[0]])


@pytest.mark.parametrize("name", ["distill", "option2_on_policy"])
def test_distillation_compares_with_the_model_reading_the_original_prompt(sharp, spied, name):
    adapter, context = world(sharp, gold_fraction=1.0)
    find(name)(adapter, ExampleBatch(PROMPTS, ANSWERS), context)
    assert torch.equal(spied[0].embeddings[0], sharp.embedding_table[[*PROMPTS[0], *ANSWERS[0]]])


# ---------------------------------------------------------------- values and gradients

ORDINARY = (PROMPTS, ANSWERS)
SPECIAL_WITHIN = (
    [[1, PAD, 11, END, PAD], [PAD, PAD], [END, 7, PAD]],
    [[END, PAD, 5, END], [PAD], [31, END]],
)


@pytest.mark.parametrize(
    "batch", [ORDINARY, SPECIAL_WITHIN], ids=["ordinary", "pad and end tokens within"]
)
@pytest.mark.parametrize("name", NAMES)
def test_every_term_and_its_gradient_is_that_of_the_examples_read_alone_without_padding(
    sharp, name, batch
):
    """Pad and end tokens in the middle of a prompt are tokens like others: masks come from lengths."""
    adapter, context = world(sharp, gold_fraction=0.0, reconstruction_weight=0.3, ce_weight=1.7)
    expected = expected_terms(name, adapter, context, *batch)
    terms = find(name)(adapter, batch_for(name, *batch), context)
    assert list(terms) == list(expected)
    for key, term in terms.items():
        assert (term.tokens, term.weight) == (expected[key].tokens, expected[key].weight)
        assert_same(adapter, term.value, expected[key].value)


def test_as_found_is_transformers_own_loss_on_rows_padded_to_both_budgets(sharp):
    adapter, context = world(sharp, max_prompt_tokens=7, max_answer_tokens=6)
    terms = find("as_found")(adapter, ExampleBatch(*ORDINARY), context)
    assert_same(
        adapter, terms["cross_entropy"].value, reference_as_found_ce(adapter, context, *ORDINARY)
    )
    assert terms["cross_entropy"].tokens == 2 * 12


def test_as_found_weighs_its_terms_alike_whatever_the_config_says(sharp):
    adapter, context = world(sharp, reconstruction_weight=5.0, ce_weight=0.0)
    terms = find("as_found")(adapter, ExampleBatch(*ORDINARY), context)
    assert [term.weight for term in terms.values()] == [1.0, 1.0]
    torch.testing.assert_close(total(terms), sum(term.value for term in terms.values()))


def test_option3_weighs_its_terms_as_the_config_says(sharp):
    adapter, context = world(sharp, reconstruction_weight=5.0, ce_weight=0.25)
    terms = find("option3_teacher_forced")(adapter, ExampleBatch(*ORDINARY), context)
    assert (terms["reconstruction"].weight, terms["cross_entropy"].weight) == (5.0, 0.25)
    parts = (
        5 * reference_mse(adapter, context, PROMPTS)
        + reference_answer_ce(adapter, context, *ORDINARY) / 4
    )
    assert_same(adapter, total(terms), parts)


def test_option3_is_the_reconstruction_and_the_answers_cross_entropy(sharp):
    adapter, context = world(sharp)
    both = find("option3_teacher_forced")(adapter, ExampleBatch(*ORDINARY), context)
    alone = find("option1_reconstruction")(
        adapter, batch_for("option1_reconstruction", *ORDINARY), context
    )
    alone |= find("answer_ce")(adapter, ExampleBatch(*ORDINARY), context)
    assert list(both) == list(alone) == ["reconstruction", "cross_entropy"]
    assert all(torch.equal(both[key].value, alone[key].value) for key in both)


@pytest.mark.parametrize("name", ["option1_reconstruction", "option3_teacher_forced"])
def test_the_reconstruction_term_may_be_the_share_of_variance_that_is_unexplained(sharp, name):
    adapter, context = world(sharp, reconstruction_term="fvu")
    rows = sharp.embedding_table.double().numpy()
    spread = np.cov(rows, rowvar=False, ddof=0).trace() / rows.shape[1]
    term = find(name)(adapter, batch_for(name, *ORDINARY), context)["reconstruction"]
    assert term.tokens == 6
    assert_same(adapter, term.value, reference_mse(adapter, context, PROMPTS) / spread)


def test_option3_on_that_share_is_option3_on_the_error_with_another_weight(sharp):
    adapter, share = world(
        sharp, reconstruction_term="fvu", reconstruction_weight=0.3, ce_weight=1.7
    )
    _, error = world(
        sharp, reconstruction_term="mse", reconstruction_weight=0.3 / share.variance, ce_weight=1.7
    )
    one, other = (
        total(find("option3_teacher_forced")(adapter, ExampleBatch(*ORDINARY), both))
        for both in (share, error)
    )
    assert_same(adapter, one, other)


def test_as_found_reconstructs_the_error_whatever_the_config_says(sharp):
    terms = []
    for reconstruction_term in ("mse", "fvu"):
        adapter, context = world(sharp, reconstruction_term=reconstruction_term)
        terms.append(
            find("as_found")(adapter, ExampleBatch(*ORDINARY), context)["reconstruction"].value
        )
    assert abs(context.variance - 1) > 0.1 and torch.equal(*terms)


# ---------------------------------------------------------------- what must not matter


def loss_and_gradients(name, adapter, context, prompts=PROMPTS, answers=ANSWERS):
    loss = total(find(name)(adapter, ExampleBatch(prompts, answers), context))
    return loss.detach(), gradients(adapter, loss)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("pad", [END, 77])
def test_the_pad_token_changes_no_loss_and_no_gradient(sharp, monkeypatch, name, pad):
    adapter, context = world(sharp)
    loss, gradient = loss_and_gradients(name, adapter, context)
    monkeypatch.setattr(FrozenLM, "pad_token", pad)
    assert context.lm.pad_token == pad
    other_loss, other_gradient = loss_and_gradients(name, adapter, context)
    torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        other_gradient, gradient, rtol=0, atol=1e-6 * float(gradient.abs().max())
    )


@pytest.mark.parametrize("name", MASKED)
def test_the_length_budgets_change_no_loss(sharp, name):
    first, second = (
        world(sharp, max_prompt_tokens=length, max_answer_tokens=length) for length in (5, 9)
    )
    assert torch.equal(loss_and_gradients(name, *first)[0], loss_and_gradients(name, *second)[0])


def test_as_found_depends_on_the_pad_token(sharp, monkeypatch):
    adapter, context = world(sharp)
    loss, gradient = loss_and_gradients("as_found", adapter, context)
    monkeypatch.setattr(FrozenLM, "pad_token", 77)
    other_loss, other_gradient = loss_and_gradients("as_found", adapter, context)
    assert abs(other_loss - loss) > 0.01
    assert (other_gradient - gradient).abs().max() > 0.01 * gradient.abs().max()


@pytest.mark.parametrize("budget", ["max_prompt_tokens", "max_answer_tokens"])
def test_as_found_depends_on_the_length_budgets(sharp, budget):
    adapter, context = world(sharp)
    _, larger = world(sharp, **{budget: 9})
    loss, other = (loss_and_gradients("as_found", adapter, given)[0] for given in (context, larger))
    assert abs(other - loss) > 0.01


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_a_batch_is_the_token_weighted_mean_of_its_parts(sharp, name):
    """A longer example pads the others; taken apart, each is padded less or not at all."""
    adapter, context = world(sharp, gold_fraction=0.0, max_prompt_tokens=12, max_answer_tokens=4)
    prompts = [*PROMPTS, [1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]
    answers = [*ANSWERS, [40, 41, 42, 2]]
    whole = find(name)(adapter, ExampleBatch(prompts, answers), context)
    parts = [
        find(name)(adapter, ExampleBatch(prompts[i : i + 1], answers[i : i + 1]), context)
        for i in range(3)
    ]
    for key, term in whole.items():
        assert term.tokens == sum(part[key].tokens for part in parts)
        combined = sum(part[key].tokens * part[key].value for part in parts) / term.tokens
        assert_same(adapter, term.value, combined)


# ---------------------------------------------------------------- reconstruction from counts


def corpus(seed=0, examples=40) -> list[list[int]]:
    """Prompts of different lengths in which a few tokens are frequent, the pad token among them."""
    rng = np.random.default_rng(seed)
    return [
        np.minimum(rng.zipf(1.5, size=rng.integers(1, 12)) - 1, 90).tolist()
        for _ in range(examples)
    ]


def test_from_counts_the_reconstruction_is_that_of_the_padded_and_masked_prompts(sharp):
    adapter, context = world(sharp)
    prompts = corpus()
    longest = max(map(len, prompts))
    ids = torch.tensor([prompt + [77] * (longest - len(prompt)) for prompt in prompts])
    mask = torch.arange(longest) < torch.tensor([[len(prompt)] for prompt in prompts])
    error = (adapter(context.codebook[ids]) - context.lm.embedding_table[ids]).square().mean(-1)
    counts = torch.bincount(
        torch.tensor([token for prompt in prompts for token in prompt]),
        minlength=len(context.codebook),
    )
    tokens = TokenCounts(counts.nonzero().squeeze(1), counts[counts > 0])
    assert len(tokens.ids) < mask.sum() / 2
    (term,) = find("option1_reconstruction")(adapter, tokens, context).values()
    assert term.tokens == mask.sum()
    assert_same(adapter, term.value, error[mask].mean())


def test_a_token_that_was_not_drawn_may_be_listed(sharp):
    adapter, context = world(sharp)
    listed, drawn = (
        find("option1_reconstruction")(
            adapter, TokenCounts(torch.tensor(ids), torch.tensor(counts)), context
        )
        for ids, counts in (([5, 6, 7], [2, 0, 1]), ([5, 7], [2, 1]))
    )
    assert listed["reconstruction"].tokens == 3
    torch.testing.assert_close(total(listed), total(drawn), rtol=1e-6, atol=0)


def test_on_drawn_tokens_the_gradient_is_right_in_expectation(sharp):
    """400 draws of 30 tokens. Over the 32 output biases the mean squared distance from the full gradient, in standard
    errors, is 1 in expectation (biases go together, so that it scatters); it stays below 3, and none is off by 4.5."""
    adapter, context = world(sharp)
    full = prompt_tokens(corpus(), torch.device("cpu"))
    share = (full.counts.double() / full.counts.sum()).numpy()
    rng = np.random.default_rng(0)

    def gradient(tokens):
        loss = total(find("option1_reconstruction")(adapter, tokens, context))
        return torch.autograd.grad(loss, adapter.output_norm.bias)[0].double()

    draws = []
    for counts in rng.multinomial(30, share, size=400):
        drawn = torch.from_numpy(counts.nonzero()[0])
        draws.append(gradient(TokenCounts(full.ids[drawn], torch.from_numpy(counts)[drawn])))
    sampled, expected = torch.stack(draws), gradient(full)
    off = (sampled.mean(0) - expected) / (sampled.std(0) / 400**0.5)
    assert off.square().mean() < 3 and off.abs().max() < 4.5
    # the bound can tell: what weighs every distinct token alike is far outside
    uniform = gradient(TokenCounts(full.ids, torch.ones_like(full.counts)))
    assert ((uniform - expected) / (sampled.std(0) / 400**0.5)).square().mean() > 100


# ---------------------------------------------------------------- distillation


@pytest.mark.parametrize("name", ["distill", "option2_on_policy"])
def test_the_divergence_vanishes_where_all_dimensions_are_kept(sharp, name):
    """K = D goes round up to float32: log-probabilities around -8 are rounded by about 1e-6, and so is their mean
    difference."""
    adapter, context = world(
        sharp, K=32, start="pca_inverse", scaling="calibrated", gold_fraction=0.5
    )
    torch.testing.assert_close(adapter(context.codebook), sharp.embedding_table, rtol=0, atol=1e-5)
    (term,) = find(name)(adapter, ExampleBatch(*ORDINARY), context).values()
    assert abs(float(term.value.detach())) < 5e-6


@pytest.mark.parametrize("name", ["distill", "option2_on_policy"])
def test_the_divergence_is_positive_where_dimensions_are_lost_and_grows_with_them(sharp, name):
    values = []
    for K in (24, 2):
        adapter, context = world(sharp, K=K, start="pca_inverse", gold_fraction=1.0)
        (term,) = find(name)(adapter, ExampleBatch(*ORDINARY), context).values()
        values.append(float(term.value.detach()))
    assert 0.01 < values[0] < values[1]


def test_the_divergence_is_forward(sharp):
    adapter, context = world(sharp)
    value = float(
        find("distill")(adapter, ExampleBatch([[1, 9]], [[2]]), context)["kl"].value.detach()
    )
    p, q = (
        read(adapter, context, [1, 9], [2], original)[1].detach().double()
        for original in (True, False)
    )
    assert value == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
    assert value != pytest.approx(float((q.exp() * (q - p)).sum()), rel=0.01)


# ---------------------------------------------------------------- on policy


def test_with_gold_answers_alone_on_policy_is_distillation_and_generates_nothing(
    sharp, monkeypatch
):
    monkeypatch.setattr(
        objectives, "generate_ids", lambda *_, **__: pytest.fail("nothing is to be generated")
    )
    adapter, context = world(sharp, gold_fraction=1.0)
    gold = find("option2_on_policy")(adapter, ExampleBatch(*ORDINARY), context)["kl"]
    same = find("distill")(adapter, ExampleBatch(*ORDINARY), context)["kl"]
    assert gold.tokens == same.tokens and torch.equal(gold.value, same.value)
    assert torch.equal(gradients(adapter, gold.value), gradients(adapter, same.value))


@pytest.mark.parametrize("share, kept", [(0.0, 0), (0.25, 1), (0.4, 2), (0.5, 2), (0.9, 4)])
def test_the_first_of_the_batch_keep_their_gold_answers_and_the_others_are_generated(
    sharp, share, kept
):
    adapter, context = world(sharp, gold_fraction=share)
    prompts, answers = [*PROMPTS, [1, 5, 6], [1, 7, 8, 9, 10]], [*ANSWERS, [40, 2], [41, 42, 43, 2]]
    own = on_policy_answers(adapter, context, prompts)
    mixed = answers[:kept] + own[kept:]
    term = find("option2_on_policy")(adapter, ExampleBatch(prompts, answers), context)["kl"]
    assert term.tokens == sum(map(len, mixed))
    assert_same(
        adapter,
        term.value,
        find("distill")(adapter, ExampleBatch(prompts, mixed), context)["kl"].value,
    )


def test_answers_are_generated_from_the_adapters_prompt_and_not_from_the_original(sharp):
    adapter, context = world(sharp, gold_fraction=0.0)
    from_original = generate_ids(sharp, PROMPTS, None, context.config.max_new_tokens)
    assert on_policy_answers(adapter, context, PROMPTS) != from_original
    term, other = (
        find(name)(adapter, ExampleBatch(PROMPTS, from_original), context)["kl"]
        for name in ("option2_on_policy", "distill")
    )
    assert abs(float(term.value.detach() - other.value.detach())) > 1e-3


def test_a_generated_answer_is_supervised_up_to_its_first_end_token(sharp, monkeypatch):
    adapter, context = world(sharp, gold_fraction=0.0)
    ((_, second, *_),) = on_policy_answers(adapter, context, PROMPTS[:1])
    monkeypatch.setattr(sharp.model.generation_config, "eos_token_id", [END, second])
    (stopped,) = on_policy_answers(adapter, context, PROMPTS[:1])
    assert stopped[-1] == second and len(stopped) <= 2
    term = find("option2_on_policy")(adapter, ExampleBatch(PROMPTS[:1], ANSWERS[:1]), context)["kl"]
    assert term.tokens == len(stopped)


def test_sampled_answers_depend_on_torchs_seed_alone(sharp):
    adapter, context = world(sharp, gold_fraction=0.0, temperature=1.0)

    def value(seed):
        torch.manual_seed(seed)
        return float(
            find("option2_on_policy")(adapter, ExampleBatch(*ORDINARY), context)[
                "kl"
            ].value.detach()
        )

    assert value(0) == value(0) != value(1)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_the_adapter_gets_a_gradient_and_none_of_the_model(sharp, name):
    adapter, context = world(sharp, gold_fraction=0.5)
    with sharp.unchanged():
        total(find(name)(adapter, batch_for(name, *ORDINARY), context)).backward()
    for key, parameter in adapter.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key
    assert all(parameter.grad is None for parameter in sharp.model.parameters())
    assert not context.codebook.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_from_the_pca_inverse_the_gain_alone_moves_first(sharp, name):
    adapter, context = world(sharp, start="pca_inverse", scaling="calibrated")
    total(find(name)(adapter, batch_for(name, *ORDINARY), context)).backward()
    moved = {key for key, parameter in adapter.named_parameters() if parameter.grad.abs().max() > 0}
    assert moved == {"gain"}


# ---------------------------------------------------------------- batches that cannot be


@pytest.mark.parametrize(
    "name", ["answer_ce", "distill", "option2_on_policy", "option3_teacher_forced"]
)
def test_a_batch_of_empty_answers_is_refused_by_the_objectives_name(sharp, name):
    adapter, context = world(sharp, gold_fraction=1.0)
    with pytest.raises(ValueError, match=rf"objective='{name}': the batch has no supervised token"):
        find(name)(adapter, ExampleBatch(PROMPTS, [[], []]), context)


def test_prompts_of_one_token_leave_nothing_to_predict(sharp):
    adapter, context = world(sharp)
    with pytest.raises(
        ValueError, match="objective='option2_prompt_ce': the batch has no supervised token"
    ):
        find("option2_prompt_ce")(adapter, ExampleBatch([[1], [5]], ANSWERS), context)


def test_a_prompt_of_one_token_beside_others_is_left_out(sharp):
    adapter, context = world(sharp)
    term = find("option2_prompt_ce")(adapter, ExampleBatch([[1, 5, 6], [7]], ANSWERS), context)[
        "cross_entropy"
    ]
    assert term.tokens == 2
    assert_same(adapter, term.value, reference_prompt_ce(adapter, context, [[1, 5, 6]]))


@pytest.mark.parametrize("ids, counts", [([], []), ([5, 6], [0, 0])])
def test_a_batch_without_tokens_is_refused_by_the_objectives_name(sharp, ids, counts):
    adapter, context = world(sharp)
    tokens = TokenCounts(
        torch.tensor(ids, dtype=torch.int64), torch.tensor(counts, dtype=torch.int64)
    )
    with pytest.raises(
        ValueError, match=r"objective='option1_reconstruction'.*at least one supervised token"
    ):
        find("option1_reconstruction")(adapter, tokens, context)


@pytest.mark.parametrize("name", OF_EXAMPLES)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_empty_batch_is_refused(sharp, name, share):
    adapter, context = world(sharp, gold_fraction=share)
    with pytest.raises(ValueError, match="at least one"):
        find(name)(adapter, ExampleBatch([], []), context)


@pytest.mark.parametrize("name", OF_EXAMPLES)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_empty_prompt_among_others_is_refused(sharp, name, share):
    adapter, context = world(sharp, gold_fraction=share)
    with pytest.raises(ValueError, match="at least one"):
        find(name)(adapter, ExampleBatch([[1, 5], []], ANSWERS), context)


@pytest.mark.parametrize("name", OF_EXAMPLES)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_empty_prompts_alone_are_refused(sharp, name, share):
    adapter, context = world(sharp, gold_fraction=share)
    with pytest.raises(ValueError, match="at least one"):
        find(name)(adapter, ExampleBatch([[], []], ANSWERS), context)


# ---------------------------------------------------------------- the logits of the frozen model


def inputs(lm, ids):
    return lm.embed(torch.tensor(ids))


def test_logits_are_the_models_own_at_the_marked_positions_row_by_row(sharp):
    embeddings = inputs(sharp, [[1, 10, 11, 12], [1, 20, 21, 22]])
    where = torch.tensor([[False, True, False, True], [True, False, False, False]])
    whole = sharp.model(inputs_embeds=embeddings).logits
    expected = torch.stack([whole[0, 1], whole[0, 3], whole[1, 0]])
    torch.testing.assert_close(sharp.logits(embeddings, where), expected, rtol=1e-5, atol=1e-5)


def test_the_output_head_reads_the_marked_positions_only(sharp):
    shapes = []
    head = sharp.model.get_output_embeddings()
    hook = head.register_forward_hook(
        lambda module, given, output: shapes.append(tuple(given[0].shape))
    )
    where = torch.tensor([[False, True, True, False]])
    assert sharp.logits(inputs(sharp, [[1, 10, 11, 12]]), where).shape == (2, 4_096)
    hook.remove()
    assert shapes == [(2, 32)]


def test_no_marked_position_gives_no_logits(sharp):
    nowhere = torch.zeros(1, 4, dtype=torch.bool)
    assert sharp.logits(inputs(sharp, [[1, 10, 11, 12]]), nowhere).shape == (0, 4_096)


def test_right_padding_needs_no_mask(sharp):
    """Whatever fills the padding, real positions read as if they stood alone."""
    alone = sharp.logits(inputs(sharp, [PROMPTS[1]]), torch.ones(1, 2, dtype=torch.bool))
    embeddings = inputs(sharp, [PROMPTS[0], PROMPTS[1] + [77, 78]])
    embeddings[1, 2:] = 100.0
    where = torch.tensor([[False] * 4, [True, True, False, False]])
    torch.testing.assert_close(sharp.logits(embeddings, where), alone, rtol=1e-5, atol=1e-5)


def test_a_mask_keeps_what_it_hides_from_being_read(sharp):
    embeddings = inputs(sharp, [[1, 10, 11, 12]])
    mask, where = (
        torch.tensor([[True, False, True, True]]),
        torch.tensor([[False, False, False, True]]),
    )
    masked = sharp.logits(embeddings, where, mask)
    expected = sharp.model(inputs_embeds=embeddings, attention_mask=mask.long()).logits[0, 3:]
    torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-5)
    other = embeddings.clone()
    other[0, 1] = 9.0
    torch.testing.assert_close(sharp.logits(other, where, mask), masked, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(
        sharp.logits(other, where), sharp.logits(embeddings, where), atol=0.01
    )


def test_logits_are_float32_and_embeddings_take_the_models_precision(tiny_folder):
    lm = language_model.load(
        StudyConfig(language_model=str(tiny_folder), device="cpu", dtype="bfloat16")
    )
    embeddings = lm.embed(torch.tensor([[1, 10, 11]])).float()
    where = torch.ones(1, 3, dtype=torch.bool)
    logits = lm.logits(embeddings, where)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, lm.model(inputs_embeds=embeddings.bfloat16()).logits[0].float())


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_works_with_a_model_in_bfloat16(tiny_folder, name):
    lm = language_model.load(
        StudyConfig(language_model=str(tiny_folder), device="cpu", dtype="bfloat16")
    )
    adapter, context = world(lm)
    terms = find(name)(adapter, batch_for(name, *ORDINARY), context)
    total(terms).backward()
    assert all(
        term.value.dtype == torch.float32 and term.value.isfinite() for term in terms.values()
    )
    assert adapter.gain.grad.isfinite() and adapter.gain.grad.dtype == torch.float32


def test_the_shipped_model_is_sure_of_gold_answers_and_no_longer_once_compressed(lm):
    """In nats per token: almost nothing from all 192 dimensions, as from token ids; several at K = 24."""
    encoded = encode(
        almanac.table(4, split="test", names="seen").to_pylist(),
        lm.tokenizer,
        StudyConfig(device="cpu"),
    )
    ce = {}
    for K in (24, 192):
        adapter, context = world(lm, K=K, start="pca_inverse")
        term = find("answer_ce")(adapter, ExampleBatch(encoded.prompts, encoded.answers), context)[
            "cross_entropy"
        ]
        ce[K] = float(term.value.detach())
    assert ce[192] < 0.01 and ce[24] > 2
    from_ids = []
    for prompt, answer in zip(encoded.prompts, encoded.answers, strict=True):
        logits = lm.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        from_ids.append(cross_entropy(logits, torch.tensor(answer), reduction="none"))
    assert ce[192] == pytest.approx(float(mean(from_ids)), abs=1e-3)
