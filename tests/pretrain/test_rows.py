"""Training data of the shipped model: rows of passages with questions, and the tokenizer."""

import numpy as np
import pytest
import torch

from stage1.config import StudyConfig
from stage1.corpus import SPLITS, almanac
from stage1.corpus.prompts import encode
from stage1.model.loading import SHIPPED
from stage1.pretrain import rows as pretrain_rows
from stage1.pretrain.rows import LENGTHS, SPLIT, corpus, fill_row, train_tokenizer, training_rows

LENGTH = LENGTHS["short"]


@pytest.fixture(scope="module")
def rows():
    """Return the training rows of ten articles: 40 rows, as tensors."""
    return tuple(map(torch.from_numpy, training_rows(range(10), str(SHIPPED), LENGTH, 0)))


@pytest.fixture(scope="module")
def examples():
    """Return the questions of the same articles."""
    return [row for index in range(10) for row in almanac.article(index, 0, SPLIT)]


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(
    "length, ids, answers",
    [
        (12, [1, 2, 3, 8, 9, 4, 5, 8, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0]),
        (8, [1, 2, 3, 8, 9, 4, 5, 8], [0, 0, 0, 1, 1, 0, 0, 1]),
        (7, [1, 2, 3, 8, 9, 0, 0], [0, 0, 0, 1, 1, 0, 0]),  # no half pairs
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


def test_the_answers_of_a_row_are_the_gold_answers_of_its_passage(rows, examples, tokenizer):
    assert len(rows[0]) == len(examples) / almanac.QUESTIONS_PER_PASSAGE
    total = 0
    for i, (row, is_answer) in enumerate(zip(*rows, strict=True)):
        text = tokenizer.decode(row[is_answer])
        golds = [f" {e['answers']['text'][0]}<eos>" for e in examples[3 * i : 3 * i + 3]]
        count = text.count("<eos>")
        assert count >= 1 and text == "".join(golds[:count])
        total += count
    assert total > 2 * len(rows[0])


def test_the_first_question_of_a_row_is_a_prompt_of_the_study(rows, examples, tokenizer):
    encoded = encode(examples[:: almanac.QUESTIONS_PER_PASSAGE], tokenizer, StudyConfig())
    for row, prompt, answer in zip(rows[0].tolist(), encoded.prompts, encoded.answers, strict=True):
        assert row[: len(prompt) + len(answer)] == prompt + answer


def test_a_row_is_padded_at_its_end_only(rows, tokenizer):
    for row in rows[0]:
        real = (row != tokenizer.pad_token_id).sum()
        assert row[0] == tokenizer.bos_token_id and row[real - 1] == tokenizer.eos_token_id
        assert (row[real:] == tokenizer.pad_token_id).all()


def test_the_division_of_work_changes_no_row(monkeypatch):
    monkeypatch.setattr(almanac, "chunks", lambda *_: [range(1), range(1, 4)])
    whole = training_rows(range(4), str(SHIPPED), LENGTH, 0)
    assert whole[1].any(axis=1).all()
    for one, other in zip(whole, corpus(4, SHIPPED, LENGTH, 0, processes=1), strict=True):
        assert np.array_equal(one, other)


def test_rows_without_an_answer_are_dropped():
    ids, is_answer = training_rows(range(4), str(SHIPPED), 105, 0)
    kept = is_answer.any(axis=1)
    assert 0 < kept.sum() < len(ids)
    assert np.array_equal(corpus(4, SHIPPED, 105, 0, processes=1)[0], ids[kept])


def test_training_articles_are_disjoint_from_the_splits_of_the_study():
    trained = {row["context"] for index in range(50) for row in almanac.article(index, 0, SPLIT)}
    for split in SPLITS:
        assert not trained & set(almanac.table(300, split=split)["context"].to_pylist())


# ---------------------------------------------------------------- kinds of answers


@pytest.mark.parametrize("answers", LENGTHS)
def test_no_row_of_the_default_length_loses_a_question(answers, tokenizer):
    _, is_answer = training_rows(range(100), str(SHIPPED), 512, 0, answers)
    ids, kept = training_rows(range(100), str(SHIPPED), LENGTHS[answers], 0, answers)
    assert is_answer.sum() == kept.sum() > 0
    ends = ((ids == tokenizer.eos_token_id) & kept).sum(axis=1)
    assert (ends == almanac.QUESTIONS_PER_PASSAGE).all()


def test_mixed_questions_alternate_in_a_passage_and_as_its_first_question():
    short, long = (almanac.article(3, 0, SPLIT, answers=kind) for kind in ("short", "long"))
    mixed = pretrain_rows.examples(3, 0, "mixed")
    assert mixed[::2] == short[::2] and mixed[1::2] == long[1::2]
    first = mixed[:: almanac.QUESTIONS_PER_PASSAGE]
    assert [row["id"].endswith("-long") for row in first] == [False, True, False, True]


def test_mixed_rows_hold_the_answers_of_both_kinds(tokenizer):
    ids, is_answer = training_rows(range(2), str(SHIPPED), LENGTHS["mixed"], 0, "mixed")
    examples = [row for index in range(2) for row in pretrain_rows.examples(index, 0, "mixed")]
    text = "".join(f" {row['answers']['text'][0]}<eos>" for row in examples)
    assert tokenizer.decode(ids[is_answer]) == text


# ---------------------------------------------------------------- tokenizer


@pytest.mark.parametrize("change", [{"seed": 1}, {"answers": "mixed"}])
def test_another_seed_or_other_answers_give_another_tokenizer(change):
    recipe = {"vocabulary": 600, "articles": 20, "seed": 0}
    first, other = (train_tokenizer(**given).get_vocab() for given in (recipe, recipe | change))
    assert first != other


def test_the_tokenizer_is_reproducible_and_writes_any_text(tmp_path):
    first, second = (train_tokenizer(vocabulary=600, articles=20, seed=0) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert len(first) == 600
    text = "Naïve 🦊 <tags> & 1,000 metres\n of 长江"
    assert first.decode(first(text)["input_ids"], skip_special_tokens=True) == text
