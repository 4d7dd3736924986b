"""The engine's fast paths on the architectures of the hub models that have a preset."""

import inspect
from functools import cache

import pytest
import torch
from test_objectives import gradients, world
from toy_models import SHAPE_OF, sharpen, write

from stage1.config import StudyConfig
from stage1.loss_parts import ExampleBatch, total
from stage1.model import engine, loading
from stage1.model.engine import Fp8Linear
from stage1.model.generation import generate_ids
from stage1.model.greedy import can_share_prefixes, greedy_ids
from stage1.objectives import find

PROMPTS = [[1, 10, 11, 12], [1, 20], [1, 5, 6, 7, 8, 9, 10, 11, 12, 13], [1, 2, 0, 3]]
BATCH = ExampleBatch(PROMPTS, [[30, 2], [31, 32, 2], [40, 41, 42, 2], [2]])
BUDGETS = {"max_prompt_tokens": 10, "max_answer_tokens": 4}
OBJECTIVES = ["answer_ce", "distill", "option2_prompt_ce"]


@pytest.fixture(scope="module", params=SHAPE_OF)
def build(request, tmp_path_factory):
    """Build the toy model, its weights enlarged, with engine settings."""
    folder = write(tmp_path_factory.mktemp("fast") / "lm", request.param)

    @cache
    def load(**changes):
        config = StudyConfig(language_model=str(folder), device="cpu", **changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "configure", lambda model, config: None)
            lm = loading.load(config)
        sharpen(lm.model)
        engine.configure(lm.model, config)
        return lm

    return load


def loss_and_gradient(name, lm, **changes):
    adapter, context = world(lm, **BUDGETS, **changes)
    loss = total(find(name)(adapter, BATCH, context))
    return loss.detach(), gradients(adapter, loss)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    "changes", [{"packed": True}, {"trim_last_layer": True}, {"recomputed": 1.0}], ids=str
)
def test_fast_paths_give_the_losses_and_gradients_of_the_plain_one(build, name, changes):
    plain = {"trim_last_layer": False}
    expected = loss_and_gradient(name, build(**plain))
    packed = {"packed": True} if "packed" in changes else {}
    found = loss_and_gradient(name, build(**plain | changes), **packed)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_the_last_layer_is_trimmed(build):
    first, last = (type(layer) for layer in engine.decoder_layers(build().model))
    assert last is engine.trimmed(first)


def test_fp8_replaces_every_product_of_the_layers_and_leaves_the_tied_head(build):
    lm, plain = build(matmul="fp8"), build()
    layers = engine.decoder_layers(lm.model)
    assert sum(isinstance(module, Fp8Linear) for module in layers.modules()) == 7 * len(layers)
    assert lm.head.weight is lm.embedding_table
    hidden, expected = (
        either.hidden(either.embed(torch.tensor([[5, 6, 7]])), torch.ones(1, 3, dtype=torch.bool))
        for either in (lm, plain)
    )
    assert 0 < float((hidden - expected).norm() / expected.norm()) < 0.3


def test_shared_prefixes_change_no_answer(build):
    lm = build()
    prompts = [[1, *range(10, 30), 40], [1, *range(10, 30), 41, 42], [9, 8]]
    assert can_share_prefixes(lm)
    assert greedy_ids(lm, prompts, lm.embed, 5) == generate_ids(lm, prompts, lm.embed, 5)


@pytest.mark.slow
@pytest.mark.parametrize("build", ["qwen3_06b"], indirect=True)  # test_engine.py has a Llama
def test_compiled_layers_match_eager_ones(build, monkeypatch):
    """Traced without generating code; what is compiled skips the tests' run-time type checker."""
    torch._dynamo.reset()
    lm, plain = build(compiled=False, recomputed=0.0), build()
    trimmed = type(engine.decoder_layers(lm.model)[-1])
    untyped = type("Untyped", (trimmed,), {"forward": inspect.unwrap(trimmed.forward)})
    engine.decoder_layers(lm.model)[-1].__class__ = untyped
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    for layer in engine.decoder_layers(lm.model):
        layer.compile(dynamic=True, backend=backend)
    for one, other in zip(
        *(loss_and_gradient("answer_ce", own) for own in (lm, plain)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    assert graphs
    torch._dynamo.reset()


def test_packing_is_refused_where_attention_slides(tmp_path):
    """A packed row lets every token read its whole example."""
    folder = write(tmp_path / "lm", "qwen3_06b", shape={"use_sliding_window": True,
                   "sliding_window": 64, "max_window_layers": 1})  # fmt: skip
    config = StudyConfig(language_model=str(folder), device="cpu", packed=True)
    message = "packed=True: expected False where attention reads 64 tokens of an example of up to"
    with pytest.raises(ValueError, match=message):
        loading.load(config)
    short = config.replace(max_prompt_tokens=40)
    assert loading.load(short).model.config.sliding_window == 64
    assert not can_share_prefixes(loading.load(config.replace(packed=False)))
