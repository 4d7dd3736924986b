"""The frozen language model: loading, freezing, and the checksum that proves it unchanged."""

import copy
import json
import shutil

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors import safe_open

from stage1.adapter import Adapter, parameter_count
from stage1.compress import Compression
from stage1.config import StudyConfig
from stage1.model import language_model
from stage1.model.language_model import FrozenError, FrozenLM, bit_sums, load


def config(folder, **changes) -> StudyConfig:
    return StudyConfig(language_model=str(folder), device="cpu", **changes)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model's folder, to be broken."""
    return shutil.copytree(tiny_folder, tmp_path / "lm")


@pytest.fixture(scope="module")
def checked(tiny_folder):
    """A tiny model whose tests put back what they change, and its checksum."""
    lm = load(config(tiny_folder))
    return lm, lm.checksum()


# ---------------------------------------------------------------- the shipped model


def test_the_shipped_weights_take_at_most_16_mb():
    assert (
        sum(path.stat().st_size for path in language_model.SHIPPED.glob("*.safetensors"))
        <= 16 * 10**6
    )


def test_the_shipped_embeddings_are_not_tied_to_the_head(lm):
    embeddings, head = lm.embedding_table, lm.model.get_output_embeddings().weight
    assert embeddings.data_ptr() != head.data_ptr() and not torch.equal(embeddings, head)


def test_the_shipped_begin_end_and_pad_tokens_are_distinct(lm):
    special = {lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id, lm.tokenizer.pad_token_id}
    assert len(special) == 3 and None not in special
    assert lm.end_tokens == [lm.tokenizer.eos_token_id]
    assert lm.pad_token == lm.tokenizer.pad_token_id


def test_the_shipped_tokenizer_and_embedding_table_have_one_size(lm):
    assert len(lm.tokenizer) == len(lm.embedding_table)


