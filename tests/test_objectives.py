"""The objectives: what each supervises, values and gradients by a plain reference, invariances."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from stage1 import adapter as adapters
from stage1 import names, objectives
from stage1.compress import fit_pca, variance
from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import encode
from stage1.loss_parts import ExampleBatch, ObjectiveContext, Term, Terms, TokenCounts, total
from stage1.model import loading
from stage1.model.generation import generate_ids
from stage1.model.language_model import FrozenLM
from stage1.objectives import FUNCTIONS, find, prompt_tokens, reads_tokens

NAMES = list(names.OBJECTIVES)
OF_EXAMPLES = [name for name in NAMES if name != "option1_reconstruction"]
MASKED = [name for name in OF_EXAMPLES if name != "as_found"]

PROMPTS, ANSWERS = [[1, 10, 11, 12], [1, 20]], [[30, 2], [31, 32, 2]]
PAD, END = 0, 2


@pytest.fixture
def sharp(sharp_lm):
    assert (sharp_lm.pad_token, sharp_lm.end_tokens) == (PAD, [END])
    return sharp_lm


def world(lm, K=8, start="random", scaling="unit_rms", **changes):
    """Return an adapter and its context. Prompts have a budget of 5 tokens, answers of 4."""
    budgets = {"max_prompt_tokens": 5, "max_answer_tokens": 4, "max_new_tokens": 4}
    about = {"initialisation": start, "output_scaling": scaling, "compressed_width": K}
    config = StudyConfig(device="cpu", **about, **{**budgets, **changes})
    table = lm.embedding_table
    counts = torch.ones(len(table), dtype=torch.int64)
    pca = fit_pca(table, counts, K)
    context = ObjectiveContext(lm, pca.compress(table), config, variance(table, counts))
    return adapters.make(pca, table, counts, config), context


def batch_for(name, prompts, answers) -> ExampleBatch | TokenCounts:
    if reads_tokens(name):
        return prompt_tokens(prompts, torch.device("cpu"))
    return ExampleBatch(prompts, answers)


def terms_of(name, adapter, context, prompts=PROMPTS, answers=ANSWERS) -> Terms:
    return find(name)(adapter, batch_for(name, prompts, answers), context)


def term_of(name, adapter, context, prompts=PROMPTS, answers=ANSWERS) -> Term:
    """Return the only term."""
    (term,) = terms_of(name, adapter, context, prompts, answers).values()
    return term


def number(term: Term) -> float:
    return float(term.value.detach())


def gradients(adapter, loss) -> torch.Tensor:
    parameters = list(adapter.parameters())
    parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def assert_same(adapter, loss, expected):
    """Assert the same loss, and gradients equal up to float32 rounding relative to the largest."""
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    one, other = gradients(adapter, loss), gradients(adapter, expected)
    assert other.abs().max() > 1e-4
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def drawn(mask: torch.Tensor) -> list[str]:
    """Return one string per row, `x` where the mask is True and `.` elsewhere."""
    return ["".join(".x"[flag] for flag in row) for row in mask.tolist()]


@pytest.fixture
def spied(monkeypatch):
    """The calls of the language model: positions that the output head reads, mask, embeddings."""
    calls, hidden = [], FrozenLM.hidden

    def spy(self, embeddings, where, mask=None, starts=None):
        call = SimpleNamespace(where=drawn(where), embeddings=embeddings.detach())
        call.mask = None if mask is None else drawn(mask)
        calls.append(call)
        return hidden(self, embeddings, where, mask, starts)

    monkeypatch.setattr(FrozenLM, "hidden", spy)
    return calls


# ---------------------------------------------------------------- reference, by single examples


def read(adapter, context, prompt, answer, original=False):
    """Return log-probabilities [T, V] after each token of one example, from the model itself."""
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
    losses = []
    for prompt, answer in zip(prompts, answers, strict=True):
        predictors = torch.arange(len(answer)) + len(prompt) - 1
        losses.append(-read(adapter, context, prompt, answer)[predictors, answer])
    return mean(losses)


def reference_kl(adapter, context, prompts, answers):
    divergences = []
    for prompt, answer in zip(prompts, answers, strict=True):
        predicts = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        p = read(adapter, context, prompt, answer, original=True)[predicts]
        q = read(adapter, context, prompt, answer)[predicts]
        divergences.append((p.exp() * (p - q)).sum(1))
    return mean(divergences)


def reference_as_found_ce(adapter, context, prompts, answers):
    """Return transformers' own loss: labels everywhere, attention to real tokens only."""
    lm, config = context.lm, context.config
    rows, masks = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        left, right = config.max_prompt_tokens - len(prompt), config.max_answer_tokens - len(answer)
        rows.append(prompt + [lm.pad_token] * left + answer + [lm.pad_token] * right)
        masks.append([1] * len(prompt) + [0] * left + [1] * len(answer) + [0] * right)
    ids, mask = torch.tensor(rows), torch.tensor(masks)
    prompt_ids, answer_ids = ids.split([config.max_prompt_tokens, config.max_answer_tokens], dim=1)
    rebuilt = adapter(context.codebook[prompt_ids])
    inputs = torch.cat([rebuilt, lm.embedding_table[answer_ids]], dim=1)
    return lm.model(inputs_embeds=inputs, attention_mask=mask, labels=ids).loss


