"""Models of the hub: tokenizers without begin or pad token, chat ends, tied and padded tables.

Toy models stand for them; nothing here needs the network, and no score means anything.
"""

import copy
import json
import sys

import pytest
import torch
from toy_models import PADDING, SHAPE_OF, sharpen, shrunk, write

import stage1
from stage1 import study
from stage1.adapter import parameter_count
from stage1.ask.reader import make
from stage1.check import __main__ as check_command
from stage1.check import preflight
from stage1.compress import fit_pca, nearest_codebook
from stage1.config import load_preset
from stage1.corpus import data
from stage1.corpus.prompts import answer_end, encode, render, tokenize_answers
from stage1.evaluation.conditions import evaluate, untrained_conditions
from stage1.model import loading
from stage1.model.generation import generate, generate_ids, read_answer
from stage1.model.greedy import greedy_ids
from stage1.training.warmup import entry_weights

PRESETS = list(SHAPE_OF)
PARAMETERS = {
    "llama32_1b": 1_235_814_400, "qwen3_06b": 596_049_920, "smollm2_135m": 134_515_008,
}  # fmt: skip
"""As their model cards say, the tied table counted once."""
TABLES = {
    "llama32_1b": (128_256, 2_048), "qwen3_06b": (151_936, 1_024), "smollm2_135m": (49_152, 576),
}  # fmt: skip
FEW = {
    "data": "almanac", "device": "cpu", "dtype": "float32", "train_examples": 20,
    "selection_examples": 2, "test_examples": 20, "batch_size": 10, "epochs": 1,
    "warmup_steps": 2, "max_new_tokens": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    return {name: write(root / name, name) for name in PRESETS}


def toy(folders, name, **changes):
    """The preset with its toy model, on a few questions of the built-in corpus."""
    given = FEW | {"language_model": str(folders[name])} | changes
    return load_preset(name).replace(**given)


@pytest.fixture(scope="module", params=PRESETS)
def prepared(request, folders):
    return study.prepare(toy(folders, request.param))


# ---------------------------------------------------------------- the true shapes


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_shape_is_its_models_and_the_head_is_the_table(monkeypatch, name):
    monkeypatch.setattr(loading, "choose_device", lambda device: torch.device("meta"))
    config = load_preset(name).replace(shape_only=True)
    lm = loading.load(config)
    assert parameter_count(lm.model) == PARAMETERS[name]
    V, D = TABLES[name]
    assert lm.embedding_table.shape == (V, D) and lm.head.weight is lm.embedding_table
    assert config.width(D) * 8 == D
    needed = config.max_prompt_tokens + config.max_new_tokens
    assert lm.model.config.max_position_embeddings >= needed


@pytest.mark.parametrize("name", PRESETS)
def test_a_rehearsal_takes_a_training_step_and_is_asked(monkeypatch, tmp_path, name):
    """The true vocabulary with two narrow layers, and the shipped tokenizer."""
    (tmp_path / f"{SHAPE_OF[name]}.json").write_text(json.dumps(shrunk(name)))
    monkeypatch.setattr(loading, "SHAPES", tmp_path)
    config = load_preset(name).replace(**FEW | {"shape_only": True, "batch_size": 20})
    rehearsal = study.prepare(config)
    start = parameters(study.new_adapter(rehearsal))
    adapter, progress = study.train_adapter(rehearsal, resumable=False)
    assert len(progress.curve) == 1 and not torch.equal(parameters(adapter), start)
    reader = stage1.load(name, **FEW, shape_only=True)
    assert not reader.ask("The river is the Usk.", "Which river?", adapter=()).table.empty


def parameters(adapter) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in adapter.parameters()])


# ---------------------------------------------------------------- prompts, labels and ends


def special(lm, *names: str) -> list[int]:
    return lm.tokenizer.convert_tokens_to_ids(list(names))


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_prompt_begins_as_the_tokenizer_or_template_says_and_an_answer_ends_its_turn(
    folders, name, template
):
    config = toy(folders, name, prompt_template=template)
    lm = loading.load(config)
    encoded = encode(data.rows(config, "test"), lm.tokenizer, config)
    begin, start, eot, end = special(lm, "<|begin|>", "<|start|>", "<|eot|>", "<|endoftext|>")
    first = begin if name == "llama32_1b" else start
    for prompt, answer, golds in zip(encoded.prompts, encoded.answers, encoded.golds, strict=True):
        assert (prompt[0] == first) == (template == "chat" or first == begin)
        assert prompt.count(begin) == (name == "llama32_1b")
        assert answer[-1] == eot and not {begin, start, eot, end} & set(answer[:-1])
        assert lm.tokenizer.decode(answer[:-1]).strip() == golds[0]


