"""The frozen language model: loading, freezing, and the checksum that proves it unchanged."""

import copy
import json
import shutil

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers.utils import logging

from stage1.adapter import Film, parameter_count
from stage1.config import StudyConfig
from stage1.model import loading
from stage1.model.language_model import FrozenError, FrozenLM, bit_sums
from stage1.model.loading import load


def config(folder, **changes) -> StudyConfig:
    return StudyConfig(language_model=str(folder), device="cpu", **changes)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model's folder, which a test may break."""
    return shutil.copytree(tiny_folder, tmp_path / "lm")


def test_loading_leaves_no_progress_bar_in_a_notebook_or_a_log(tiny_folder, capsys):
    logging.enable_progress_bar()  # another test may have turned it off
    load(config(tiny_folder))
    assert "Loading weights" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def checked(tiny_folder):
    """A tiny model, restored by each test that changes it, and its checksum."""
    lm = load(config(tiny_folder))
    return lm, lm.checksum()


# ---------------------------------------------------------------- the shipped model


def test_the_shipped_weights_take_at_most_16_mb():
    weights = loading.SHIPPED.glob("*.safetensors")
    assert sum(path.stat().st_size for path in weights) <= 16 * 10**6


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
def test_the_precision_is_the_configs_and_not_the_files(tiny_folder, dtype):
    with safe_open(tiny_folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    model = load(config(tiny_folder, dtype=dtype)).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused_and_the_error_names_the_missing_file(folder, missing):
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


@pytest.mark.parametrize("shape_only", [False, True])
def test_a_tokenizer_under_another_name_is_named_with_what_is_expected(folder, shape_only):
    (folder / "tokenizer.json").rename(folder / "tokenizer_raw.json")
    with pytest.raises(FileNotFoundError, match=r"has tokenizer_raw\.json but no tokenizer\.json"):
        load(config(folder, shape_only=shape_only))


@pytest.mark.parametrize("shape_only", [False, True])
def test_a_tokenizer_without_an_end_token_is_refused_before_the_weights(folder, shape_only):
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({n: value for n, value in values.items() if n != "eos_token"}))
    (folder / "model.safetensors").write_bytes(b"not read")
    message = f"language_model='{folder}': the tokenizer names no end token.*<pad>, <bos>, <eos>"
    with pytest.raises(ValueError, match=message):
        load(config(folder, shape_only=shape_only))


def test_truncated_weights_are_refused_by_name(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50_000])
    with pytest.raises(OSError, match=f"language_model='{folder}'"):
        load(config(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "shiped", "a/b/c"])
def test_a_missing_folder_is_refused_by_name(name):
    with pytest.raises(FileNotFoundError, match=f"language_model='{name}'.*'shipped'"):
        load(config(name))