def test_the_shipped_model_is_frozen_and_in_evaluation_mode(lm):
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not any(module.training for module in lm.model.modules())


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_precision_is_the_configs_and_not_that_of_the_file(tiny_folder, dtype):
    with safe_open(tiny_folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    model = load(config(tiny_folder, dtype=dtype)).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused_with_what_it_lacks(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError) as raised:
        load(config(folder))
    assert str(folder) in str(raised.value) and missing.removeprefix("model") in str(raised.value)


def test_weights_in_pickle_format_do_not_count(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load(config(folder))


def test_a_folder_without_a_tokenizer_is_refused_by_name(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(OSError, match=f"language_model='{folder}'"):
        load(config(folder))


def test_truncated_weights_are_refused_by_name(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50_000])
    with pytest.raises(OSError, match=f"language_model='{folder}'"):
        load(config(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "shiped", "a/b/c"])
def test_a_missing_folder_is_refused_by_name(name):
    with pytest.raises(FileNotFoundError, match=f"language_model='{name}'.*'shipped'"):
        load(config(name))


def test_a_hub_model_out_of_reach_gives_one_clear_error(offline):
    with pytest.raises(OSError, match="language_model='nobody/nothing' cannot be loaded"):
        load(config("nobody/nothing"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="device='cuda'"):
        load(config(tiny_folder).replace(device="cuda"))
    assert load(config(tiny_folder).replace(device="auto")).device.type == "cpu"


# ---------------------------------------------------------------- a shape without weights


@pytest.fixture
def shape(folder):
    """A folder with nothing but a config."""
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    return folder


@pytest.fixture
def bare(monkeypatch):
    """Builds models without memory for their weights, whatever their size."""
    monkeypatch.setattr(language_model, "choose_device", lambda device: torch.device("meta"))


def weights(lm) -> dict[str, torch.Tensor]:
    return dict(lm.model.named_parameters())


def test_a_shape_has_the_parameters_of_the_model_it_stands_for_and_other_weights(tiny_folder):
    real, random = (
        weights(load(config(tiny_folder))),
        weights(load(config(tiny_folder, shape_only=True))),
    )
    assert {name: weight.shape for name, weight in random.items()} == {
        name: w.shape for name, w in real.items()
    }
    differ = {name for name in real if not torch.equal(real[name], random[name])}
    assert differ == {name for name, weight in real.items() if weight.dim() > 1}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_shape_is_frozen_in_evaluation_mode_and_of_the_configs_precision(shape, dtype):
    lm = load(config(shape, shape_only=True, dtype=dtype))
    assert {parameter.dtype for parameter in lm.model.parameters()} == {getattr(torch, dtype)}
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not any(module.training for module in lm.model.modules())
    hidden = lm.hidden(lm.embed(torch.tensor([[1, 2, 3]])), torch.ones(1, 3, dtype=torch.bool))
    assert hidden.isfinite().all() and hidden.std() > 0


def test_the_data_seed_decides_the_weights_of_a_shape_whatever_was_drawn_before(shape):
    sums = {}
    for name, changes in {
        "one": {},
        "again": {},
        "seed": {"seed": 1},
        "data": {"data_seed": 1},
    }.items():
        torch.manual_seed(len(sums))
        sums[name] = load(config(shape, shape_only=True, **changes)).checksum()
    assert sums["one"] == sums["again"] == sums["seed"] != sums["data"]


def test_a_shape_without_a_tokenizer_takes_the_shipped_one_and_its_end_token(shape, tokenizer):
    lm = load(config(shape, shape_only=True))
    assert lm.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert lm.end_tokens == [tokenizer.eos_token_id]


def test_a_shape_with_a_tokenizer_takes_its_own(folder, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["<mine>"])
    own.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    assert "<mine>" in load(config(folder, shape_only=True)).tokenizer.get_vocab()


@pytest.mark.parametrize("name", ["shipped", "meta-llama/Llama-3.1-7B", "./nowhere"])
def test_a_shape_that_is_not_at_hand_is_refused_with_those_that_are(name):
    with pytest.raises(FileNotFoundError) as raised:
        load(config(name, shape_only=True))
    allowed = "a folder with a config.json, or one of Llama-3.1-8B-Instruct where shape_only=True"
    assert str(raised.value) == f"language_model={name!r}: expected {allowed}"


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"])
def test_the_shape_in_the_package_is_the_llama_of_eight_billion_and_its_adapter_that_of_twenty_million(
    bare, name
):
    """By the hub's name, or by the model's alone; at an eighth of its width."""
    made = config(name, shape_only=True, compressed_width=512, dtype="bfloat16")
    lm = load(made)
    assert sum(parameter.numel() for parameter in lm.model.parameters()) == 8_030_261_248
    assert lm.embedding_table.shape == (128_256, 4_096) and lm.head.weight.shape == (128_256, 4_096)
    D, K = lm.embedding_table.shape[1], made.compressed_width
    with torch.device("meta"):
        nothing = Compression(
            torch.zeros(D), torch.zeros(K, D), torch.zeros(D, dtype=torch.float64), 1.0, "PCA"
        )
        assert parameter_count(Adapter(nothing)) == 19_952_641


# ---------------------------------------------------------------- tokens and embeddings


def test_embeddings_are_rows_of_the_table(lm):
    ids = torch.tensor([[5, 9, 5], [4000, 0, 1]])
    embedded = lm.embed(ids)
    for row, column in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]:
        assert torch.equal(embedded[row, column], lm.embedding_table[ids[row, column]])


@pytest.mark.parametrize(
    "configured, expected", [(2, [2]), ([7, 2], [2, 7]), (9, [2, 9]), (None, [2])]
)
def test_end_tokens_are_those_of_the_generation_config_and_the_tokenizer(
    folder, configured, expected
):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": configured}))
    assert load(config(folder)).end_tokens == expected


def test_the_end_token_fills_padding_where_there_is_no_pad_token(tiny_lm):
    tokenizer = copy.deepcopy(tiny_lm.tokenizer)
    tokenizer.pad_token = None
    assert FrozenLM(tiny_lm.model, tokenizer, "no pad").pad_token == tokenizer.eos_token_id


# ---------------------------------------------------------------- checksum


def test_the_checksum_is_stable_across_loads(tiny_folder):
    assert load(config(tiny_folder)).checksum() == load(config(tiny_folder)).checksum()


def test_the_checksum_knows_the_precision(tiny_folder):
    assert (
        load(config(tiny_folder)).checksum()
        != load(config(tiny_folder, dtype="bfloat16")).checksum()
    )


@given(data=st.data())
def test_the_checksum_changes_with_a_single_bit_of_a_single_weight(checked, data):
    lm, before = checked
    weight = data.draw(st.sampled_from(list(lm.model.parameters()))).view(-1).view(torch.int32)
    place = data.draw(st.integers(0, len(weight) - 1))
    original, bit = weight[place].item(), 1 << data.draw(st.integers(0, 30))
    weight[place] = original ^ bit
    changed = lm.checksum()
    weight[place] = original
    assert changed != before and lm.checksum() == before


@given(data=st.data())
def test_the_checksum_changes_where_two_weights_trade_places(checked, data):
    lm, before = checked
    weight = data.draw(st.sampled_from(list(lm.model.parameters()))).view(-1)
    places = st.integers(0, len(weight) - 1)
    i, j = data.draw(places), data.draw(places)
    assume(weight[i] != weight[j])
    weight[[i, j]] = weight[[j, i]]
    changed = lm.checksum()
    weight[[i, j]] = weight[[j, i]]
    assert changed != before and lm.checksum() == before


def test_the_checksum_changes_with_a_buffer(tiny_lm):
    before = tiny_lm.checksum()
    buffer = next(buffer for buffer in tiny_lm.model.buffers() if buffer.numel())
    buffer[0] += 1
    assert tiny_lm.checksum() != before


def test_the_sums_see_the_order_of_large_chunks():
    size = 1 << 24
    tensor = torch.zeros(size + 3, dtype=torch.uint8)
    tensor[2], tensor[size + 1] = 1, 5
    original = bit_sums(tensor)
    tensor[2], tensor[size + 1] = 5, 1
    assert bit_sums(tensor) != original
    tensor[2], tensor[size + 1] = 1, 5
    assert bit_sums(tensor) == original
    tensor[2], tensor[size + 2] = 0, 1
    assert bit_sums(tensor) != original


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool]
)
def test_the_sums_work_on_every_type_and_shape(dtype):
    for shape in [(), (1,), (2, 3)]:
        zeros, ones = torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)
        assert bit_sums(zeros) == bit_sums(zeros.clone()) != bit_sums(ones)


