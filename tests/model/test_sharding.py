"""A model spread over devices: what lies where, and the numbers of one on a single device."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from stage1.config import StudyConfig
from stage1.model import engine, loading, sharding
from stage1.model.generation import generate_ids
from stage1.model.greedy import greedy_ids
from stage1.model.token_batch import block_mask

CPU, OTHER = torch.device("cpu"), torch.device("meta")
PROMPTS = [[1, 10, 11, 12], [1, 10, 11, 14], [1, 5, 6, 7, 8, 9]]


@pytest.fixture
def load(monkeypatch):
    """Load the shipped model as on a machine whose GPUs are all the CPU."""

    def on(over: list[torch.device], **changes):
        monkeypatch.setattr(sharding, "devices", lambda: over)
        monkeypatch.setattr(loading, "choose_device", lambda device: CPU)
        return loading.load(StudyConfig(device="sharded", **changes))

    return on


def test_layers_are_divided_and_all_else_is_on_the_first_device():
    chosen = sharding.device_map(str(loading.SHIPPED), [CPU, OTHER])
    layers = {name: device for name, device in chosen.items() if ".layers." in name}
    assert list(layers.values()) == [CPU, CPU, OTHER, OTHER]
    assert {name: device for name, device in chosen.items() if name not in layers} == {
        "model.embed_tokens": CPU,
        "model.norm": CPU,
        "model.rotary_emb": CPU,
        "lm_head": CPU,
    }


def test_a_shape_is_divided_in_the_same_way(load):
    lm = load([CPU, OTHER], shape_only=True, language_model=str(loading.SHIPPED))
    placement = {name: parameter.device for name, parameter in lm.model.named_parameters()}
    elsewhere = {name for name, device in placement.items() if device == OTHER}
    assert elsewhere == {name for name in placement if ".layers.2." in name or ".layers.3." in name}
    assert lm.device == CPU


@pytest.mark.parametrize("packed", [False, True])
def test_answers_and_hidden_states_are_those_of_one_device(lm, load, packed):
    spread = load([CPU, CPU], packed=packed)
    ids, all_positions = torch.tensor(PROMPTS[:2]), torch.ones(2, 4, dtype=torch.bool)
    hidden = spread.hidden(spread.embed(ids), all_positions)
    torch.testing.assert_close(hidden, lm.hidden(lm.embed(ids), all_positions))
    for decode in (greedy_ids, generate_ids):
        assert decode(spread, PROMPTS, spread.embed, 6) == decode(lm, PROMPTS, lm.embed, 6)


def test_every_layer_reads_on_the_device_of_its_weights(load):
    """The shape and the device of what the second half would compute; the norm then reads it."""
    lm = load([CPU, OTHER], shape_only=True, language_model=str(loading.SHIPPED))
    given = {}
    names = {"first": lm.model.model.layers[0], "last": lm.model.model.layers[3]}
    for name, module in names.items():
        module.register_forward_pre_hook(
            lambda _, inputs, named, name=name: given.update(
                {name: {inputs[0].device, *(x.device for x in named["position_embeddings"])}}
            ),
            with_kwargs=True,
        )
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):  # nothing to copy back
        lm.model(torch.tensor([[1, 2, 3]]), use_cache=False)
    assert given == {"first": {CPU}, "last": {OTHER}}


def test_a_flex_mask_is_made_again_on_the_device_of_its_layer():
    mask = sharding.moved(block_mask(torch.zeros(1, 256, dtype=torch.long)), OTHER)
    assert mask.starts.device == OTHER and mask.kv_num_blocks.device == OTHER


def test_a_layer_stays_trimmed_and_its_copies_stay_out_of_what_is_compiled(load):
    layer = load([CPU, CPU]).model.model.layers[-1]
    assert issubclass(type(layer), engine.trimmed(sharding.placed(LlamaDecoderLayer)))
    layer._compiled_call_impl = lambda *inputs, **named: "compiled"
    assert layer(torch.zeros(1)) == "compiled"
