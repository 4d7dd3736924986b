"""Generation: both conditions agree, padding and batching move nothing, and it stops where it should."""

import json
import random
import shutil
from itertools import pairwise

import pytest
import torch

from stage1 import almanac, evaluate, language_model
from stage1.config import StudyConfig
from stage1.evaluate import Answer, generate, left_pad, score_answers
from stage1.prompts import Encoded, encode

CONFIG = StudyConfig(device="cpu")


@pytest.fixture(scope="module")
def encoded(tokenizer) -> Encoded:
    """100 test questions on passages with seen names."""
    return encode(almanac.table(100, split="test", names="seen").to_pylist(), tokenizer, CONFIG)


@pytest.fixture(scope="module")
def answers(lm, encoded) -> list[Answer]:
    return generate(lm, encoded.prompts)


def random_prompts(n: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[1, *(rng.randrange(3, 4_096) for _ in range(rng.randrange(3, 30)))] for _ in range(n)]


# ---------------------------------------------------------------- batches


def test_masks_come_from_lengths_and_not_from_ids():
    ids, mask = left_pad([[7, 0, 0], [0], [0, 0, 0, 5, 0]], pad=0)
    assert ids.tolist() == [[0, 0, 7, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 5, 0]]
    assert mask.tolist() == [[False] * 2 + [True] * 3, [False] * 4 + [True], [True] * 5]


def test_padding_is_the_pad_token_and_ends_where_the_prompt_begins():
    ids, mask = left_pad([[4, 5], [6, 7, 8]], pad=9)
    assert ids.tolist() == [[9, 4, 5], [6, 7, 8]]
    assert ids[~mask].tolist() == [9]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_batches_hold_every_prompt_once_and_are_of_similar_length(size):
    prompts = random_prompts(20)
    batches = evaluate.by_length(prompts, size)
    assert sorted(i for batch in batches for i in batch) == list(range(20))
    assert all(0 < len(batch) <= size for batch in batches)
    lengths = [[len(prompts[i]) for i in batch] for batch in batches]
    assert all(min(before) >= max(after) for before, after in pairwise(lengths))


# ---------------------------------------------------------------- the shipped model


def test_the_shipped_model_answers_almost_every_question(encoded, answers):
    assert score_answers(encoded, answers, "text")["f1"].mean() >= 97
    assert all(answer.ended for answer in answers)


def test_text_and_embeddings_give_the_same_answers(lm, encoded, answers):
    assert generate(lm, encoded.prompts, lm.embed) == answers


@pytest.mark.parametrize("condition", ["text", "embeddings"])
def test_the_batch_size_changes_no_answer(lm, encoded, answers, condition):
    embed = lm.embed if condition == "embeddings" else None
    assert generate(lm, encoded.prompts[:30], embed, batch_size=1) == answers[:30]


def test_answers_come_in_the_order_of_their_prompts(lm, encoded, answers):
    order = random.Random(0).sample(range(100), 100)
    shuffled = generate(lm, [encoded.prompts[i] for i in order], batch_size=16)
    assert shuffled == [answers[i] for i in order]
    assert len({answer.text for answer in answers}) > 50


def test_huge_values_in_padding_slots_change_no_answer(lm, encoded, answers):
    prompts = encoded.prompts[:40]
    assert len({len(prompt) for prompt in prompts}) > 5

    def poisoned(ids):
        return lm.embed(ids).masked_fill((ids == lm.pad_token)[..., None], 1e4)

    assert generate(lm, prompts, poisoned) == answers[:40]


def test_what_embed_returns_is_what_the_model_reads(lm, encoded, answers):
    blank = generate(lm, encoded.prompts[:10], lambda ids: torch.zeros_like(lm.embed(ids)))
    assert blank != answers[:10]


def test_generation_leaves_the_model_as_it_was(lm, encoded):
    with lm.unchanged():
        generate(lm, encoded.prompts[:2], lm.embed)


# ---------------------------------------------------------------- stopping


def test_an_answer_has_no_end_token_and_is_not_padded(lm, answers):
    for answer in answers:
        assert 0 < len(answer.ids) < 20
        assert not {lm.tokenizer.eos_token_id, lm.pad_token} & set(answer.ids)
        assert answer.text and answer.text == answer.text.strip()