def test_the_prompt_of_a_thinking_model_closes_its_thoughts(folders):
    lm = loading.load(toy(folders, "qwen3_06b"))
    prompt, answer = render(lm.tokenizer, "chat", "c", "q", "a")
    assert prompt.endswith("<|start|>assistant\n<think>\n\n</think>\n\n")
    assert answer == "a<|eot|>\n"


def test_no_prompt_depends_on_the_day_of_the_run(folders):
    lm = loading.load(toy(folders, "llama32_1b"))
    prompt, _ = render(lm.tokenizer, "chat", "c", "q")
    assert "Today Date: 26 Jul 2024<|eot|>" in prompt


@pytest.fixture(scope="module")
def other_end(tmp_path_factory):
    """A tokenizer and a generation config that end at `<|endoftext|>`, and a chat at `<|eot|>`."""
    folder = tmp_path_factory.mktemp("other") / "lm"
    write(folder, "qwen3_06b", eos_token="<|endoftext|>")
    path = folder / "generation_config.json"
    end = json.loads(path.read_text())["eos_token_id"][1]
    path.write_text(json.dumps({"eos_token_id": end}))
    return {"qwen3_06b": folder}


def test_labels_generation_and_answer_end_where_the_chat_template_ends_a_turn(other_end):
    config = toy(other_end, "qwen3_06b")
    prepared = study.prepare(config)
    lm, answers = prepared.lm, prepared.encoded["train"].answers
    end, eot = special(lm, "<|endoftext|>", "<|eot|>")
    assert lm.tokenizer.eos_token_id == end and lm.end_tokens == sorted([end, eot])
    assert all(row[-1] == eot and end not in row for row in answers)
    assert read_answer(lm, [*answers[0], 5]).ids == answers[0][:-1]
    assert read_answer(lm, answers[0]).ended and not read_answer(lm, answers[0][:-1]).ended


def test_a_template_that_writes_no_answer_cue_or_text_like_a_token_ends_no_answer_early(folders):
    lm = loading.load(toy(folders, "qwen3_06b"))
    end, start, eot = special(lm, "<|endoftext|>", "<|start|>", "<|eot|>")
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.split("{% if add_generation_prompt")[0]
    assert answer_end(tokenizer, "chat") == eot
    _, text = render(tokenizer, "chat", "c", "q", "to the <|endoftext|> of it")
    (ids,) = tokenize_answers(tokenizer, [text], eot)
    assert ids[0] == start and ids.count(end) == 1 and ids.index(eot) == len(ids) - 1


def test_a_plain_answer_ends_at_the_tokenizers_end_token(other_end):
    config = toy(other_end, "qwen3_06b", prompt_template="plain")
    lm = loading.load(config)
    (end,) = special(lm, "<|endoftext|>")
    encoded = encode(data.rows(config, "test"), lm.tokenizer, config)
    assert all(row[-1] == end for row in encoded.answers) and lm.end_tokens == [end]


def test_generation_stops_at_the_end_of_a_turn(other_end):
    """The head's row of that token is made the likeliest answer to anything."""
    lm = loading.load(toy(other_end, "qwen3_06b"))
    (eot,) = special(lm, "<|eot|>")
    head = torch.nn.Linear(*reversed(lm.head.weight.shape), bias=True)
    head.weight.data.zero_()
    head.bias.data = torch.nn.functional.one_hot(torch.tensor(eot), head.out_features).float()
    lm.model.set_output_embeddings(head.requires_grad_(False))
    assert generate_ids(lm, [[7, 8], [9]], lm.embed, 4) == [[eot], [eot]]
    (answer,) = generate(lm, [[7, 8]], lm.embed, 4)
    assert (answer.text, answer.ids, answer.ended) == ("", [], True)


PADS = {"llama32_1b": "<|endoftext|>", "qwen3_06b": "<|endoftext|>", "smollm2_135m": "<|eot|>"}


@pytest.mark.parametrize("name", PRESETS)
def test_padding_changes_no_answer_though_it_is_an_end_token(folders, name):
    lm = loading.load(toy(folders, name))
    sharpen(lm.model)
    assert [lm.pad_token] == special(lm, PADS[name]) and lm.pad_token in lm.end_tokens
    prompts = [[7, 8, 9, 10, 11], [12], [13, 14, 15]]
    alone = [generate_ids(lm, [prompt], lm.embed, 4)[0] for prompt in prompts]
    assert generate_ids(lm, prompts, lm.embed, 4) == alone
    assert greedy_ids(lm, prompts, lm.embed, 4) == alone


def test_a_chat_template_that_is_missing_is_refused_before_the_weights(folders, tmp_path):
    folder = write(tmp_path / "lm", "qwen3_06b", chat_template=None)
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ValueError, match="prompt_template='chat': this tokenizer has no chat"):
        loading.load(toy({"qwen3_06b": folder}, "qwen3_06b"))


