"""Cloze questions: extractive, varied, and reproducible."""

import random

import pytest

from stage1.pretrain import cloze
from stage1.pretrain.cloze import candidates, cloze_questions, question_text

PARAGRAPH = (
    "Maria Winter was born in Bergen on 4 March 1861 and trained as a mechanic in Bergen. In 1884 "
    'she built the "Morning Star" with 12 oars for a firm of Oslo. The boat won the race of the '
    "northern clubs against 30 others. Later Maria Winter moved to Oslo, where an engine of her "
    "design was sold to the navy in 1897. She died there in 1920."
)


def made(paragraph: str, seeds: int = 200) -> list:
    groups = [g for seed in range(seeds) for g in cloze_questions(paragraph, random.Random(seed))]
    return [question for group in groups for question in group]


@pytest.fixture(scope="module")
def questions():
    return made(PARAGRAPH)


def test_every_answer_stands_in_its_context_and_not_in_its_question(questions):
    assert len(questions) > 300
    for context, question, answer in questions:
        assert answer and answer in context and question.endswith("?")


def test_questions_ask_for_names_numbers_dates_and_quotations(questions):
    answers = {question.answer for question in questions}
    assert answers >= {"Bergen", "4 March 1861", "1884", "Morning Star", "12", "30", "Oslo"}
    assert not answers & {"The", "In", "She"}


@pytest.mark.parametrize(
    "answer, word", [("4 March 1861", "when"), ("1884", "when"), ("30", "how many"), ("Oslo", "wh")]
)
def test_the_question_word_fits_the_phrase(questions, answer, word):
    asked = [q.question.lower() for q in questions if q.answer == answer]
    assert asked and all(word in question for question in asked)


def test_a_sentence_leaves_its_context_only_if_the_answer_stands_elsewhere(questions):
    shortened = [q for q in questions if q.context != PARAGRAPH]
    assert shortened and {q.answer for q in shortened} <= {
        "Bergen",
        "Oslo",
        "Maria Winter",
        "Winter",
    }
    whole = [q for q in questions if q.context == PARAGRAPH]
    assert len(whole) > len(shortened)


def test_words_are_dropped_and_long_sentences_cut(monkeypatch):
    sentence = " ".join(["word"] * 30 + ["Bergen"] + ["after"] * 30) + "."
    start = sentence.index("Bergen")
    phrase = ("what", start, start + len("Bergen"))
    lengths = [len(question_text(sentence, phrase, random.Random(i)).split()) for i in range(50)]
    assert max(lengths) <= cloze.MOST_WORDS + 1 and len(set(lengths)) > 2
    monkeypatch.setattr(cloze, "DROPPED", 0.0)
    assert len(question_text(sentence, phrase, random.Random(0)).split()) == cloze.MOST_WORDS + 1


@pytest.mark.parametrize("paragraph", ["", "One sentence of 12 words. " * 2, PARAGRAPH * 8])
def test_paragraphs_outside_the_length_limits_have_no_questions(paragraph):
    assert made(paragraph, 5) == []


def test_phrases_are_found_once_each_under_their_own_question_word():
    sentence = (
        "It grew faster in the concrete than in the early years of war on February 25, and in "
        "June 1999 the water supply was cut by 30 men."
    )
    found = [(word, sentence[start:end]) for word, start, end in candidates(sentence)]
    assert found == [
        ("when", "February 25"), ("when", "June 1999"), ("how many", "30"),
        ("what", "early years"), ("what", "water supply"),
    ]  # fmt: skip


def test_a_sentence_without_a_phrase_has_no_question():
    assert candidates("Nothing here stands out at all.") == []


def test_questions_are_reproducible():
    first, again, other = ([*cloze_questions(PARAGRAPH, random.Random(seed))] for seed in (0, 0, 1))
    assert first == again != other
