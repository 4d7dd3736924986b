"""How the frozen model's pass is made fast and small: packed, recomputed and compiled change nothing but rounding, and
fp8 changes as much as eight bits do."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stage1.training.loss_scale import embedding_gradients
from test_objectives import NAMES, OF_EXAMPLES, assert_same, batch_for, world
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel

from stage1 import objectives
from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import Encoded, encode
from stage1.evaluation import conditions
from stage1.model import engine, fused_loss, language_model
from stage1.model.engine import FP8, Fp8Linear, quantised, scaled_matmul
from stage1.model.generation import generate, generate_ids
from stage1.model.token_batch import BLOCK, packed_batch
from stage1.objectives import ExampleBatch, find, total

PROMPTS = [[1, 10, 11, 12], [1, 20], [1, 5, 6, 7, 8, 9, 10, 11, 12, 13], [1, 2, 0, 3]]
ANSWERS = [[30, 2], [31, 32, 2], [40, 41, 42, 2], [2]]
BUDGETS = {"max_prompt_tokens": 10, "max_answer_tokens": 4, "gold_fraction": 0.25}
LAYERS = 2


@pytest.fixture(scope="module")
def sharp(tiny_folder):
    """Makes the tiny model as the config asks for it, with weights so large that it depends on all that it reads."""

    def make(**changes) -> language_model.FrozenLM:
        config = StudyConfig(language_model=str(tiny_folder), device="cpu", **changes)
        patch = pytest.MonkeyPatch()
        patch.setattr(engine, "apply", lambda model, config: None)
        lm = language_model.load(config)
        patch.undo()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in lm.model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.3, generator=generator)
        engine.configure(lm.model, config)
        return lm

    return make


def terms_of(name, lm, **changes):
    """The adapter and the terms of a batch of examples of different lengths."""
    adapter, context = world(lm, **BUDGETS, **changes)
    return adapter, find(name)(adapter, batch_for(name, PROMPTS, ANSWERS), context)


def assert_same_terms(name, one, other, **changes):
    """The same terms and gradients of one adapter from the first model with some changes, and the other without."""
    adapter, context = world(one, **BUDGETS, **changes)
    _, plain = world(other, **BUDGETS)
    batch = batch_for(name, PROMPTS, ANSWERS)
    got, expected = find(name)(adapter, batch, context), find(name)(adapter, batch, plain)
    assert list(got) == list(expected)
    for key, term in got.items():
        assert (term.tokens, term.weight) == (expected[key].tokens, expected[key].weight)
        assert_same(adapter, term.value, expected[key].value)


def layer_inputs(lm):
    """Shapes of what the first layer reads, call by call."""
    shapes = []
    engine.decoder_layers(lm.model)[0].register_forward_pre_hook(
        lambda module, args: shapes.append(tuple(args[0].shape[:2]))
    )
    return shapes


# ---------------------------------------------------------------- packed


@pytest.mark.parametrize("name", NAMES)
def test_packed_every_term_and_its_gradient_is_that_of_padded_rows(sharp, name):
    assert_same_terms(name, sharp(packed=True), sharp(), packed=True)


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_packed_the_model_reads_a_single_row_but_for_as_found_whose_padding_is_the_point(
    sharp, name
):
    lm = sharp(packed=True)
    shapes = layer_inputs(lm)
    terms_of(name, lm, packed=True)
    assert shapes[-1] == ((4, 14) if name == "as_found" else (1, BLOCK))


def test_packed_examples_do_not_read_one_another(sharp):
    lm, hidden = sharp(packed=True), []
    for prompts in (PROMPTS, [[99] * len(PROMPTS[0]), *PROMPTS[1:]]):
        rows = packed_batch(prompts, ANSWERS, lm.pad_token, lm.device)
        hidden.append(lm.hidden(lm.embed(rows.ids), rows.is_prompt, starts=rows.starts))
    changed = len(PROMPTS[0])
    assert (hidden[0][:changed] - hidden[1][:changed]).abs().amax(1).min() > 0.01
    torch.testing.assert_close(hidden[0][changed:], hidden[1][changed:], rtol=1e-6, atol=1e-6)


def test_a_packed_row_may_fill_several_tiles(sharp):
    """Examples that end within, at and beyond the edge of a tile."""
    packed, plain = sharp(packed=True), sharp()
    rng = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 4_096, (n,), generator=rng).tolist() for n in (100, 27, 130, 60, 1)]
    answers = [[5, 2], [2], [6, 7, 2], [8, 2], [9, 2]]
    adapter, context = world(packed, packed=True)
    _, padded = world(plain)
    for name in ("answer_ce", "option2_prompt_ce"):
        (got,), (expected,) = (
            find(name)(adapter, ExampleBatch(prompts, answers), either).values()
            for either in (context, padded)
        )
        assert got.tokens == expected.tokens
        assert_same(adapter, got.value, expected.value)


@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_a_single_query_is_that_of_torch(shared, masked):
    B, H, S, d = 3, 4, 7, 8
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(B, H, 1, d, generator=rng)
    key, value = torch.randn(2, B, H // shared, S, d, generator=rng)
    mask = (torch.arange(S) >= torch.tensor([[0], [2], [6]]))[:, None, None] if masked else None
    got = engine.next_token_attention(query, key, value, mask, 0.3)
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(got, expected.transpose(1, 2), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- recomputed


def passes(lm):
    """How often each layer is passed through from now on."""
    counts = [0] * LAYERS

    def count(i):
        def hook(module, args):
            counts[i] += 1

        return hook

    for i, layer in enumerate(engine.decoder_layers(lm.model)):
        layer.self_attn.q_proj.register_forward_pre_hook(count(i))
    return counts


@pytest.mark.parametrize("share, expected", [(0.0, [1, 1]), (0.5, [2, 1]), (1.0, [2, 2])])
def test_the_first_layers_are_passed_through_twice_where_a_gradient_is_wanted(
    sharp, share, expected
):
    lm = sharp(recomputed=share)
    counts = passes(lm)
    _, terms = terms_of("answer_ce", lm)
    total(terms).backward()
    assert counts == expected


@pytest.mark.parametrize("name", [name for name in NAMES if name != "option1_reconstruction"])
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("packed", [False, True])
def test_recomputed_activations_give_identical_gradients(sharp, name, share, packed):
    slopes, values = [], []
    for lm in (sharp(packed=packed), sharp(packed=packed, recomputed=share)):
        adapter, terms = terms_of(name, lm, packed=packed)
        loss = total(terms)
        loss.backward()
        values.append(loss.detach())
        slopes.append([parameter.grad for parameter in adapter.parameters()])
    assert torch.equal(*values)
    assert all(torch.equal(one, other) for one, other in zip(*slopes, strict=True))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_where_activations_are_recomputed_answers_are_generated_as_ever_and_passed_through_once(
    sharp, share
):
    plain, lm = sharp(), sharp(recomputed=share)
    counts = passes(lm)
    assert generate(lm, PROMPTS, lm.embed, 5) == generate(plain, PROMPTS, plain.embed, 5)
    assert counts[0] == counts[1] > 0
    embed = lm.embed
    assert generate_ids(lm, PROMPTS, embed, 5) == generate_ids(plain, PROMPTS, embed, 5)


def test_layers_are_in_evaluation_mode_again_whatever_happens(sharp):
    lm = sharp(recomputed=1.0)
    with pytest.raises(KeyError), engine.activation_checkpointing(lm.model, 0.5):
        assert [layer.training for layer in engine.decoder_layers(lm.model)] == [True, False]
        raise KeyError
    assert not any(module.training for module in lm.model.modules())
    _, terms = terms_of("answer_ce", lm)
    total(terms).backward()
    assert not any(module.training for module in lm.model.modules())


# ---------------------------------------------------------------- compiled


@pytest.fixture
def compiler(monkeypatch):
    """Stands for the compiler: counts what it is asked to compile and generates no code, which is slow on a CPU. What
    is compiled is spared the tests' run-time type checker, which the compiler does not see through."""
    counted = SimpleNamespace(graphs=0)
    aot_eager, torch_compile = torch._dynamo.lookup_backend("aot_eager"), torch.compile

    def backend(graph, inputs):
        counted.graphs += 1
        return aot_eager(graph, inputs)

    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, **kwargs: torch_compile(function, backend=backend, **kwargs),
    )
    monkeypatch.setattr(
        fused_loss,
        "compiled",
        lambda piece: torch_compile(inspect.unwrap(piece), backend=backend, dynamic=True),
    )
    for owner, name in ((Fp8Linear, "forward"), (engine, "quantised"), (engine, "scaled_matmul")):
        monkeypatch.setattr(owner, name, inspect.unwrap(getattr(owner, name)))
    monkeypatch.setitem(
        AttentionInterface._global_mapping, engine.ATTENTION, inspect.unwrap(engine.attention)
    )
    torch._dynamo.reset()
    yield counted
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["answer_ce", "option2_on_policy", "as_found"])
def test_compiled_layers_and_losses_give_the_same(sharp, compiler, name):
    assert_same_terms(name, sharp(compiled=True), sharp(), compiled=True)
    assert compiler.graphs >= LAYERS + 1


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_compiled_packed_recomputed_and_in_fp8_at_once_is_what_it_is_without_the_compiler(
    sharp, compiler, share
):
    """Layers that are all alike may share one graph; the loss has another."""
    everything = {"packed": True, "recomputed": share, "matmul": "fp8"}
    adapter, context = world(
        sharp(**everything, compiled=True), **BUDGETS, packed=True, compiled=True
    )
    _, plain = world(sharp(**everything), **BUDGETS, packed=True)
    batch = ExampleBatch(PROMPTS, ANSWERS)
    assert_same(
        adapter, *(total(find("answer_ce")(adapter, batch, either)) for either in (context, plain))
    )
    assert compiler.graphs >= 2


