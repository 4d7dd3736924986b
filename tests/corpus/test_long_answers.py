"""Questions for long answers: the passages of the short ones, and one right span each."""

import hashlib
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.config import StudyConfig, load_preset
from stage1.corpus import almanac
from stage1.corpus.data import SPLITS, rows
from stage1.corpus.grammar import grammar
from stage1.corpus.prompts import encode
from stage1.corpus.squad_files import check_answers
from stage1.corpus.writer import Fact, Writer

INDICES = st.integers(0, 10**6)
NAMES = st.sampled_from(["seen", "unseen"])
WORDINGS = {text: count for count, texts in grammar("seen").quotes.items() for text in texts}
"""Sentences that a question asks for, by what it ends with."""


def taken_apart(row: dict) -> tuple[str, int]:
    """Return the question without its ending, and the number of sentences that it asks for."""
    question, _, ending = row["question"].partition("? ")
    return f"{question}?", WORDINGS[ending]


def wordings(fact: Fact) -> set[str]:
    forward = (text.replace("{s}", fact.subject.text) for text in fact.relation.questions)
    reverse = (text.replace("{a}", fact.answer.text) for text in fact.relation.reverse)
    return {*forward, *reverse}


def facts_of(index: int, names: str) -> list[list[Fact]]:
    """Return the facts of each passage of a training article."""
    writer = Writer(random.Random(f"almanac 0 train {names} {index}").random, names)
    writer.region = writer.name("region")
    facts = []
    for _ in range(almanac.PASSAGES_PER_ARTICLE):
        facts.append(writer.passage()[1])
        writer.questions(facts[-1])
    return facts


# ---------------------------------------------------------------- reproducible


@pytest.mark.parametrize(
    "names, digest", [("seen", "653cce1bfc67d4c1"), ("unseen", "19c343d73f653f5d")]
)
def test_long_answers_are_the_same_on_every_machine_and_in_every_version(names, digest):
    text = json.dumps(almanac.table(300, names=names, answers="long").to_pylist(), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@given(index=INDICES, names=NAMES)
def test_long_and_short_questions_share_their_passages_and_no_id(index, names):
    short, long = (
        almanac.article(index, 0, "test", names, answers=kind) for kind in ("short", "long")
    )
    for field in ("context", "title"):
        assert [row[field] for row in short] == [row[field] for row in long]
    assert not {row["id"] for row in short} & {row["id"] for row in long}
    assert not {row["question"] for row in short} & {row["question"] for row in long}


@pytest.mark.parametrize("split", SPLITS)
def test_the_config_decides_the_answers_of_every_split(split):
    sizes = {f"{name}_examples": 24 for name in SPLITS}
    short, long = (rows(StudyConfig(answers=kind, **sizes), split) for kind in ("short", "long"))
    assert [row["context"] for row in short] == [row["context"] for row in long]
    assert all(len(a["answers"]["text"][0]) < 40 for a in short)
    assert all(len(a["answers"]["text"][0]) > 40 for a in long)


# ---------------------------------------------------------------- spans


@given(index=INDICES, names=NAMES)
def test_an_answer_is_whole_sentences_of_the_passage_that_stand_there_once(index, names):
    for row in almanac.article(index, 0, "train", names, answers="long"):
        check_answers(row, "almanac")
        (span,) = row["answers"]["text"]
        assert row["context"].count(span) == 1
        sentences = row["context"].removesuffix(".").split(". ")
        _, count = taken_apart(row)
        runs = zip(*(sentences[i:] for i in range(count)), strict=False)
        assert span in {". ".join(run) + "." for run in runs}


@given(index=INDICES, names=NAMES)
def test_a_question_fits_one_fact_and_its_answer_begins_with_the_sentence_of_that(index, names):
    passages = facts_of(index, names)
    for i, row in enumerate(almanac.article(index, 0, "train", names, answers="long")):
        asked, _ = taken_apart(row)
        facts = passages[i // almanac.QUESTIONS_PER_PASSAGE]
        (fact,) = [fact for fact in facts if asked in wordings(fact)]
        assert sum(other.relation == fact.relation for other in facts) >= 2  # distractors
        (start,) = row["answers"]["answer_start"]
        first = row["context"][start : row["context"].index(".", start)]
        name = fact.subject.text.split()[-1] if fact.surname_alone else fact.subject.text
        assert name in first and fact.answer.text in first


def test_both_numbers_of_sentences_and_all_wordings_are_frequent():
    asked = [row["question"] for row in almanac.table(1_200, answers="long").to_pylist()]
    for ending in WORDINGS:
        assert sum(question.endswith(ending) for question in asked) > 120


@pytest.mark.parametrize("names", ["seen", "unseen"])
def test_answers_have_15_to_40_tokens_and_fit_the_budgets_of_their_preset(names, tokenizer):
    config = load_preset("long_answers")
    examples = almanac.table(3_000, split="train", names=names, answers="long").to_pylist()
    encoded = encode(examples, tokenizer, config, training=True)
    assert encoded.shortened == encoded.dropped == 0
    lengths = np.array([len(ids) - 1 for ids in encoded.answers])  # without the end token
    low, high = np.percentile(lengths, [5, 95])
    assert 20 < lengths.mean() < 30 and low >= 15 and high <= 40
    assert lengths.max() < config.max_new_tokens


# ---------------------------------------------------------------- errors


def test_other_answers_are_refused():
    with pytest.raises(ValueError, match=r"answers='mixed': expected 'short' or 'long'"):
        almanac.article(0, answers="mixed")


def test_long_answers_to_questions_of_another_source_are_refused():
    with pytest.raises(ValueError, match=r"answers='long': expected 'short' where data='x.json'"):
        StudyConfig(data="x.json", answers="long")
