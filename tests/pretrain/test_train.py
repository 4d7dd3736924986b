"""Training of the shipped model at a tiny size: loss, schedule, recipe, and a whole run."""

import json
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import encode
from stage1.model import loading
from stage1.model.generation import generate
from stage1.pretrain import train
from stage1.pretrain.rows import LENGTHS, training_rows
from stage1.pretrain.train import PretrainConfig, learning_rate, losses

TINY = PretrainConfig(width=32, depth=1, passages=400, batch=4, steps=40, device="cpu", processes=1)
SHORT = replace(TINY, steps=3)


@pytest.fixture(scope="module")
def rows():
    """Return the training rows of ten articles: 40 rows, as tensors."""
    folder = str(loading.SHIPPED)
    ids, is_answer = training_rows(range(10), folder, TINY.row, TINY.seed)
    return torch.from_numpy(ids).long(), torch.from_numpy(is_answer)


@pytest.fixture
def model(tokenizer):
    return train.build_model(TINY, tokenizer)


# ---------------------------------------------------------------- loss and schedule


@torch.no_grad()
def test_without_extra_weight_the_loss_is_the_cross_entropy_of_all_real_tokens(
    rows, model, tokenizer
):
    ids, is_answer = rows[0][:4], rows[1][:4]
    log_probabilities = model(input_ids=ids).logits.log_softmax(-1)
    figures = losses(model, ids, is_answer, 1.0, tokenizer.pad_token_id)
    loss, all_tokens, answer_tokens, accuracy = figures.tolist()
    of_all, of_answers = [], []
    for row, t in np.ndindex(4, ids.shape[1]):
        if t and ids[row, t] != tokenizer.pad_token_id:
            nll = -log_probabilities[row, t - 1, ids[row, t]].item()
            of_all.append(nll)
            if is_answer[row, t]:
                of_answers.append(nll)
    assert loss == pytest.approx(all_tokens) == pytest.approx(np.mean(of_all), rel=1e-4)
    assert answer_tokens == pytest.approx(np.mean(of_answers), rel=1e-4)
    assert 0 <= accuracy < 0.1


@torch.no_grad()
def test_extra_weight_moves_the_loss_towards_the_answer_tokens(rows, model):
    distances = []
    for weight in (1.0, 8.0, 1e6):
        loss, _, answer, _ = losses(model, rows[0][:8], rows[1][:8], weight, 0)
        distances.append(abs(loss - answer))
    assert distances[0] > distances[1] > distances[2]


@torch.no_grad()
def test_padding_changes_no_loss(rows, model):
    batch = rows[0][:4], rows[1][:4]
    longer = (torch.nn.functional.pad(tensor, (0, 9)) for tensor in batch)
    torch.testing.assert_close(losses(model, *batch, 8.0, 0), losses(model, *longer, 8.0, 0))


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


def test_a_few_steps_lower_the_loss(rows, model, tokenizer):
    few = rows[0][:8], rows[1][:8], TINY.answer_weight, tokenizer.pad_token_id
    before = losses(model, *few).detach()
    curve = train.train(TINY, model, *rows)
    after = losses(model, *few).detach()
    assert after[0] < before[0] - 1 and after[2] < before[2]
    assert curve["step"].tolist() == [TINY.steps]
    assert abs(curve["loss"].iloc[-1] - after[0].item()) < 0.5


@pytest.fixture(scope="module")
def trained(rows, tokenizer):
    """Return a function that gives all weights after a short training by a changed recipe."""

    def weights(**changes) -> torch.Tensor:
        model = train.build_model(SHORT, tokenizer)
        train.train(replace(SHORT, **changes), model, *rows)
        return torch.nn.utils.parameters_to_vector(model.parameters())

    return weights


@pytest.fixture(scope="module")
def unchanged(trained):
    return trained()


def test_training_is_reproducible_bit_for_bit(trained, unchanged):
    assert torch.equal(trained(), unchanged)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"answer_weight": 1.0}, {"weight_decay": 0.0}, {"learning_rate": 1e-3}]
)
def test_every_part_of_the_recipe_has_an_effect(trained, unchanged, change):
    assert not torch.equal(trained(**change), unchanged)


def test_the_seed_decides_the_initial_weights(tokenizer):
    first, again, other = (
        train.build_model(replace(SHORT, seed=seed), tokenizer).lm_head.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_weight_decay_spares_embeddings_head_and_norms(model):
    decayed, spared = (
        {id(parameter) for parameter in group["params"]}
        for group in train.build_optimizer(TINY, model).param_groups
    )
    for name, parameter in model.named_parameters():
        is_spared = "layers" not in name or "norm" in name
        assert ((id(parameter) in spared), (id(parameter) in decayed)) == (is_spared, not is_spared)


def test_the_record_tells_the_length_of_rows_that_the_answers_need():
    assert TINY.row == LENGTHS["short"] == 160
    assert replace(TINY, answers="mixed", row=0).row == LENGTHS["mixed"] > 200
    assert PretrainConfig(answers="mixed", row=300).row == 300


@pytest.mark.slow
@pytest.mark.parametrize("answers, kinds", [("short", ["short"]), ("mixed", ["short", "long"])])
def test_a_whole_run_writes_a_folder_that_loads_and_answers(tmp_path, monkeypatch, answers, kinds):
    monkeypatch.setattr(train, "answer_scores", partial(train.answer_scores, n=24))
    config = replace(TINY, passages=200, batch=8, steps=5, answers=answers, row=0)
    folder = tmp_path / "made" / "lm"
    record = train.run(folder, config)
    assert {path.name for path in folder.iterdir()} >= {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "training.json", "training_curve.csv",
    }  # fmt: skip
    assert json.loads((folder / "training.json").read_text()) == record
    assert PretrainConfig(**record["config"]) == config
    assert 190 <= record["rows"] <= 200 and 80 < record["tokens_per_row"] <= config.row
    columns = ("answers", "names", "seed", "questions")
    scored = [tuple(score[column] for column in columns) for score in record["scores"]]
    assert scored == [(*key, 24) for key in product(kinds, ("seen", "unseen"), range(3))]
    assert pd.read_csv(folder / "training_curve.csv")["step"].tolist() == [5]
    assert f"{record['parameters']:,} parameters" in (folder / "README.md").read_text()
    lm = loading.load(StudyConfig(language_model=str(folder), device="cpu"))
    assert sum(parameter.numel() for parameter in lm.model.parameters()) == record["parameters"]
    assert len({lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id, lm.pad_token}) == 3
    examples = almanac.table(4).to_pylist()
    plain, chat = (
        encode(examples, lm.tokenizer, StudyConfig(prompt_template=name))
        for name in ("plain", "chat")
    )
    assert plain == chat
    embedded = generate(lm, plain.prompts, lm.embed)
    assert generate(lm, plain.prompts) == embedded


def test_every_option_of_the_command_reaches_the_recipe(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(train, "run", lambda *given: calls.append(given) or {"done": True})
    options = ["--steps", "20", "--learning-rate", "1e-3", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["pretrain", str(tmp_path), *options])
    train.main()
    assert calls == [(tmp_path, PretrainConfig(steps=20, learning_rate=1e-3, device="cpu"))]
    assert json.loads(capsys.readouterr().out) == {"done": True}


@pytest.mark.parametrize(
    "field, value",
    [("passages", 3), ("steps", 0), ("width", 48), ("processes", 0), ("row", -1), ("answers", "x")],
)
def test_an_impossible_recipe_is_refused_by_its_field(field, value):
    with pytest.raises(ValueError, match=rf"{field}={value!r}: expected"):
        PretrainConfig(**{field: value})
