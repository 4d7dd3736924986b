"""Decontamination: what counts as shared with the test questions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.pretrain.held_out import HeldOut, N, words

CONTEXT = (
    "The canal of the north was dug by hand over eleven years and it opened in 1826 "
    "to ships of any flag, which paid a toll by weight."
)
QUESTION = "Who dug the canal?"
LONG_QUESTION = "In which year was the long canal of the north opened to all of the ships of trade?"


@pytest.fixture(scope="module")
def held_out():
    rows = [{"context": CONTEXT, "question": q} for q in (QUESTION, LONG_QUESTION)]
    return HeldOut(rows)


def gram(start: int, size: int = N) -> str:
    return " ".join(words(CONTEXT)[start : start + size])


def test_a_planted_test_passage_is_caught_whatever_its_case_and_punctuation(held_out):
    assert held_out.shares_text(f"Before it, other words. {CONTEXT.upper()} And after.")
    assert held_out.shares_text(CONTEXT.replace(" ", ", "))


@pytest.mark.parametrize("start", range(len(words(CONTEXT)) - N + 1))
def test_every_window_of_13_words_counts_and_none_of_12(held_out, start):
    assert held_out.shares_text(f"Something else {gram(start)} something else")
    assert not held_out.shares_text(f"Something else {gram(start, N - 1)} something else")


def test_the_same_words_in_another_order_are_not_shared(held_out):
    assert not held_out.shares_text(" ".join(reversed(words(CONTEXT))))


def test_words_of_two_test_texts_side_by_side_are_not_shared(held_out):
    assert not held_out.shares_text(f"{gram(0, 12)} {' '.join(words(LONG_QUESTION)[:12])}")


def test_a_test_question_is_caught_as_a_question_however_short(held_out):
    assert held_out.shares_question("who dug  the canal")
    assert not held_out.shares_question("Who dug the other canal?")
    assert held_out.shares_question(f"Well: {LONG_QUESTION}")


def test_a_short_question_within_a_passage_is_allowed(held_out):
    assert not held_out.shares_text(f"They asked: {QUESTION} Nobody knew.")


def test_without_test_questions_nothing_is_shared():
    empty = HeldOut([])
    assert not empty.shares_text(CONTEXT) and not empty.shares_question(QUESTION)


@given(st.lists(st.sampled_from(words(CONTEXT)), max_size=40))
def test_a_text_is_shared_exactly_if_13_of_its_words_stand_in_the_passage(held_out, text):
    passage = f" {' '.join(words(CONTEXT))} "
    grams = (text[i : i + N] for i in range(len(text) - N + 1))
    assert held_out.shares_text(" ".join(text)) == any(f" {' '.join(g)} " in passage for g in grams)