def test_compiled_layers_are_passed_through_eagerly_where_every_step_has_another_shape(
    sharp, compiler
):
    plain, lm = sharp(), sharp(compiled=True)
    prompts, answers = PROMPTS, ANSWERS
    assert generate(lm, prompts, lm.embed, 5) == generate(plain, prompts, plain.embed, 5)
    assert generate_ids(lm, prompts, lm.embed, 5) == generate_ids(plain, prompts, plain.embed, 5)
    names = [str(i) for i in range(len(prompts))]
    encoded = Encoded(
        names, names, [["x"]] * len(prompts), prompts, answers, shortened=0, dropped=0
    )
    tables = [
        conditions.teacher_forced(either, encoded, either.embedding_table, 2)
        for either in (lm, plain)
    ]
    assert str(tables[0]) == str(tables[1])
    assert compiler.graphs == 0
    terms_of("answer_ce", lm)  # training is compiled all the same
    assert compiler.graphs > 0


def test_on_policy_only_what_is_trained_on_is_compiled(sharp, compiler, monkeypatch):
    lm, within = sharp(compiled=True), []
    adapter, context = world(lm, **BUDGETS | {"gold_fraction": 0.0}, compiled=True)

    def watched(*args):
        answers = generate_ids(*args)
        within.append(compiler.graphs)
        return answers

    monkeypatch.setattr(objectives, "generate_ids", watched)
    find("option2_on_policy")(adapter, ExampleBatch(PROMPTS, ANSWERS), context)
    assert within == [0] and compiler.graphs > 0