def test_the_sums_of_an_empty_tensor_are_zero():
    assert bit_sums(torch.zeros(0)) == [0, 0]


# ---------------------------------------------------------------- the guard


def test_work_that_leaves_the_weights_alone_passes(tiny_lm):
    with tiny_lm.unchanged() as lm:
        lm.model(inputs_embeds=lm.embed(torch.tensor([[1, 2, 3]])))
    assert lm is tiny_lm


def test_gradients_may_pass_through_the_frozen_model(tiny_lm):
    with tiny_lm.unchanged():
        inputs = tiny_lm.embed(torch.tensor([[1, 2, 3]])).clone().requires_grad_()
        tiny_lm.model(inputs_embeds=inputs).logits.sum().backward()
    assert inputs.grad.abs().sum() > 0


def add_to_a_weight(model):
    model.lm_head.weight[0, 0] += 1e-3


def require_a_gradient(model):
    model.lm_head.weight.requires_grad_(True)


def leave_a_gradient(model):
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)


def change_precision(model):
    model.to(torch.bfloat16)


def resize_the_vocabulary(model):
    model.resize_token_embeddings(5_000)
    model.requires_grad_(False)


CHANGES = [
    add_to_a_weight,
    require_a_gradient,
    leave_a_gradient,
    change_precision,
    resize_the_vocabulary,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_guard_notices(tiny_lm, change):
    with pytest.raises(FrozenError), tiny_lm.unchanged():
        change(tiny_lm.model)