def on_policy_answers(adapter, context, prompts):
    length = context.config.max_new_tokens
    return generate_ids(context.lm, prompts, lambda ids: adapter(context.codebook[ids]), length)


def expected_terms(name, adapter, context, prompts, answers) -> dict[str, Term]:
    """Return the terms that the objective documents; on policy without gold answers."""
    config, mse = context.config, reference_mse(adapter, context, prompts)
    real, gold = sum(map(len, prompts)), sum(map(len, answers))
    everywhere = len(prompts) * (config.max_prompt_tokens + config.max_answer_tokens - 1)
    if name == "as_found":
        ce = reference_as_found_ce(adapter, context, prompts, answers)
        return {"reconstruction": Term(mse, real), "cross_entropy": Term(ce, everywhere)}
    if name == "option1_reconstruction":
        return {"reconstruction": Term(mse, real)}
    if name == "option2_prompt_ce":
        ce = reference_prompt_ce(adapter, context, prompts)
        return {"cross_entropy": Term(ce, real - len(prompts))}
    if name == "option2_on_policy":
        own = on_policy_answers(adapter, context, prompts)
        return {"kl": Term(reference_kl(adapter, context, prompts, own), sum(map(len, own)))}
    if name == "distill":
        return {"kl": Term(reference_kl(adapter, context, prompts, answers), gold)}
    ce = Term(reference_answer_ce(adapter, context, prompts, answers), gold)
    if name == "answer_ce":
        return {"cross_entropy": ce}
    error = Term(mse, real, config.reconstruction_weight)
    return {"reconstruction": error, "cross_entropy": ce._replace(weight=config.ce_weight)}


# ---------------------------------------------------------------- the registry


def test_every_named_objective_has_a_function_and_every_function_a_name():
    assert list(names.OBJECTIVES) == list(FUNCTIONS)
    assert all(find(name).__name__ == name for name in NAMES)


def test_every_objective_takes_an_adapter_a_batch_and_a_context_and_is_documented():
    for function in FUNCTIONS.values():
        assert list(inspect.signature(function).parameters) == ["adapter", "batch", "context"]
        assert function.__doc__


def test_an_objective_without_a_name_in_the_table_is_not_registered():
    def nameless(adapter, batch, context):
        return {}

    with pytest.raises(ValueError, match="objective='nameless': expected an entry of names"):
        objectives.objective(nameless)
    assert "nameless" not in FUNCTIONS


def test_objectives_and_terms_have_colours_of_their_own():
    for table in (names.OBJECTIVES, names.TERMS):
        colours = [entry.colour for entry in table.values()]
        assert len(set(colours)) == len(colours)
    objectives_ = {entry.colour for entry in names.OBJECTIVES.values()}
    assert not objectives_ & {entry.colour for entry in names.CONDITIONS.values()}


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("destill", "distill"),
        ("option3_teacher", "option3_teacher_forced"),
        ("as-found", "as_found"),
    ],
)
def test_an_unknown_objective_is_refused_with_the_nearest_one(wrong, right):
    words = f"objective='{wrong}': expected one of as_found, .*, distill; .*'{right}'"
    with pytest.raises(ValueError, match=words):
        find(wrong)


