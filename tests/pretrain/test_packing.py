"""Packed rows: which tokens they hold, where documents begin, and what counts as an answer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.config import StudyConfig
from stage1.corpus.prompts import encode
from stage1.pretrain import packing
from stage1.pretrain.packing import ANSWER, document_counts, ids_of, is_answer
from stage1.pretrain.questions import Question

BEGIN, END, PAD = 1, 2, 0
GROUP = [
    Question("The tower is in Paris.", "Where is it?", "Paris"),
    Question("The tower is in Paris.", "What is in Paris?", "The tower"),
]


def documents(*lengths: int) -> list[np.ndarray]:
    """Return documents of these lengths; document i consists of tokens 10 + i."""
    return [np.array([BEGIN] + [10 + i] * (n - 1), dtype=np.uint16) for i, n in enumerate(lengths)]


# ---------------------------------------------------------------- rows


def test_a_stream_is_cut_into_full_rows():
    rows = packing.stream_rows(documents(3, 6, 2), length=4)
    assert rows.tolist() == [[1, 10, 10, 1], [11, 11, 11, 11]]
    assert document_counts(rows, BEGIN).tolist() == [2, 1]  # the second goes on from the first


@given(st.lists(st.integers(1, 12), max_size=60))
def test_every_document_stands_in_one_packed_row(lengths):
    rows = packing.packed_rows(documents(*lengths), 12, PAD)
    found = []
    for row in rows:
        real = row[row != PAD]
        assert (row[len(real) :] == PAD).all() and (len(real) == 0 or real[0] == BEGIN)
        starts = np.flatnonzero(real == BEGIN)
        found += [part.tolist() for part in np.split(real, starts[1:])]
    assert sorted(found) == sorted(document.tolist() for document in documents(*lengths))
    assert (document_counts(rows, BEGIN) == (rows == BEGIN).sum(1)).all()


def test_documents_go_to_the_fullest_row_with_room(monkeypatch):
    rows = packing.packed_rows(documents(6, 8, 2, 4), 10, PAD)
    assert [len(set(row) - {PAD, BEGIN}) for row in rows.tolist()] == [2, 2]
    assert len(packing.packed_rows(documents(6, 8, 4, 2), 10, PAD)) == 2
    monkeypatch.setattr(packing, "OPEN_ROWS", 1)  # the row of 8 is closed before the last comes
    assert len(packing.packed_rows(documents(6, 8, 4, 2), 10, PAD)) == 3


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="document of 9 tokens: expected at most row=8"):
        packing.packed_rows(documents(9), 8, PAD)


def test_codes_hold_the_id_and_the_role():
    rows = np.array([[7, 7 | int(ANSWER), 32_767 | int(ANSWER)]], dtype=np.uint16)
    assert ids_of(rows).tolist() == [[7, 7, 32_767]]
    assert is_answer(rows).tolist() == [[False, True, True]]


# ---------------------------------------------------------------- documents


def test_a_text_stands_between_begin_and_end_token(tokenizer):
    (ids,) = packing.text_documents(tokenizer, ["Two words."])
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[1:-1]) == "Two words."


def test_a_question_document_begins_as_a_prompt_of_the_study(tokenizer):
    context, question, answer = GROUP[0]
    golds = {"text": [answer], "answer_start": [context.index(answer)]}
    example = {"id": "1", "title": "", "context": context, "question": question, "answers": golds}
    encoded = encode([example], tokenizer, StudyConfig())
    (document,) = packing.question_documents(tokenizer, [GROUP[:1]], 512)
    codes = np.array([document])
    assert ids_of(codes)[0].tolist() == encoded.prompts[0] + encoded.answers[0]
    assert is_answer(codes).sum() == len(encoded.answers[0])


def test_further_questions_follow_without_the_context(tokenizer):
    (document,) = packing.question_documents(tokenizer, [GROUP], 512)
    codes = np.array([document])
    text = tokenizer.decode(ids_of(codes)[0])
    assert text == (
        "<bos>Context: The tower is in Paris.\nQuestion: Where is it?\nAnswer: Paris<eos>"
        "\nQuestion: What is in Paris?\nAnswer: The tower<eos>"
    )
    answers = tokenizer.decode(ids_of(codes)[is_answer(codes)])
    assert answers == " Paris<eos> The tower<eos>"


def test_questions_that_do_not_fit_are_left_out(tokenizer):
    (both,) = packing.question_documents(tokenizer, [GROUP], 512)
    (one,) = packing.question_documents(tokenizer, [GROUP], len(both) - 1)
    (first,) = packing.question_documents(tokenizer, [GROUP[:1]], 512)
    assert one.tolist() == first.tolist()
    assert [*packing.question_documents(tokenizer, [GROUP], len(first) - 1)] == []


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_size_of_chunks_changes_no_document(tokenizer, monkeypatch, size):
    def made():
        texts = [f"Text number {i}." for i in range(5)]
        return [
            *packing.text_documents(tokenizer, texts),
            *packing.question_documents(tokenizer, [GROUP, GROUP[:1], GROUP[1:]], 512),
        ]

    expected = made()
    monkeypatch.setattr(packing, "CHUNK", size)
    assert [d.tolist() for d in made()] == [d.tolist() for d in expected]