# ---------------------------------------------------------------- fp8


@pytest.fixture(scope="module")
def eight():
    """The shipped model in fp8."""
    return language_model.load(StudyConfig(device="cpu", matmul="fp8"))


ROWS = st.lists(
    st.lists(
        st.floats(-(2.0**99), 2.0**99, width=32) | st.floats(-1, 1, width=32),
        min_size=6,
        max_size=6,
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(rows=ROWS)
def test_a_row_in_fp8_is_off_by_a_sixteenth_of_each_value_or_a_tiny_share_of_the_largest(
    dtype, rows
):
    """e4m3 has three bits after the leading one, down to 2^-6 of 448; below that, steps of 2^-9."""
    x = torch.tensor(rows).to(dtype)
    values, scale = quantised(x)
    assert (values.dtype, scale.dtype, scale.shape) == (FP8, torch.float32, (len(rows), 1))
    x, back = x.double(), values.double() * scale.double()
    largest = x.abs().amax(1, keepdim=True)
    error = (back - x).abs()
    assert (error <= 1.001 * torch.maximum(x.abs() / 16, largest / 448 / 2**10) + 1e-12).all()
    assert (error <= largest / 28 * 1.001 + 1e-12).all()


def test_the_largest_of_a_row_is_kept_and_rows_do_not_depend_on_one_another():
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1e-6], [1.0], [1e6], [3], [7]]
    )
    values, scale = quantised(x)
    back = values.float() * scale
    places = x.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(back.gather(1, places), x.gather(1, places), rtol=1e-6, atol=0)
    for i in range(5):
        alone, its_scale = quantised(x[i : i + 1])
        assert torch.equal(alone.float()[0], values.float()[i]) and torch.equal(
            its_scale[0], scale[i]
        )
    assert 0.001 < float((back - x).norm() / x.norm()) < 0.04


