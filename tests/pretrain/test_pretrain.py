"""Training of the shipped model, rehearsed at a tiny size: rows, loss, schedule, and the files of a whole run."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import encode
from stage1.evaluation import conditions
from stage1.model import language_model
from stage1.pretrain import train
from stage1.pretrain.rows import SPLIT, fill_row, train_tokenizer, training_rows
from stage1.pretrain.train import PretrainConfig, learning_rate, losses

TINY = PretrainConfig(width=32, depth=1, passages=400, batch=4, steps=40, device="cpu", processes=1)
FOLDER = str(language_model.SHIPPED)


@pytest.fixture(scope="module")
def rows():
    """Training rows of ten articles: 40 rows, as tensors."""
    return tuple(map(torch.from_numpy, training_rows(range(10), FOLDER, TINY.row, TINY.seed)))


def fresh_model(tokenizer, config: PretrainConfig = TINY):
    return train.build_model(config, tokenizer)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(
    "length, ids, answers",
    [
        (12, [1, 2, 3, 8, 9, 4, 5, 8, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0]),
        (8, [1, 2, 3, 8, 9, 4, 5, 8], [0, 0, 0, 1, 1, 0, 0, 1]),
        (7, [1, 2, 3, 8, 9, 0, 0], [0, 0, 0, 1, 1, 0, 0]),  # half a pair is no use
        (4, [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_a_row_takes_as_many_whole_pairs_as_fit(length, ids, answers):
    row, is_answer = np.zeros(length, dtype=np.int16), np.zeros(length, dtype=bool)
    fill_row(row, is_answer, [[1, 2, 3], [8, 9], [4, 5], [8]])
    assert row.tolist() == ids and is_answer.astype(int).tolist() == answers


def test_no_pair_follows_one_that_did_not_fit():
    row, is_answer = np.zeros(5, dtype=np.int16), np.zeros(5, dtype=bool)
    fill_row(row, is_answer, [[1], [8], [2] * 4, [8], [3], [9]])
    assert row.tolist() == [1, 8, 0, 0, 0]


def test_the_answers_of_a_row_are_the_gold_answers_of_its_passage(rows, tokenizer):
    ids, is_answer = rows
    examples = [row for index in range(10) for row in almanac.article(index, TINY.seed, SPLIT)]
    assert len(ids) == len(examples) / almanac.QUESTIONS_PER_PASSAGE
    found = 0
    for i, (row, marked) in enumerate(zip(ids, is_answer, strict=True)):
        text = tokenizer.decode(row[marked])
        golds = [f" {e['answers']['text'][0]}<eos>" for e in examples[3 * i : 3 * i + 3]]
        count = text.count("<eos>")
        assert count >= 1 and text == "".join(golds[:count])
        found += count
    assert found > 2 * len(ids)


def test_the_first_question_of_a_row_is_a_prompt_of_the_study(rows, tokenizer):
    examples = [row for index in range(10) for row in almanac.article(index, TINY.seed, SPLIT)]
    encoded = encode(examples[:: almanac.QUESTIONS_PER_PASSAGE], tokenizer, StudyConfig())
    for row, prompt, answer in zip(rows[0].tolist(), encoded.prompts, encoded.answers, strict=True):
        assert row[: len(prompt) + len(answer)] == prompt + answer


def test_a_row_is_padded_at_its_end_only(rows, tokenizer):
    for row in rows[0]:
        real = (row != tokenizer.pad_token_id).sum()
        assert row[0] == tokenizer.bos_token_id and row[real - 1] == tokenizer.eos_token_id
        assert (row[real:] == tokenizer.pad_token_id).all()


def test_the_division_of_work_changes_no_row():
    whole = training_rows(range(4), FOLDER, TINY.row, TINY.seed)
    parts = [training_rows(part, FOLDER, TINY.row, TINY.seed) for part in (range(1), range(1, 4))]
    for both, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert np.array_equal(both, np.concatenate(pieces))


def test_training_articles_are_none_of_the_studys(rows):
    trained = {row["context"] for index in range(200) for row in almanac.article(index, 0, SPLIT)}
    for split in ("train", "selection", "test"):
        assert not trained & set(almanac.table(600, split=split)["context"].to_pylist())


# ---------------------------------------------------------------- tokenizer


def test_the_tokenizer_is_reproducible_and_writes_any_text(tmp_path):
    first, second = (train_tokenizer(vocabulary=600, articles=20, seed=0) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert len(first) == 600
    text = "Naïve 🦊 <tags> & 1,000 metres\n of 长江"
    assert first.decode(first(text)["input_ids"], skip_special_tokens=True) == text


# ---------------------------------------------------------------- loss and schedule


def test_without_extra_weight_the_loss_is_the_cross_entropy_of_all_real_tokens(rows, tokenizer):
    ids, is_answer = rows[0][:4].long(), rows[1][:4]
    model = fresh_model(tokenizer)
    with torch.no_grad():
        log_probabilities = model(input_ids=ids).logits.log_softmax(-1)
        loss, all_tokens, answer_tokens, accuracy = losses(
            model, ids, is_answer, 1.0, tokenizer.pad_token_id
        ).tolist()
    nll = [
        (-log_probabilities[row, place - 1, ids[row, place]].item(), bool(is_answer[row, place]))
        for row in range(4)
        for place in range(1, ids.shape[1])
        if ids[row, place] != tokenizer.pad_token_id
    ]
    assert (
        loss == pytest.approx(all_tokens) == pytest.approx(np.mean([x for x, _ in nll]), rel=1e-4)
    )
    assert answer_tokens == pytest.approx(np.mean([x for x, answer in nll if answer]), rel=1e-4)
    assert 0 <= accuracy < 0.1


def test_extra_weight_moves_the_loss_towards_the_answer_tokens(rows, tokenizer):
    model = fresh_model(tokenizer)
    with torch.no_grad():
        figures = [
            losses(model, rows[0][:8].long(), rows[1][:8], weight, 0) for weight in (1.0, 8.0, 1e6)
        ]
    distances = [abs(loss - answer) for loss, _, answer, _ in figures]
    assert distances[0] > distances[1] > distances[2]


def test_padding_costs_nothing(rows, tokenizer):
    model = fresh_model(tokenizer)
    ids, is_answer = rows[0][:4].long(), rows[1][:4]
    longer = torch.nn.functional.pad(ids, (0, 9)), torch.nn.functional.pad(is_answer, (0, 9))
    with torch.no_grad():
        torch.testing.assert_close(
            losses(model, ids, is_answer, 8.0, 0), losses(model, *longer, 8.0, 0)
        )


@pytest.mark.parametrize("steps", [1, 2, 29, 300])
def test_the_learning_rate_rises_to_its_peak_and_falls(steps):
    config = PretrainConfig(steps=steps)
    rates = [learning_rate(config, step) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(config.learning_rate) and min(rates) > 0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak <= steps / 30 + 1


def test_the_learning_rate_ends_at_two_percent_of_its_peak():
    config = PretrainConfig(steps=300)
    assert learning_rate(config, 299) == pytest.approx(0.02 * config.learning_rate, rel=0.01)


# ---------------------------------------------------------------- training


def test_a_few_steps_lower_the_loss(rows, tokenizer):
    model = fresh_model(tokenizer)
    with torch.no_grad():
        before = losses(model, rows[0].long(), rows[1], TINY.answer_weight, tokenizer.pad_token_id)
    curve = train.train(TINY, model, *rows)
    with torch.no_grad():
        after = losses(model, rows[0].long(), rows[1], TINY.answer_weight, tokenizer.pad_token_id)
    assert after[0] < before[0] - 1 and after[2] < before[2]
    assert curve["step"].tolist() == [TINY.steps]
    assert abs(curve["loss"].iloc[-1] - after[0].item()) < 0.5


SHORT = PretrainConfig(width=32, depth=1, batch=4, steps=3, device="cpu")


def train(tokenizer, rows, config: PretrainConfig) -> torch.Tensor:
    """All weights after a short training from the weights that seed 0 gives."""
    model = fresh_model(tokenizer, SHORT)
    train.train(config, model, *rows)
    return torch.nn.utils.parameters_to_vector(model.parameters())


def test_training_is_reproducible_bit_for_bit(rows, tokenizer):
    assert torch.equal(train(tokenizer, rows, SHORT), train(tokenizer, rows, SHORT))


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"answer_weight": 1.0}, {"weight_decay": 0.0}, {"learning_rate": 1e-3}]
)
def test_each_part_of_the_recipe_counts(rows, tokenizer, change):
    assert not torch.equal(
        train(tokenizer, rows, SHORT), train(tokenizer, rows, replace(SHORT, **change))
    )


def test_the_seed_decides_the_first_weights(tokenizer):
    first, again, other = (
        fresh_model(tokenizer, replace(SHORT, seed=seed)).lm_head.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_weight_decay_spares_embeddings_head_and_norms(tokenizer):
    model = fresh_model(tokenizer)
    optimizer = train.build_optimizer(TINY, model)
    spared = {
        id(p)
        for group in optimizer.param_groups
        if not group["weight_decay"]
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert (id(parameter) in spared) == ("layers" not in name or "norm" in name), name
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(model.parameters())
    )


def test_a_whole_run_writes_a_folder_that_loads_and_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "answer_scores", partial(train.answer_scores, n=24))
    config = PretrainConfig(
        width=32, depth=1, passages=200, batch=8, steps=5, device="cpu", processes=1
    )
    folder = tmp_path / "made" / "lm"
    record = train.run(folder, config)
    assert {path.name for path in folder.iterdir()} >= {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
        "training_curve.csv",
    }
    assert json.loads((folder / "training.json").read_text()) == record
    assert PretrainConfig(**record["config"]) == config
    assert 190 <= record["rows"] <= 200 and 80 < record["tokens_per_row"] <= config.row
    assert [(score["names"], score["questions"]) for score in record["scores"]] == [
        ("seen", 24)
    ] * 3 + [("unseen", 24)] * 3
    assert pd.read_csv(folder / "training_curve.csv")["step"].tolist() == [5]
    assert f"{record['parameters']:,} parameters" in (folder / "README.md").read_text()
    lm = language_model.load(StudyConfig(language_model=str(folder), device="cpu"))
    assert sum(parameter.numel() for parameter in lm.model.parameters()) == record["parameters"]
    assert len({lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id, lm.pad_token}) == 3
    examples = almanac.table(4).to_pylist()
    prompts = encode(examples, lm.tokenizer, StudyConfig()).prompts
    assert conditions.generate(lm, prompts) == conditions.generate(lm, prompts, lm.embed)
    plain, chat = (
        encode(examples, lm.tokenizer, StudyConfig(prompt_template=name))
        for name in ("plain", "chat")
    )
    assert plain == chat


def test_every_option_of_the_command_reaches_the_recipe(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        train, "run", lambda folder, config: calls.append((folder, config)) or {"done": True}
    )
    options = ["--steps", "20", "--learning-rate", "1e-3", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["pretrain", str(tmp_path), *options])
    train.main()
    assert calls == [(tmp_path, PretrainConfig(steps=20, learning_rate=1e-3, device="cpu"))]
    assert json.loads(capsys.readouterr().out) == {"done": True}


@pytest.mark.parametrize(
    "field, value", [("passages", 3), ("steps", 0), ("width", 48), ("processes", 0)]
)
def test_a_recipe_that_cannot_be_followed_is_refused_by_its_field(field, value):
    with pytest.raises(ValueError, match=rf"{field}={value}: expected"):
        PretrainConfig(**{field: value})