def test_an_unreachable_hub_model_gives_one_clear_error(offline):
    message = "language_model='nobody/nothing' cannot be loaded: the hub cannot be reached"
    with pytest.raises(OSError, match=f"{message}.*hf download nobody/nothing --local-dir"):
        load(config("nobody/nothing"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="device='cuda'"):
        load(config(tiny_folder).replace(device="cuda"))
    assert load(config(tiny_folder).replace(device="auto")).device.type == "cpu"


# ---------------------------------------------------------------- a shape without weights


@pytest.fixture
def shape(folder):
    """A folder that holds a config only."""
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    return folder


def weights(lm) -> dict[str, torch.Tensor]:
    return dict(lm.model.named_parameters())


def test_a_shape_has_the_parameters_of_its_model_and_other_weights(tiny_folder):
    real = weights(load(config(tiny_folder)))
    drawn = weights(load(config(tiny_folder, shape_only=True)))
    assert {name: weight.shape for name, weight in drawn.items()} == {
        name: weight.shape for name, weight in real.items()
    }
    differ = {name for name in real if not torch.equal(real[name], drawn[name])}
    assert differ == {name for name, weight in real.items() if weight.dim() > 1}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_shape_is_frozen_in_evaluation_mode_and_in_the_configs_precision(shape, dtype):
    lm = load(config(shape, shape_only=True, dtype=dtype))
    assert {parameter.dtype for parameter in lm.model.parameters()} == {getattr(torch, dtype)}
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not any(module.training for module in lm.model.modules())
    hidden = lm.hidden(lm.embed(torch.tensor([[1, 2, 3]])), torch.ones(1, 3, dtype=torch.bool))
    assert hidden.isfinite().all() and hidden.std() > 0


def test_positions_may_be_marks_or_indices(shape):
    lm = load(config(shape, shape_only=True))
    embeddings, marks = lm.embed(torch.tensor([[1, 2, 3], [4, 5, 6]])), torch.ones(2, 3) > 0
    marks[0, 1] = marks[1, 2] = False
    assert torch.equal(
        lm.hidden(embeddings, torch.tensor([0, 2, 3, 4])), lm.hidden(embeddings, marks)
    )


def test_only_the_data_seed_decides_the_weights_of_a_shape(shape):
    sums = []
    for changes in ({}, {}, {"seed": 1}, {"data_seed": 1}):
        torch.manual_seed(len(sums))
        sums.append(load(config(shape, shape_only=True, **changes)).checksum())
    assert sums[0] == sums[1] == sums[2] != sums[3]


def test_a_shape_without_a_tokenizer_uses_the_shipped_one_and_its_end_token(shape, tokenizer):
    lm = load(config(shape, shape_only=True))
    assert lm.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert lm.end_tokens == [tokenizer.eos_token_id]


def test_a_shape_with_a_tokenizer_uses_its_own(folder, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["<mine>"])
    own.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    assert "<mine>" in load(config(folder, shape_only=True)).tokenizer.get_vocab()


@pytest.mark.parametrize("name", ["shipped", "meta-llama/Llama-3.1-7B", "./nowhere"])
def test_an_unknown_shape_is_refused_and_the_error_lists_the_known_ones(name):
    with pytest.raises(FileNotFoundError) as raised:
        load(config(name, shape_only=True))
    known = ", ".join(sorted(path.stem for path in loading.SHAPES.iterdir()))
    allowed = f"a folder with a config.json, or one of {known} where shape_only=True"
    assert "Llama-3.1-8B-Instruct, " in known
    assert str(raised.value) == f"language_model={name!r}: expected {allowed}"


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"])
def test_the_packages_shape_is_llama_8b_and_its_adapter_has_20_million_parameters(
    monkeypatch, name
):
    """The hub's name and the model's alone both work; no memory is allocated for the weights."""
    monkeypatch.setattr(loading, "choose_device", lambda device: torch.device("meta"))
    lm = load(config(name, shape_only=True, dtype="bfloat16"))
    assert parameter_count(lm.model) == 8_030_261_248
    assert lm.embedding_table.shape == lm.head.weight.shape == (128_256, 4_096)
    with torch.device("meta"):
        assert parameter_count(Film(512, 4_096)) == 19_952_641


# ---------------------------------------------------------------- tokens and embeddings


def test_embeddings_are_rows_of_the_table(lm):
    ids = torch.tensor([[5, 9, 5], [4000, 0, 1]])
    assert torch.equal(lm.embed(ids), lm.embedding_table[ids])


@pytest.mark.parametrize(
    "configured, expected", [(2, [2]), ([7, 2], [2, 7]), (9, [2, 9]), (None, [2])]
)
def test_end_tokens_are_the_generation_configs_and_the_tokenizers(folder, configured, expected):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": configured}))
    assert load(config(folder)).end_tokens == expected


def test_the_end_token_is_used_as_padding_if_there_is_no_pad_token(tiny_lm):
    tokenizer = copy.deepcopy(tiny_lm.tokenizer)
    tokenizer.pad_token = None
    assert FrozenLM(tiny_lm.model, tokenizer, "no pad").pad_token == tokenizer.eos_token_id


# ---------------------------------------------------------------- checksum


def test_the_checksum_is_stable_across_loads_and_depends_on_the_precision(checked, tiny_folder):
    _, checksum = checked
    assert load(config(tiny_folder)).checksum() == checksum
    assert load(config(tiny_folder, dtype="bfloat16")).checksum() != checksum


@given(data=st.data())
def test_the_checksum_changes_with_a_single_bit_of_a_single_weight(checked, data):
    lm, before = checked
    weight = data.draw(st.sampled_from(list(lm.model.parameters()))).view(-1).view(torch.int32)
    index = data.draw(st.integers(0, len(weight) - 1))
    original, bit = weight[index].item(), 1 << data.draw(st.integers(0, 30))
    weight[index] = original ^ bit
    changed = lm.checksum()
    weight[index] = original
    assert changed != before and lm.checksum() == before


@given(data=st.data())
def test_the_checksum_changes_if_two_weights_are_swapped(checked, data):
    lm, before = checked
    weight = data.draw(st.sampled_from(list(lm.model.parameters()))).view(-1)
    indices = st.integers(0, len(weight) - 1)
    i, j = data.draw(indices), data.draw(indices)
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


def test_the_sums_depend_on_the_order_across_large_chunks():
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
def test_the_sums_work_for_every_dtype_and_shape(dtype):
    for shape in [(), (1,), (2, 3)]:
        zeros, ones = torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)
        assert bit_sums(zeros) == bit_sums(zeros.clone()) != bit_sums(ones)


def test_the_sums_of_an_empty_tensor_are_zero():
    assert bit_sums(torch.zeros(0)) == [0, 0]


# ---------------------------------------------------------------- the guard


def test_the_guard_allows_work_that_does_not_change_the_weights(tiny_lm):
    with tiny_lm.unchanged() as lm:
        lm.model(inputs_embeds=lm.embed(torch.tensor([[1, 2, 3]])))
    assert lm is tiny_lm


def test_the_guard_allows_gradients_through_the_frozen_model(tiny_lm):
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
def test_the_guard_detects(tiny_lm, change):
    with pytest.raises(FrozenError), tiny_lm.unchanged():
        change(tiny_lm.model)