@pytest.mark.parametrize("condition", ["text", "embeddings"])
def test_an_answer_that_was_cut_short_says_so(lm, encoded, answers, condition):
    embed = lm.embed if condition == "embeddings" else None
    cut = generate(lm, encoded.prompts[:20], embed, max_new_tokens=1)
    assert [answer.ids for answer in cut] == [answer.ids[:1] for answer in answers[:20]]
    assert not any(answer.ended for answer in cut)


def test_generation_stops_at_any_end_token(lm, encoded, answers, monkeypatch):
    extra = answers[0].ids[1]
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", [lm.tokenizer.eos_token_id, extra])
    steps = []
    hook = lm.model.register_forward_hook(lambda *_: steps.append(1))
    (stopped,) = generate(lm, encoded.prompts[:1])
    hook.remove()
    assert (stopped.ids, stopped.ended) == (answers[0].ids[:1], True)
    assert len(steps) == 2


# ---------------------------------------------------------------- any model


@pytest.mark.parametrize("condition", ["text", "embeddings"])
def test_prompts_that_contain_the_pad_token_are_read_in_full(tiny_lm, condition):
    embed = tiny_lm.embed if condition == "embeddings" else None
    prompts = [[*prompt[:2], tiny_lm.pad_token, *prompt[2:]] for prompt in random_prompts(8)]
    prompts += [[tiny_lm.pad_token, *prompt] for prompt in random_prompts(4)]
    alone = [generate(tiny_lm, [prompt], embed, max_new_tokens=5)[0] for prompt in prompts]
    assert generate(tiny_lm, prompts, embed, max_new_tokens=5) == alone


def test_no_prompts_give_no_answers(tiny_lm):
    assert generate(tiny_lm, []) == []


@pytest.mark.parametrize(
    "habit", [{"repetition_penalty": 1.8}, {"do_sample": True, "temperature": 5.0}, {"min_new_tokens": 8}]
)
def test_decoding_is_greedy_whatever_the_models_own_generation_config_says(tiny_folder, tiny_lm, tmp_path, habit):
    prompts = random_prompts(20)
    fourth = generate(tiny_lm, prompts)[0].ids[3]
    ends = {"eos_token_id": [tiny_lm.tokenizer.eos_token_id, fourth]}
    answers = []
    for extra in (ends, ends | habit):
        folder = shutil.copytree(tiny_folder, tmp_path / "lm", dirs_exist_ok=True)
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | extra))
        answers.append(generate(language_model.load(CONFIG.replace(language_model=str(folder))), prompts))
    assert len(answers[0][0].ids) <= 3
    assert answers[1] == answers[0]


# ---------------------------------------------------------------- scores


def test_scored_answers_have_a_row_per_example():
    encoded = Encoded(
        ids=["1", "2"],
        titles=["a", "b"],
        golds=[["Ada Bell", "Bell"], ["Usk"]],
        prompts=[[1], [1]],
        answers=[[2], [2]],
        shortened=0,
        dropped=0,
    )
    table = score_answers(encoded, [Answer("the Bell", [5, 6], True), Answer("River Usk", [7, 8, 9], False)], "text")
    assert table.to_dict("records") == [
        {
            "id": "1",
            "title": "a",
            "condition": "text",
            "prediction": "the Bell",
            "golds": ["Ada Bell", "Bell"],
            "f1": 100.0,
            "em": 100.0,
            "ended": True,
            "tokens": 2,
        },
        {
            "id": "2",
            "title": "b",
            "condition": "text",
            "prediction": "River Usk",
            "golds": ["Usk"],
            "f1": pytest.approx(200 / 3),
            "em": 0.0,
            "ended": False,
            "tokens": 3,
        },
    ]


def test_both_conditions_are_scored_under_their_name(lm, encoded):
    few = encode(almanac.table(6, split="test").to_pylist(), lm.tokenizer, CONFIG)
    for condition in ("text", "embeddings"):
        table = evaluate.evaluate(lm, few, condition, CONFIG)
        assert set(table["condition"]) == {condition} and list(table["id"]) == few.ids


def test_an_unknown_condition_is_refused(lm, encoded):
    with pytest.raises(ValueError, match=r"condition='txt'.*text, embeddings"):
        evaluate.evaluate(lm, encoded, "txt", CONFIG)
