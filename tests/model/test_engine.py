"""Engine settings: all but fp8 change results by rounding alone, and fp8 by that of eight bits."""

import inspect
import warnings
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_objectives import OF_EXAMPLES, assert_same, gradients, world
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from stage1 import objectives
from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import Encoded, encode
from stage1.evaluation import conditions
from stage1.loss_parts import ExampleBatch, total
from stage1.model import engine, fused_loss, language_model, loading
from stage1.model.engine import FP8, Fp8Linear, quantised, scaled_matmul
from stage1.model.generation import generate, generate_ids
from stage1.model.language_model import FrozenLM
from stage1.model.token_batch import BLOCK, packed_batch
from stage1.objectives import find
from stage1.training.gradients import embedding_gradients

PROMPTS = [[1, 10, 11, 12], [1, 20], [1, 5, 6, 7, 8, 9, 10, 11, 12, 13], [1, 2, 0, 3]]
ANSWERS = [[30, 2], [31, 32, 2], [40, 41, 42, 2], [2]]
BATCH = ExampleBatch(PROMPTS, ANSWERS)
LAYERS = 2
BUDGETS = {"max_prompt_tokens": 10, "max_answer_tokens": 4}


@pytest.fixture(scope="module")
def fresh(tiny_folder, sharp_lm):
    """Build the sharp model with engine settings."""

    def build(**changes) -> FrozenLM:
        config = StudyConfig(language_model=str(tiny_folder), device="cpu", **changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "configure", lambda model, config: None)
            lm = loading.load(config)
        lm.model.load_state_dict(sharp_lm.model.state_dict())
        engine.configure(lm.model, config)
        return lm

    return build


@pytest.fixture(scope="module")
def sharp(fresh):
    """The same, shared by tests that do not change the model."""
    return cache(fresh)


def terms_of(name, lm, **changes):
    """Return an adapter and the objective's terms."""
    adapter, context = world(lm, **BUDGETS, **changes)
    return adapter, find(name)(adapter, BATCH, context)


def assert_same_terms(name, lm, other, batch=BATCH, **changes):
    """Assert that `lm` with the changes and `other` without give equal terms and gradients."""
    adapter, context = world(lm, **BUDGETS, **changes)
    _, plain = world(other, **BUDGETS)
    terms, expected = find(name)(adapter, batch, context), find(name)(adapter, batch, plain)
    assert list(terms) == list(expected)
    for key, term in terms.items():
        assert (term.tokens, term.weight) == (expected[key].tokens, expected[key].weight)
        assert_same(adapter, term.value, expected[key].value)


# ---------------------------------------------------------------- packed rows


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_packed_rows_give_the_terms_and_gradients_of_padded_rows(sharp, name):
    assert_same_terms(name, sharp(packed=True), sharp(), packed=True)


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_the_model_reads_one_packed_row_except_in_as_found_which_studies_padding(fresh, name):
    lm, shapes = fresh(packed=True), []
    engine.decoder_layers(lm.model)[0].register_forward_pre_hook(
        lambda module, args: shapes.append(tuple(args[0].shape[:2]))
    )
    terms_of(name, lm, packed=True)
    assert shapes[-1] == ((4, 14) if name == "as_found" else (1, BLOCK))


def test_packed_examples_do_not_read_one_another(sharp):
    lm, hidden = sharp(packed=True), []
    for prompts in (PROMPTS, [[99] * len(PROMPTS[0]), *PROMPTS[1:]]):
        tokens = packed_batch(prompts, ANSWERS, lm.pad_token, lm.device)
        hidden.append(lm.hidden(lm.embed(tokens.ids), tokens.is_prompt, starts=tokens.starts))
    changed = len(PROMPTS[0])
    assert (hidden[0][:changed] - hidden[1][:changed]).abs().amax(1).min() > 0.01
    torch.testing.assert_close(hidden[0][changed:], hidden[1][changed:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["answer_ce", "option2_prompt_ce"])
def test_a_packed_row_may_fill_several_tiles(sharp, name):
    """Examples end within a tile, at its edge and beyond it."""
    rng = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 4_096, (n,), generator=rng).tolist() for n in (100, 27, 130, 60, 1)]
    batch = ExampleBatch(prompts, [[5, 2], [2], [6, 7, 2], [8, 2], [9, 2]])
    assert_same_terms(name, sharp(packed=True), sharp(), batch, packed=True)