# ---------------------------------------------------------------- from prompt to score


def test_a_study_goes_from_prompts_to_scores(prepared):
    adapter, progress = study.train_adapter(prepared, resumable=False)
    assert len(progress.curve) == 2 and progress.curve[-1]["step"] == 1
    scored, rebuilt = study.test_adapter(prepared, adapter)
    assert scored["f1"].between(0, 100).all() and 0 < rebuilt["fvu"] < 2
    table, _ = study.test_untrained(prepared)
    by = dict(list(table.groupby("condition")["prediction"]))
    assert list(by["text"]) == list(by["embeddings"]) == list(by["codebook"])


# ---------------------------------------------------------------- tied and padded tables


def test_compressing_the_input_leaves_a_tied_head_as_it_is(prepared):
    lm, table = prepared.lm, prepared.lm.embedding_table
    assert lm.head.weight is table
    before = table.clone()
    rebuilt = prepared.untrained()["pca_inverse"]
    assert not torch.allclose(rebuilt, before, atol=1e-3)
    evaluate(lm, prepared.encoded["test"], "pca_inverse", rebuilt, prepared.config, "")
    ids = torch.tensor([prepared.encoded["test"].prompts[0]])
    last = torch.zeros_like(ids, dtype=torch.bool)
    last[0, -1] = True
    with torch.inference_mode():
        hidden = lm.hidden(rebuilt[ids], last)
        torch.testing.assert_close(lm.logits(rebuilt[ids], last), hidden @ before.T)
    assert torch.equal(table, before)


def test_rows_that_no_token_uses_weigh_nothing(folders):
    config = toy(folders, "qwen3_06b", weighting="vocabulary")
    prepared = study.prepare(config)
    lm, V = prepared.lm, len(prepared.lm.embedding_table)
    assert lm.token_rows == len(lm.tokenizer) == V - PADDING
    weights = entry_weights(prepared.counts, config.warmup_uniform, lm.token_rows)
    assert (weights[-PADDING:] == 0).all() and (weights[:-PADDING] > 0).all()
    assert float(weights.sum()) == pytest.approx(1)
    alone = fit_pca(lm.embedding_table[:-PADDING], None, prepared.compression.width, "vocabulary")
    assert torch.equal(prepared.compression.components, alone.components)
    assert torch.equal(prepared.compression.mean, alone.mean)
    reader = make(config)
    assert torch.equal(reader.pca.mean, alone.mean)


def test_lookup_returns_no_row_that_only_pads_the_table(folders):
    """Even where a padding row equals a token's."""
    prepared = study.prepare(toy(folders, "qwen3_06b"))
    lm = prepared.lm
    with torch.no_grad():
        lm.embedding_table[-PADDING:] = lm.embedding_table[100 : 100 + PADDING]
    compressed = prepared.compression.compress(lm.embedding_table)
    found = nearest_codebook(compressed, compressed)
    assert int(found.max()) < lm.token_rows
    tables = untrained_conditions(lm, prepared.compression)
    assert torch.equal(tables["codebook"], lm.embedding_table)


# ---------------------------------------------------------------- loading, and what check says


@pytest.mark.parametrize("name", PRESETS)
def test_two_lines_ask_a_model(folders, name):
    reader = stage1.load(name, **FEW, language_model=str(folders[name]))
    reading = reader.ask("The river is the Usk.", "Which river?", ratio=16)
    assert reading.condition == "pca_inverse" and 0 < reading.probability < 1
    assert reading.table.set_index("condition").loc["codebook", "ratio"] == pytest.approx(16, 0.2)


def checked(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["check", *arguments])
    with pytest.raises(SystemExit) as raised:
        check_command.main()
    return raised.value.code, " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", PRESETS)
def test_check_says_what_to_do_without_a_network(monkeypatch, capsys, offline, name):
    code, shown = checked(monkeypatch, capsys, name, "-p", "device", "cpu")
    hub_id = load_preset(name).language_model
    assert code == 1 and shown.startswith(f"stop language model language_model='{hub_id}' cannot")
    assert f"hf download {hub_id} --local-dir FOLDER" in shown
    assert "shape_only=True with data='almanac' rehearses" in shown


def test_check_warns_that_no_rate_was_tried_and_shows_the_end_tokens(prepared):
    found = preflight(prepared, stop=False, timing=False)
    lines = {line.what: line for line in found.lines}
    assert [line.what for line in found.stops] == ["task"]
    assert lines["learning rate"].level == "warning"
    assert "0.001 for option3_teacher_forced: none was ever tried" in lines["learning rate"].found
    assert "<|eot|>" in lines["tokenizer"].found and lines["compression"].found.startswith("8x: K=")
    assert lines["text"].level == lines["prompts"].level == "OK"