def test_only_reconstruction_reads_tokens_instead_of_examples():
    assert [name for name in NAMES if reads_tokens(name)] == ["option1_reconstruction"]


def test_the_loss_is_the_weighted_sum_of_the_terms():
    terms = {"a": Term(torch.tensor(3.0), 7, 0.5), "b": Term(torch.tensor(5.0), 1)}
    assert float(total(terms)) == 6.5


# ---------------------------------------------------------------- what is supervised


@pytest.mark.parametrize(
    "name, wheres, tokens",
    [  # rows: prompt of 4, answer of 2; prompt of 2, answer of 3. Positions predict the next token.
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
    terms = terms_of(name, adapter, context)
    assert [call.where for call in spied] == wheres
    assert {key: term.tokens for key, term in terms.items()} == tokens


def test_on_policy_the_generated_tokens_are_supervised(sharp, spied):
    adapter, context = world(sharp, gold_fraction=0.0, max_new_tokens=3)
    term = term_of("option2_on_policy", adapter, context)
    assert [call.where for call in spied] == [["...xxx.", ".xxx..."]] * 2
    assert term.tokens == 6


@pytest.mark.parametrize("name", MASKED)
def test_only_as_found_gives_an_attention_mask(sharp, spied, name):
    terms_of(name, *world(sharp))
    assert spied and not any(call.mask for call in spied)


@pytest.mark.parametrize(
    "name", ["option2_on_policy", "option3_teacher_forced", "answer_ce", "distill", "as_found"]
)
def test_the_model_reads_the_adapters_prompt_and_the_original_answer(sharp, spied, name):
    adapter, context = world(sharp, gold_fraction=1.0)
    terms_of(name, adapter, context)
    begin = 5 if name == "as_found" else 4  # as_found pads the prompt to its budget
    row = spied[-1].embeddings[0]
    rebuilt = adapter(context.codebook[PROMPTS[0]]).detach()
    torch.testing.assert_close(row[:4], rebuilt, rtol=1e-5, atol=1e-6)
    assert torch.equal(row[begin : begin + 2], sharp.embedding_table[ANSWERS[0]])


@pytest.mark.parametrize("name", ["distill", "option2_on_policy"])
def test_the_teacher_of_distillation_reads_the_original_prompt(sharp, spied, name):
    terms_of(name, *world(sharp, gold_fraction=1.0))
    assert torch.equal(spied[0].embeddings[0], sharp.embedding_table[[*PROMPTS[0], *ANSWERS[0]]])


# ---------------------------------------------------------------- values and gradients

ORDINARY = (PROMPTS, ANSWERS)
SPECIAL_WITHIN = (
    [[1, PAD, 11, END, PAD], [PAD, PAD], [END, 7, PAD]],
    [[END, PAD, 5, END], [PAD], [31, END]],
)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch", [ORDINARY, SPECIAL_WITHIN], ids=["ordinary", "special within"])
@pytest.mark.parametrize("name", NAMES)
def test_terms_and_gradients_are_those_of_single_examples_without_padding(
    sharp, name, batch, packed
):
    """Pad and end tokens within a prompt are ordinary tokens: masks come from lengths."""
    weights = {"reconstruction_weight": 0.3, "ce_weight": 1.7}
    adapter, context = world(sharp, gold_fraction=0.0, packed=packed, **weights)
    expected = expected_terms(name, adapter, context, *batch)
    terms = terms_of(name, adapter, context, *batch)
    assert list(terms) == list(expected)
    for key, term in terms.items():
        assert (term.tokens, term.weight) == (expected[key].tokens, expected[key].weight)
        assert_same(adapter, term.value, expected[key].value)


def test_as_found_is_transformers_own_loss_on_rows_padded_to_both_budgets(sharp):
    adapter, context = world(sharp, max_prompt_tokens=7, max_answer_tokens=6)
    ce = terms_of("as_found", adapter, context)["cross_entropy"]
    assert_same(adapter, ce.value, reference_as_found_ce(adapter, context, *ORDINARY))
    assert ce.tokens == 2 * 12


def test_as_found_weights_its_terms_equally_whatever_the_config_says(sharp):
    adapter, context = world(sharp, reconstruction_weight=5.0, ce_weight=0.0)
    terms = terms_of("as_found", adapter, context)
    assert [term.weight for term in terms.values()] == [1.0, 1.0]
    torch.testing.assert_close(total(terms), sum(term.value for term in terms.values()))


def test_option3_weights_its_terms_as_the_config_says(sharp):
    adapter, context = world(sharp, reconstruction_weight=5.0, ce_weight=0.25)
    terms = terms_of("option3_teacher_forced", adapter, context)
    assert (terms["reconstruction"].weight, terms["cross_entropy"].weight) == (5.0, 0.25)
    error = reference_mse(adapter, context, PROMPTS)
    ce = reference_answer_ce(adapter, context, *ORDINARY)
    assert_same(adapter, total(terms), 5 * error + ce / 4)


def test_option3_is_option1_and_answer_cross_entropy(sharp):
    adapter, context = world(sharp)
    both = terms_of("option3_teacher_forced", adapter, context)
    alone = terms_of("option1_reconstruction", adapter, context)
    alone |= terms_of("answer_ce", adapter, context)
    assert list(both) == list(alone) == ["reconstruction", "cross_entropy"]
    assert all(torch.equal(both[key].value, alone[key].value) for key in both)


@pytest.mark.parametrize("name", ["option1_reconstruction", "option3_teacher_forced"])
def test_the_reconstruction_term_may_be_the_fraction_of_variance_unexplained(sharp, name):
    adapter, context = world(sharp, reconstruction_term="fvu")
    rows = sharp.embedding_table.double().numpy()
    spread = np.cov(rows, rowvar=False, ddof=0).trace() / rows.shape[1]
    term = terms_of(name, adapter, context)["reconstruction"]
    assert term.tokens == 6
    assert_same(adapter, term.value, reference_mse(adapter, context, PROMPTS) / spread)


def test_option3_with_fvu_is_option3_with_mse_and_another_weight(sharp):
    adapter, fvu = world(sharp, reconstruction_term="fvu", reconstruction_weight=0.3, ce_weight=1.7)
    weight = 0.3 / fvu.variance
    _, error = world(sharp, reconstruction_weight=weight, ce_weight=1.7)
    one, other = (
        total(terms_of("option3_teacher_forced", adapter, context)) for context in (fvu, error)
    )
    assert_same(adapter, one, other)


def test_as_found_reconstructs_by_mse_whatever_the_config_says(sharp):
    values = []
    for reconstruction_term in ("mse", "fvu"):
        adapter, context = world(sharp, reconstruction_term=reconstruction_term)
        values.append(terms_of("as_found", adapter, context)["reconstruction"].value)
    assert abs(context.variance - 1) > 0.1 and torch.equal(*values)


# ---------------------------------------------------------------- padding layouts of as_found


@pytest.mark.parametrize(
    "layout, supervised, mask",
    [  # rows: prompt of 4 (budget 5), answer of 2 (budget 4); prompt of 2, answer of 3
        ("as_found", ["xxxxxxxx.", "xxxxxxxx."], ["xxxx.xx..", "xx...xxx."]),
        ("no_labels_on_padding", ["xxx.xx...", "x...xxx.."], ["xxxx.xx..", "xx...xxx."]),
        ("no_gap", ["xxxxxxxx.", "xxxxxxxx."], ["xxxxxx...", "xxxxx...."]),
        ("no_padding", ["xxxxx....", "xxxx....."], ["xxxxxx...", "xxxxx...."]),
    ],
)
def test_a_padding_layout_moves_the_padding_and_its_labels(sharp, spied, layout, supervised, mask):
    adapter, context = world(sharp, padding_layout=layout)
    ce = terms_of("as_found", adapter, context)["cross_entropy"]
    (call,) = spied
    assert (call.where, call.mask) == (supervised, mask)
    assert ce.tokens == "".join(supervised).count("x")


@pytest.mark.parametrize(
    "layout, supervised",
    [
        ("as_found", ["...xxxxx.", ".xxxxxxx."]),
        ("no_labels_on_padding", ["....xx...", "....xxx.."]),
        ("no_gap", ["...xxxxx.", ".xxxxxxx."]),
        ("no_padding", ["...xx....", ".xxx....."]),
    ],
)
def test_labels_on_the_answer_leave_out_the_prompt_alone(sharp, spied, layout, supervised):
    adapter, context = world(sharp, padding_layout=layout, labels_on="answer")
    terms_of("as_found", adapter, context)
    (call,) = spied
    assert call.where == supervised


def test_without_a_gap_and_labels_on_padding_as_found_reads_plain_examples(sharp):
    """The mean over prompts and answers, of examples read one at a time."""
    adapter, context = world(sharp, padding_layout="no_padding")
    ce = terms_of("as_found", adapter, context)["cross_entropy"]
    losses = []
    for prompt, answer in zip(*ORDINARY, strict=True):
        labels = [*prompt, *answer][1:]
        log_probabilities = read(adapter, context, prompt, answer)[:-1]
        losses.append(-log_probabilities[torch.arange(len(labels)), labels])
    assert_same(adapter, ce.value, mean(losses))


@pytest.mark.parametrize("layout", ["no_labels_on_padding", "no_padding"])
def test_without_labels_on_padding_the_pad_token_changes_nothing(sharp, monkeypatch, layout):
    """The gap's last position still reads the pad token's embedding, to predict the answer."""
    adapter, context = world(sharp, padding_layout=layout)
    before = terms_of("as_found", adapter, context)["cross_entropy"].value
    monkeypatch.setattr(FrozenLM, "pad_token", 77)
    after = terms_of("as_found", adapter, context)["cross_entropy"].value
    assert torch.equal(before, after) == (layout == "no_padding")


# ---------------------------------------------------------------- invariances


def loss_and_gradients(name, adapter, context):
    loss = total(terms_of(name, adapter, context))
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
    largest = float(gradient.abs().max())
    torch.testing.assert_close(other_gradient, gradient, rtol=0, atol=1e-6 * largest)


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
    """A longer example pads the others; read alone, each is padded less or not at all."""
    adapter, context = world(sharp, gold_fraction=0.0, max_prompt_tokens=12, max_answer_tokens=4)
    prompts = [*PROMPTS, [1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]
    answers = [*ANSWERS, [40, 41, 42, 2]]
    whole = terms_of(name, adapter, context, prompts, answers)
    pairs = zip(prompts, answers, strict=True)
    parts = [terms_of(name, adapter, context, [prompt], [answer]) for prompt, answer in pairs]
    for key, term in whole.items():
        assert term.tokens == sum(part[key].tokens for part in parts)
        combined = sum(part[key].tokens * part[key].value for part in parts) / term.tokens
        assert_same(adapter, term.value, combined)


# ---------------------------------------------------------------- reconstruction from counts


def corpus(seed=0, examples=40) -> list[list[int]]:
    """Return prompts of different lengths with a few frequent tokens, the pad token among them."""
    rng = np.random.default_rng(seed)
    lengths = (rng.integers(1, 12) for _ in range(examples))
    return [np.minimum(rng.zipf(1.5, size=length) - 1, 90).tolist() for length in lengths]


def test_reconstruction_from_counts_is_that_of_padded_and_masked_prompts(sharp):
    adapter, context = world(sharp)
    prompts = corpus()
    longest = max(map(len, prompts))
    ids = torch.tensor([prompt + [77] * (longest - len(prompt)) for prompt in prompts])
    mask = torch.arange(longest) < torch.tensor([[len(prompt)] for prompt in prompts])
    error = (adapter(context.codebook[ids]) - context.lm.embedding_table[ids]).square().mean(-1)
    counts = torch.bincount(ids[mask], minlength=len(context.codebook))
    tokens = TokenCounts(counts.nonzero().squeeze(1), counts[counts > 0])
    assert len(tokens.ids) < mask.sum() / 2
    term = find("option1_reconstruction")(adapter, tokens, context)["reconstruction"]
    assert term.tokens == mask.sum()
    assert_same(adapter, term.value, error[mask].mean())


def test_a_token_of_count_zero_may_be_listed(sharp):
    adapter, context = world(sharp)
    listed, occurring = (
        TokenCounts(torch.tensor(ids), torch.tensor(counts))
        for ids, counts in (([5, 6, 7], [2, 0, 1]), ([5, 7], [2, 1]))
    )
    one, other = (
        find("option1_reconstruction")(adapter, tokens, context)["reconstruction"]
        for tokens in (listed, occurring)
    )
    assert one.tokens == other.tokens == 3
    torch.testing.assert_close(one.value, other.value, rtol=1e-6, atol=0)


def test_the_gradient_on_drawn_tokens_is_unbiased(sharp):
    """400 draws of 30 tokens, against the full gradient at the 32 output biases.

    The mean squared distance in standard errors is 1 in expectation. Biases are correlated, so it
    scatters; it stays below 3, and no bias is off by 4.5.
    """
    adapter, context = world(sharp)
    full = prompt_tokens(corpus(), torch.device("cpu"))
    share = (full.counts.double() / full.counts.sum()).numpy()
    rng = np.random.default_rng(0)

    def gradient(tokens):
        loss = total(find("option1_reconstruction")(adapter, tokens, context))
        return torch.autograd.grad(loss, adapter.output_norm.bias)[0].double()

    draws = []
    for counts in rng.multinomial(30, share, size=400):
        occurring = torch.from_numpy(counts.nonzero()[0])
        tokens = TokenCounts(full.ids[occurring], torch.from_numpy(counts)[occurring])
        draws.append(gradient(tokens))
    sampled, expected = torch.stack(draws), gradient(full)
    standard_error = sampled.std(0) / 400**0.5
    off = (sampled.mean(0) - expected) / standard_error
    assert off.square().mean() < 3 and off.abs().max() < 4.5
    # The bound is sharp enough: equal weights for all distinct tokens are far outside.
    uniform = gradient(TokenCounts(full.ids, torch.ones_like(full.counts)))
    assert ((uniform - expected) / standard_error).square().mean() > 100


# ---------------------------------------------------------------- distillation


@pytest.mark.parametrize("name", ["distill", "option2_on_policy"])
def test_the_divergence_vanishes_where_all_dimensions_are_kept(sharp, name):
    """K = D loses nothing but float32 rounding, about 1e-6 of log-probabilities around -8."""
    adapter, context = world(
        sharp, K=32, start="pca_inverse", scaling="calibrated", gold_fraction=0.5
    )
    torch.testing.assert_close(adapter(context.codebook), sharp.embedding_table, rtol=0, atol=1e-5)
    assert abs(number(term_of(name, adapter, context))) < 5e-6


@pytest.mark.parametrize("name", ["distill", "option2_on_policy"])
def test_the_divergence_grows_with_the_dimensions_that_are_lost(sharp, name):
    some, most = (
        number(term_of(name, *world(sharp, K=K, start="pca_inverse", gold_fraction=1.0)))
        for K in (24, 2)
    )
    assert 0.01 < some < most


def test_the_divergence_is_forward(sharp):
    adapter, context = world(sharp)
    value = number(term_of("distill", adapter, context, [[1, 9]], [[2]]))
    p, q = (
        read(adapter, context, [1, 9], [2], original)[1].detach().double()
        for original in (True, False)
    )
    assert value == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
    assert value != pytest.approx(float((q.exp() * (q - p)).sum()), rel=0.01)


# ---------------------------------------------------------------- on policy


def test_on_policy_with_gold_answers_alone_is_distillation_and_generates_nothing(
    sharp, monkeypatch
):
    monkeypatch.setattr(objectives, "generate_ids", lambda *_: pytest.fail("generated"))
    adapter, context = world(sharp, gold_fraction=1.0)
    gold, same = (term_of(name, adapter, context) for name in ("option2_on_policy", "distill"))
    assert gold.tokens == same.tokens and torch.equal(gold.value, same.value)
    assert torch.equal(gradients(adapter, gold.value), gradients(adapter, same.value))


@pytest.mark.parametrize("share, kept", [(0.0, 0), (0.4, 2), (0.9, 4)])
def test_the_first_examples_of_a_batch_keep_their_gold_answers(sharp, share, kept):
    adapter, context = world(sharp, gold_fraction=share)
    prompts, answers = [*PROMPTS, [1, 5, 6], [1, 7, 8, 9, 10]], [*ANSWERS, [40, 2], [41, 42, 43, 2]]
    mixed = answers[:kept] + on_policy_answers(adapter, context, prompts)[kept:]
    term = term_of("option2_on_policy", adapter, context, prompts, answers)
    assert term.tokens == sum(map(len, mixed))
    assert_same(adapter, term.value, term_of("distill", adapter, context, prompts, mixed).value)


def test_answers_are_generated_from_the_adapters_prompt_and_not_from_the_original(sharp):
    adapter, context = world(sharp, gold_fraction=0.0)
    from_original = generate_ids(sharp, PROMPTS, None, context.config.max_new_tokens)
    assert on_policy_answers(adapter, context, PROMPTS) != from_original
    values = [
        number(term_of(name, adapter, context, PROMPTS, from_original))
        for name in ("option2_on_policy", "distill")
    ]
    assert abs(values[0] - values[1]) > 1e-3


def test_a_generated_answer_is_supervised_up_to_its_first_end_token(sharp, monkeypatch):
    adapter, context = world(sharp, gold_fraction=0.0)
    ((_, second, *_),) = on_policy_answers(adapter, context, PROMPTS[:1])
    monkeypatch.setattr(sharp.model.generation_config, "eos_token_id", [END, second])
    (stopped,) = on_policy_answers(adapter, context, PROMPTS[:1])
    assert stopped[-1] == second and len(stopped) <= 2
    term = term_of("option2_on_policy", adapter, context, PROMPTS[:1], ANSWERS[:1])
    assert term.tokens == len(stopped)


def test_sampled_answers_depend_on_torchs_seed_alone(sharp):
    adapter, context = world(sharp, gold_fraction=0.0, temperature=1.0)

    def value(seed):
        torch.manual_seed(seed)
        return number(term_of("option2_on_policy", adapter, context))

    assert value(0) == value(0) != value(1)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_the_adapter_gets_a_gradient_and_none_of_the_model(sharp, name):
    adapter, context = world(sharp, gold_fraction=0.5)
    with sharp.unchanged():
        total(terms_of(name, adapter, context)).backward()
    for key, parameter in adapter.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key
    assert all(parameter.grad is None for parameter in sharp.model.parameters())
    assert not context.codebook.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_from_the_pca_inverse_the_gain_alone_moves_first(sharp, name):
    adapter, context = world(sharp, start="pca_inverse", scaling="calibrated")
    total(terms_of(name, adapter, context)).backward()
    moved = {key for key, parameter in adapter.named_parameters() if parameter.grad.abs().max() > 0}
    assert moved == {"gain"}


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_works_with_a_model_in_bfloat16(tiny_folder, name):
    config = StudyConfig(language_model=str(tiny_folder), device="cpu", dtype="bfloat16")
    adapter, context = world(loading.load(config))
    terms = terms_of(name, adapter, context)
    total(terms).backward()
    for term in terms.values():
        assert term.value.dtype == torch.float32 and term.value.isfinite()
    assert adapter.gain.grad.isfinite() and adapter.gain.grad.dtype == torch.float32


# ---------------------------------------------------------------- invalid batches


@pytest.mark.parametrize(
    "name", ["answer_ce", "distill", "option2_on_policy", "option3_teacher_forced"]
)
def test_a_batch_of_empty_answers_is_refused_by_the_objectives_name(sharp, name):
    adapter, context = world(sharp, gold_fraction=1.0)
    with pytest.raises(ValueError, match=rf"objective='{name}': the batch has no supervised token"):
        terms_of(name, adapter, context, PROMPTS, [[], []])


def test_prompts_of_one_token_leave_nothing_to_predict(sharp):
    adapter, context = world(sharp)
    words = "objective='option2_prompt_ce': the batch has no supervised token"
    with pytest.raises(ValueError, match=words):
        terms_of("option2_prompt_ce", adapter, context, [[1], [5]])


def test_a_prompt_of_one_token_among_others_is_not_supervised(sharp):
    adapter, context = world(sharp)
    term = term_of("option2_prompt_ce", adapter, context, [[1, 5, 6], [7]])
    assert term.tokens == 2
    assert_same(adapter, term.value, reference_prompt_ce(adapter, context, [[1, 5, 6]]))


@pytest.mark.parametrize("ids, counts", [([], []), ([5, 6], [0, 0])])
def test_a_batch_without_tokens_is_refused_by_the_objectives_name(sharp, ids, counts):
    adapter, context = world(sharp)
    ids, counts = (torch.tensor(values, dtype=torch.int64) for values in (ids, counts))
    words = r"objective='option1_reconstruction'.*at least one supervised token"
    with pytest.raises(ValueError, match=words):
        find("option1_reconstruction")(adapter, TokenCounts(ids, counts), context)


@pytest.mark.parametrize("name", OF_EXAMPLES)
@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("prompts", [[], [[1, 5], []], [[], []]], ids=["none", "one", "all"])
def test_an_empty_batch_or_prompt_is_refused(sharp, name, share, prompts):
    adapter, context = world(sharp, gold_fraction=share)
    with pytest.raises(ValueError, match="at least one"):
        terms_of(name, adapter, context, prompts, ANSWERS[: len(prompts)])


# ---------------------------------------------------------------- the frozen model's logits


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
    hook = sharp.head.register_forward_hook(
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


def test_attention_does_not_read_masked_positions(sharp):
    embeddings = inputs(sharp, [[1, 10, 11, 12]])
    mask = torch.tensor([[True, False, True, True]])
    where = torch.tensor([[False, False, False, True]])
    masked = sharp.logits(embeddings, where, mask)
    expected = sharp.model(inputs_embeds=embeddings, attention_mask=mask.long()).logits[0, 3:]
    torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-5)
    other = embeddings.clone()
    other[0, 1] = 9.0
    torch.testing.assert_close(sharp.logits(other, where, mask), masked, rtol=1e-5, atol=1e-5)
    unmasked = sharp.logits(embeddings, where)
    assert not torch.allclose(sharp.logits(other, where), unmasked, atol=0.01)


def test_logits_are_float32_and_embeddings_take_the_models_precision(tiny_folder):
    config = StudyConfig(language_model=str(tiny_folder), device="cpu", dtype="bfloat16")
    lm = loading.load(config)
    embeddings = lm.embed(torch.tensor([[1, 10, 11]])).float()
    logits = lm.logits(embeddings, torch.ones(1, 3, dtype=torch.bool))
    assert logits.dtype == torch.float32
    assert torch.equal(logits, lm.model(inputs_embeds=embeddings.bfloat16()).logits[0].float())


@pytest.mark.slow
def test_the_shipped_model_is_sure_of_gold_answers_and_no_longer_once_compressed(lm):
    """In nats per token: almost zero from all 192 dimensions, as from token ids; more at K = 24."""
    examples = almanac.table(4, split="test", names="seen").to_pylist()
    encoded = encode(examples, lm.tokenizer, StudyConfig(device="cpu"))
    ce = {}
    for K in (24, 192):
        context = world(lm, K=K, start="pca_inverse")
        ce[K] = number(term_of("answer_ce", *context, encoded.prompts, encoded.answers))
    assert ce[192] < 0.01 and ce[24] > 2
    from_ids = []
    for prompt, answer in zip(encoded.prompts, encoded.answers, strict=True):
        logits = lm.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        from_ids.append(cross_entropy(logits, torch.tensor(answer), reduction="none"))
    assert ce[192] == pytest.approx(float(mean(from_ids)), abs=1e-3)