@pytest.mark.parametrize("heads_per_key", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_a_single_query_matches_torch(heads_per_key, masked):
    B, H, S, d = 3, 4, 7, 8
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(B, H, 1, d, generator=rng)
    key, value = torch.randn(2, B, H // heads_per_key, S, d, generator=rng)
    mask = (torch.arange(S) >= torch.tensor([[0], [2], [6]]))[:, None, None] if masked else None
    output = engine.next_token_attention(query, key, value, mask, 0.3)
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(output, expected.transpose(1, 2), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- the trimmed last layer


@pytest.mark.parametrize("masked", [False, True])
def test_trimming_the_last_layer_is_optional_and_changes_no_supervised_hidden_state(sharp, masked):
    lm, untrimmed = sharp(), sharp(trim_last_layer=False)
    first, last = (type(layer) for layer in engine.decoder_layers(lm.model))
    assert {type(layer) for layer in engine.decoder_layers(untrimmed.model)} == {first}
    assert last is engine.trimmed(first) and issubclass(last, first)
    ids = torch.randint(3, 4_096, (3, 7), generator=torch.Generator().manual_seed(0))
    index, lengths = torch.arange(7), torch.tensor([[7], [4], [5]])
    supervised = (index >= 2) & (index < lengths)
    mask = index < lengths if masked else None
    hidden, expected = (
        either.hidden(either.embed(ids), supervised, mask) for either in (lm, untrimmed)
    )
    assert len(expected) == supervised.sum() == 10
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)


def test_a_trimmed_layers_mlp_reads_supervised_positions_only(fresh):
    lm, read = fresh(), []
    for layer in engine.decoder_layers(lm.model):
        layer.mlp.register_forward_pre_hook(lambda module, args: read.append(args[0].shape[:2]))
    lm.hidden(lm.embed(torch.tensor([[1, 2, 3]] * 2)), torch.tensor([[False, True, False]] * 2))
    assert [tuple(shape) for shape in read] == [(2, 3), (1, 2)]


# ---------------------------------------------------------------- activation checkpointing


def count_passes(lm):
    """Return a list that counts the forward passes of each layer from now on."""
    counts = [0] * LAYERS
    for i, layer in enumerate(engine.decoder_layers(lm.model)):

        def count(module, args, i=i):
            counts[i] += 1

        layer.self_attn.q_proj.register_forward_pre_hook(count)
    return counts


@pytest.mark.parametrize("share, expected", [(0.0, [1, 1]), (0.5, [2, 1]), (1.0, [2, 2])])
def test_checkpointed_layers_run_twice_where_a_gradient_is_needed(fresh, share, expected):
    lm = fresh(recomputed=share)
    counts = count_passes(lm)
    _, terms = terms_of("answer_ce", lm)
    total(terms).backward()
    assert counts == expected


@pytest.mark.parametrize(
    "name, share, packed",
    [(name, 1.0, packed) for name in OF_EXAMPLES for packed in (False, True)]
    + [("answer_ce", 0.5, False), ("answer_ce", 0.5, True)],
)
def test_checkpointing_gives_identical_losses_and_gradients(sharp, name, share, packed):
    losses, slopes = [], []
    for lm in (sharp(packed=packed), sharp(packed=packed, recomputed=share)):
        adapter, terms = terms_of(name, lm, packed=packed)
        losses.append(total(terms).detach())
        slopes.append(gradients(adapter, total(terms)))
    assert torch.equal(*losses) and torch.equal(*slopes)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_checkpointing_does_not_affect_generation(sharp, fresh, share):
    plain, lm = sharp(), fresh(recomputed=share)
    counts = count_passes(lm)
    assert generate(lm, PROMPTS, lm.embed, 5) == generate(plain, PROMPTS, plain.embed, 5)
    assert counts[0] == counts[1] > 0
    ids = generate_ids(lm, PROMPTS, lm.embed, 5)
    assert ids == generate_ids(plain, PROMPTS, plain.embed, 5)


def test_layers_return_to_evaluation_mode_even_after_an_error(sharp):
    lm = sharp(recomputed=1.0)
    with pytest.raises(KeyError), engine.activation_checkpointing(lm.model, 0.5):
        assert [layer.training for layer in engine.decoder_layers(lm.model)] == [True, False]
        raise KeyError
    assert not any(module.training for module in lm.model.modules())
    _, terms = terms_of("answer_ce", lm)
    total(terms).backward()
    assert not any(module.training for module in lm.model.modules())


def test_checkpointing_is_enabled_without_a_warning_and_by_its_old_name_where_needed(
    fresh, monkeypatch
):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        fresh(recomputed=1.0)
    options = []
    monkeypatch.delattr(PreTrainedModel, "activation_checkpointing_enable", raising=False)
    monkeypatch.setattr(
        PreTrainedModel, "gradient_checkpointing_enable", lambda self, given: options.append(given)
    )
    fresh(recomputed=1.0)
    assert options == [{"use_reentrant": False}]


# ---------------------------------------------------------------- compilation


@pytest.fixture(scope="class")
def compiler():
    """Trace without generating code, which is slow on a CPU; count traced graphs and their runs.

    What is compiled skips the tests' run-time type checker, which the compiler cannot trace.
    """
    counted = SimpleNamespace(runs=0, graphs=0)
    aot_eager, torch_compile = torch._dynamo.lookup_backend("aot_eager"), torch.compile

    def backend(graph, inputs):
        counted.graphs += 1
        traced = aot_eager(graph, inputs)

        def run(*args):
            counted.runs += 1
            return traced(*args)

        return run

    def compile_module(function, **options):
        return torch_compile(function, backend=backend, **options)

    @cache
    def compile_loss(function):
        return torch_compile(inspect.unwrap(function), backend=backend, dynamic=True)

    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", compile_module)
        patch.setattr(fused_loss, "compiled", compile_loss)
        typed = [(engine, "quantised"), (engine, "scaled_matmul"), (Fp8Linear, "forward")]
        for owner, name in typed:
            patch.setattr(owner, name, inspect.unwrap(getattr(owner, name)))
        trimmed = engine.trimmed(LlamaDecoderLayer)
        untyped = type("Untyped", (trimmed,), {"forward": inspect.unwrap(trimmed.forward)})
        patch.setattr(engine, "trimmed", lambda base: untyped)
        attention = inspect.unwrap(engine.attention)
        patch.setitem(AttentionInterface._global_mapping, engine.ATTENTION, attention)
        yield counted
    torch._dynamo.reset()


def compiled_llama(width: int, tokenizer) -> FrozenLM:
    shape = {"hidden_size": width, "intermediate_size": width, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, num_hidden_layers=LAYERS, **shape))
    engine.configure(model.requires_grad_(False).eval(), StudyConfig(compiled=True))
    return FrozenLM(model, tokenizer, "random")


@pytest.fixture(scope="class")
def compiled_lm(compiler, fresh):
    return fresh(compiled=True)


@pytest.mark.slow
class TestCompiled:
    """The compiled models are shared, since tracing takes seconds."""

    @pytest.mark.parametrize("name", ["answer_ce", "option2_on_policy", "as_found"])
    def test_compiled_layers_and_losses_match_eager_ones(self, compiled_lm, sharp, compiler, name):
        before = compiler.runs
        assert_same_terms(name, compiled_lm, sharp(), compiled=True)
        assert compiler.runs - before >= LAYERS + 1

    def test_compiled_layers_run_eagerly_where_every_step_has_another_shape(
        self, compiled_lm, sharp, compiler
    ):
        plain, lm, before = sharp(), compiled_lm, compiler.runs
        assert generate(lm, PROMPTS, lm.embed, 5) == generate(plain, PROMPTS, plain.embed, 5)
        ids = generate_ids(lm, PROMPTS, lm.embed, 5)
        assert ids == generate_ids(plain, PROMPTS, plain.embed, 5)
        count = len(PROMPTS)
        keys = [str(i) for i in range(count)]
        encoded = Encoded(keys, keys, [["x"]] * count, PROMPTS, ANSWERS, shortened=0, dropped=0)
        tables = [
            conditions.teacher_forced(either, encoded, either.embedding_table, 2)
            for either in (lm, plain)
        ]
        assert str(tables[0]) == str(tables[1])
        assert compiler.runs == before
        terms_of("answer_ce", lm)
        assert compiler.runs > before  # training is compiled all the same

    def test_on_policy_training_generates_eagerly(self, compiled_lm, compiler, monkeypatch):
        runs = []

        def watched(*args):
            before = compiler.runs
            answers = generate_ids(*args)
            runs.append(compiler.runs - before)
            return answers

        monkeypatch.setattr(objectives, "generate_ids", watched)
        before = compiler.runs
        terms_of("option2_on_policy", compiled_lm, gold_fraction=0.0, compiled=True)
        assert runs == [0] and compiler.runs > before

    def test_every_model_of_a_process_is_compiled_and_all_lengths_share_its_variants(
        self, compiler, sharp
    ):
        """Three models have more variants than torch compiles unless told otherwise."""
        torch._dynamo.reset()
        tokenizer = sharp().tokenizer
        for width in (16, 32, 48):
            lm, runs, graphs = compiled_llama(width, tokenizer), compiler.runs, []
            shapes = [(2, 5), (3, 9), (7, 4), (4, 6), (5, 11)]
            for shape in shapes:
                marks = torch.ones(shape, dtype=torch.bool)
                lm.hidden(torch.zeros(*shape, width, requires_grad=True), marks)
                with torch.no_grad():
                    lm.hidden(torch.zeros(*shape, width), marks)
                graphs.append(compiler.graphs)
            assert compiler.runs - runs == 2 * len(shapes) * LAYERS
            assert graphs == [graphs[0]] * len(shapes)

    def test_all_settings_at_once_match_the_same_without_the_compiler(self, compiler, fresh):
        settings = {"packed": True, "recomputed": 1.0, "matmul": "fp8"}
        lm, plain, before = fresh(**settings, compiled=True), fresh(**settings), compiler.runs
        adapter, context = world(lm, **BUDGETS, packed=True, compiled=True)
        _, eager = world(plain, **BUDGETS, packed=True)
        losses = [total(find("answer_ce")(adapter, BATCH, either)) for either in (context, eager)]
        assert compiler.runs - before >= LAYERS + 1
        assert_same(adapter, *losses)


# ---------------------------------------------------------------- fp8

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
def test_fp8_is_off_by_a_sixteenth_of_a_value_or_a_tiny_share_of_its_rows_largest(dtype, rows):
    """e4m3 has three bits after the leading one, down to 2^-6 of 448; below, steps of 2^-9."""
    x = torch.tensor(rows).to(dtype)
    values, scale = quantised(x)
    assert (values.dtype, scale.dtype, scale.shape) == (FP8, torch.float32, (len(rows), 1))
    x, restored = x.double(), values.double() * scale.double()
    largest = x.abs().amax(1, keepdim=True)
    error = (restored - x).abs()
    assert (error <= 1.001 * torch.maximum(x.abs() / 16, largest / 448 / 2**10) + 1e-12).all()
    assert (error <= largest / 28 * 1.001 + 1e-12).all()


def test_fp8_keeps_the_largest_of_each_row_and_rows_are_independent():
    magnitudes = torch.tensor([[1e-6], [1.0], [1e6], [3], [7]])
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * magnitudes
    values, scale = quantised(x)
    restored = values.float() * scale
    largest = x.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(restored.gather(1, largest), x.gather(1, largest), rtol=1e-6, atol=0)
    for i in range(5):
        row, row_scale = quantised(x[i : i + 1])
        assert torch.equal(row.float()[0], values.float()[i])
        assert torch.equal(row_scale[0], scale[i])
    assert 0.001 < float((restored - x).norm() / x.norm()) < 0.04


def test_a_row_of_zeros_stays_zero():
    values, scale = quantised(torch.zeros(2, 3))
    assert (values.float() * scale == 0).all() and scale.isfinite().all() and (scale > 0).all()


def test_the_product_of_fp8_rows_uses_both_scales():
    a, b = (torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in (5, 3))
    (qa, sa), (qb, sb) = quantised(a), quantised(b)
    expected = (qa.double() * sa) @ (qb.double() * sb).T
    product = scaled_matmul(qa, sa, qb, sb, torch.float32)
    torch.testing.assert_close(product.double(), expected, rtol=0, atol=1e-5)
    assert scaled_matmul(qa, sa, qb, sb, torch.bfloat16).dtype == torch.bfloat16


def linear(bias=False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48, bias=bias).requires_grad_(False)


def values_and_gradient(module, x, upstream):
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    y.backward(upstream)
    return y.detach(), leaf.grad


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (1, 3, 2)])
@pytest.mark.parametrize("dtype, tiny", [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
def test_a_linear_layer_in_fp8_is_near_the_original_forward_and_backward(bias, shape, dtype, tiny):
    plain = linear(bias).to(dtype)
    rng = torch.Generator().manual_seed(1)
    x, upstream = (torch.randn(*shape, n, generator=rng).to(dtype) for n in (64, 48))
    results = values_and_gradient(Fp8Linear(plain), x, upstream)
    for result, expected in zip(results, values_and_gradient(plain, x, upstream), strict=True):
        assert (result.dtype, result.shape) == (dtype, expected.shape)
        assert tiny < float((result - expected).norm() / expected.norm()) < 0.06

    def restored(tensor):
        values, scale = quantised(tensor.flatten(0, -2))
        return values.double() * scale

    weight = plain.weight
    forward = (restored(x) @ restored(weight).T).view(*shape, 48)
    forward = forward + (plain.bias.double() if bias else 0)
    backward = (restored(upstream) @ restored(weight.T.contiguous()).T).view(*shape, 64)
    for result, exact in zip(results, (forward, backward), strict=True):
        torch.testing.assert_close(
            result.double(), exact, rtol=tiny * 10, atol=tiny * float(exact.abs().max())
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
    y, slope = values_and_gradient(Fp8Linear(linear()), torch.zeros(2, 64), torch.zeros(2, 48))
    assert torch.equal(y, torch.zeros(2, 48)) and torch.equal(slope, torch.zeros(2, 64))


def module_names(lm, kind):
    return {name for name, module in lm.model.named_modules() if isinstance(module, kind)}


def test_every_linear_layer_of_the_decoder_is_in_fp8_but_the_head_is_not(sharp):
    plain, lm = sharp(), sharp(matmul="fp8")
    in_fp8 = module_names(lm, Fp8Linear)
    assert module_names(lm, nn.Linear) == {"lm_head"} and len(in_fp8) == 7 * LAYERS
    assert in_fp8 == module_names(plain, nn.Linear) - {"lm_head"}
    assert torch.equal(lm.head.weight, plain.head.weight)
    assert torch.equal(lm.embedding_table, plain.embedding_table)


def test_the_checksum_covers_fp8_weights_and_the_guard_sees_a_change_in_them(fresh):
    lm = fresh(matmul="fp8")
    assert lm.checksum() == fresh(matmul="fp8").checksum() != fresh().checksum()
    with lm.unchanged():
        _, terms = terms_of("answer_ce", lm)
        total(terms).backward()
    buffer = engine.decoder_layers(lm.model)[1].mlp.up_proj.columns
    with pytest.raises(language_model.FrozenError, match="changed"), lm.unchanged():
        buffer.view(torch.uint8)[3, 4] ^= 1


@pytest.fixture(scope="module")
def in_fp8():
    """The shipped model in fp8."""
    return loading.load(StudyConfig(device="cpu", matmul="fp8"))


SHIPPED = {"K": 24, "start": "pca_inverse", "scaling": "calibrated"}


def questions(lm, count) -> ExampleBatch:
    rows = almanac.table(count, split="test", names="seen").to_pylist()
    encoded = encode(rows, lm.tokenizer, StudyConfig())
    return ExampleBatch(encoded.prompts, encoded.answers)


@pytest.mark.parametrize("name", ["as_found", "option2_prompt_ce", "answer_ce", "distill"])
def test_fp8_changes_the_gradient_at_the_embeddings_by_little(lm, in_fp8, name):
    """The adapter's own gradient would not do: its scale sums values of opposite signs."""
    budgets = {"max_prompt_tokens": 160, "max_answer_tokens": 20}
    slopes = []
    for either in (lm, in_fp8):
        adapter, context = world(either, **SHIPPED, **budgets)
        _, slope = embedding_gradients(find(name), adapter, questions(lm, 4), context)
        slopes.append(list(slope.values())[-1])
    assert 0.9 < torch.cosine_similarity(*slopes, dim=0) < 0.999


@pytest.mark.slow
def test_fp8_changes_the_shipped_models_losses_and_answers_by_little(lm, in_fp8):
    """Losses are those at 24 of 192 dimensions; answers are those to the original embeddings."""
    batch = questions(lm, 16)
    for name in ("answer_ce", "option2_prompt_ce"):
        losses = []
        for either in (lm, in_fp8):
            adapter, context = world(either, **SHIPPED)
            losses.append(total(find(name)(adapter, batch, context)).item())
        assert 0.001 < abs(losses[1] / losses[0] - 1) < 0.05
    answers = [generate(either, batch.prompts, either.embed) for either in (lm, in_fp8)]
    same = [one.text == other.text for one, other in zip(*answers, strict=True)]
    assert len(same) == 16 and sum(same) >= 15


# ---------------------------------------------------------------- architectures and precision


@pytest.fixture(scope="module")
def gpt2():
    """An architecture whose layers have another name."""
    shape = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(shape)


@pytest.mark.parametrize(
    "changes", [{"packed": True}, {"compiled": True}, {"recomputed": 0.5}, {"matmul": "fp8"}]
)
def test_an_architecture_without_a_list_of_layers_is_refused_by_name(gpt2, changes):
    message = (
        "language_model: GPT2LMHeadModel has no list of decoder layers; expected packed, compiled, "
        "recomputed"
    )
    with pytest.raises(ValueError, match=message):
        engine.configure(gpt2, StudyConfig(**changes))
    with pytest.raises(ValueError, match=message):
        engine.decoder_layers(gpt2)


def test_an_architecture_without_a_list_of_layers_works_at_the_defaults(gpt2):
    engine.configure(gpt2, StudyConfig())
    with engine.activation_checkpointing(gpt2, 0.0):
        assert gpt2(torch.tensor([[1, 2]])).logits.shape == (1, 2, 50)


@pytest.mark.parametrize("is_used, within", [(False, "highest"), (True, "high")])
def test_tf32_is_used_on_request_only(is_used, within):
    assert torch.get_float32_matmul_precision() == "highest"
    with engine.tf32(is_used):
        assert torch.get_float32_matmul_precision() == within
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_precision_of_products_is_restored_after_an_error():
    with pytest.raises(torch.OutOfMemoryError), engine.tf32(True):
        raise torch.OutOfMemoryError
    assert torch.get_float32_matmul_precision() == "highest"