def test_a_row_of_zeros_stays_so():
    values, scale = quantised(torch.zeros(2, 3))
    assert (values.float() * scale == 0).all() and scale.isfinite().all() and (scale > 0).all()


def test_the_product_of_fp8_rows_takes_both_scales():
    a, b = (torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in (5, 3))
    (qa, sa), (qb, sb) = quantised(a), quantised(b)
    expected = (qa.double() * sa) @ (qb.double() * sb).T
    torch.testing.assert_close(
        scaled_matmul(qa, sa, qb, sb, torch.float32).double(), expected, rtol=0, atol=1e-5
    )
    assert scaled_matmul(qa, sa, qb, sb, torch.bfloat16).dtype == torch.bfloat16


def linear(bias=False, inputs=64, outputs=48) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def values_and_gradient(module, x, gradient):
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    y.backward(gradient)
    return y.detach(), leaf.grad


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (2, 5), (1, 3, 2)])
@pytest.mark.parametrize("dtype, tiny", [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
def test_a_linear_layer_in_fp8_is_near_the_one_it_stands_for_forward_and_backward(
    bias, shape, dtype, tiny
):
    plain = linear(bias).to(dtype)
    rng = torch.Generator().manual_seed(1)
    x, upstream = (torch.randn(*shape, n, generator=rng).to(dtype) for n in (64, 48))
    fp8 = Fp8Linear(plain)
    y, gradient = values_and_gradient(fp8, x, upstream)
    expected, slope = values_and_gradient(plain, x, upstream)
    for got, wanted in ((y, expected), (gradient, slope)):
        assert (got.dtype, got.shape) == (dtype, wanted.shape)
        assert tiny < float((got - wanted).norm() / wanted.norm()) < 0.06

    def factor(tensor):
        values, scale = quantised(tensor.flatten(0, -2))
        return values.double() * scale

    weight = plain.weight
    forward = (factor(x) @ factor(weight).T).view(*shape, 48) + (plain.bias.double() if bias else 0)
    backward = (factor(upstream) @ factor(weight.T.contiguous()).T).view(*shape, 64)
    for got, exact in ((y, forward), (gradient, backward)):
        torch.testing.assert_close(
            got.double(), exact, rtol=tiny * 10, atol=tiny * float(exact.abs().max())
        )


def test_the_weight_in_fp8_has_a_scale_per_output_forward_and_per_input_backward():
    plain = linear()
    plain.weight[3] *= 1_000
    plain.weight[:, 5] /= 1_000
    fp8 = Fp8Linear(plain)
    assert (fp8.row_scale.shape, fp8.column_scale.shape) == ((48, 1), (64, 1))
    assert fp8.rows.is_contiguous() and fp8.columns.is_contiguous()
    assert (fp8.rows.element_size(), fp8.columns.element_size()) == (1, 1)
    assert torch.equal(fp8.row_scale[:, 0], plain.weight.abs().amax(1) / 448)
    assert torch.equal(fp8.column_scale[:, 0], plain.weight.abs().amax(0) / 448)


def test_zero_inputs_and_zero_gradients_give_zeros():
    y, gradient = values_and_gradient(Fp8Linear(linear()), torch.zeros(2, 64), torch.zeros(2, 48))
    assert torch.equal(y, torch.zeros(2, 48)) and torch.equal(gradient, torch.zeros(2, 64))


def test_every_linear_layer_within_the_decoder_is_in_fp8_and_the_head_is_not(sharp):
    plain, lm = sharp(), sharp(matmul="fp8")
    names = {name for name, module in plain.model.named_modules() if isinstance(module, nn.Linear)}
    in_fp8 = {name for name, module in lm.model.named_modules() if isinstance(module, Fp8Linear)}
    left = {name for name, module in lm.model.named_modules() if isinstance(module, nn.Linear)}
    assert left == {"lm_head"} and in_fp8 == names - left and len(in_fp8) == 7 * LAYERS
    assert torch.equal(lm.head.weight, plain.head.weight)
    assert torch.equal(lm.embedding_table, plain.embedding_table)


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_in_fp8_every_objective_has_nearly_the_gradient_at_the_embeddings_that_it_has_without(
    lm, eight, name
):
    """At the embeddings, not at the adapter: its scale has a sum of opposite numbers for a gradient."""
    encoded = encode(
        almanac.table(4, split="test", names="seen").to_pylist(), lm.tokenizer, StudyConfig()
    )
    budgets = {"max_prompt_tokens": 160, "max_answer_tokens": 20, "gold_fraction": 1.0}
    slopes = []
    for either in (lm, eight):
        adapter, context = world(either, K=24, start="pca_inverse", scaling="calibrated", **budgets)
        batch = ExampleBatch(encoded.prompts, encoded.answers)
        _, found = embedding_gradients(find(name), adapter, batch, context)
        slopes.append(list(found.values())[-1])
    assert 0.9 < torch.cosine_similarity(*slopes, dim=0) < 0.999


def test_the_checksum_knows_fp8_and_the_guard_sees_a_change_in_it(sharp):
    lm = sharp(matmul="fp8")
    assert lm.checksum() == sharp(matmul="fp8").checksum() != sharp().checksum()
    with lm.unchanged():
        _, terms = terms_of("answer_ce", lm)
        total(terms).backward()
    buffer = engine.decoder_layers(lm.model)[1].mlp.up_proj.columns
    with pytest.raises(language_model.FrozenError, match="changed"), lm.unchanged():
        buffer.view(torch.uint8)[3, 4] ^= 1


def test_fp8_changes_the_shipped_models_losses_by_little(lm, eight):
    """From 24 of 192 dimensions; answers from all of them stay as they are."""
    encoded = encode(
        almanac.table(16, split="test", names="seen").to_pylist(), lm.tokenizer, StudyConfig()
    )
    losses = {}
    for name in ("answer_ce", "option2_prompt_ce"):
        for either in (lm, eight):
            adapter, context = world(either, K=24, start="pca_inverse", scaling="calibrated")
            (term,) = find(name)(
                adapter, ExampleBatch(encoded.prompts, encoded.answers), context
            ).values()
            losses[name, either is eight] = term.value.item()
        assert 0.001 < abs(losses[name, True] / losses[name, False] - 1) < 0.05
    answers = [generate(either, encoded.prompts, either.embed) for either in (lm, eight)]
    same = [one.text == other.text for one, other in zip(*answers, strict=True)]
    assert len(same) == 16 and sum(same) >= 15


# ---------------------------------------------------------------- what it works on


@pytest.fixture(scope="module")
def gpt2():
    """An architecture whose layers go by another name."""
    shape = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(shape)


@pytest.mark.parametrize(
    "changes", [{"packed": True}, {"compiled": True}, {"recomputed": 0.5}, {"matmul": "fp8"}]
)
def test_an_architecture_without_a_list_of_layers_is_refused_by_name(gpt2, changes):
    words = "language_model: GPT2LMHeadModel has no list of decoder layers; expected packed, compiled, recomputed"
    with pytest.raises(ValueError, match=words):
        engine.configure(gpt2, StudyConfig(**changes))
    with pytest.raises(ValueError, match=words):
        engine.decoder_layers(gpt2)


def test_an_architecture_without_a_list_of_layers_serves_as_it_is(gpt2):
    engine.configure(gpt2, StudyConfig())
    with engine.activation_checkpointing(gpt2, 0.0):
        assert gpt2(torch.tensor([[1, 2]])).logits.shape == (1, 2, 50)


@pytest.mark.parametrize("dtype, within", [("float32", "highest"), ("bfloat16", "high")])
def test_tensor_cores_take_the_adapters_products_beside_a_model_in_bfloat16_only(dtype, within):
    assert torch.get_float32_matmul_precision() == "highest"
    with engine.tf32_beside_bfloat16(StudyConfig(dtype=dtype)):
        assert torch.get_float32_matmul_precision() == within
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_the_precision_of_products_is_what_it_was_after_an_error(error):
    with pytest.raises(error), engine.tf32_beside_bfloat16(StudyConfig(dtype="bfloat16")):
        raise error
    assert torch.get_float32_matmul_precision() == "highest"
