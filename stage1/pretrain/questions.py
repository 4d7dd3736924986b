"""Extractive questions for pre-training: SQuAD JSON, JSON lines, or a hub dataset."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stage1.corpus.squad_files import check_answers, flat_rows, kind, opened
from stage1.pretrain.text import cleaned, hub_rows, json_lines

EXPECTED = "expected 'context', 'question', and 'answer' or SQuAD's 'answers'"


class Question(NamedTuple):
    """A question whose answer stands in its context."""

    context: str
    question: str
    answer: str


def squad_rows(path: Path) -> list[dict]:
    """Return the flat rows of a SQuAD v1.1 JSON file, which may be packed by xz or gzip.

    Raises ValueError that names the file if it is malformed.
    """
    with opened(path) as file:
        try:
            rows = list(flat_rows(json.load(file)["data"]))
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__} {error}"
            raise ValueError(f"{path}: not in SQuAD v1.1 form: {reason}") from error
    for row in rows:
        check_answers(row, str(path))
    return rows


def read_rows(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the place and the fields of every question of a source."""
    path = Path(source).expanduser()
    if not path.exists():
        rows: Iterable = enumerate(hub_rows(source, "questions"))
        yield from ((f"{source}, row {index}", row) for index, row in rows)
    elif kind(path) == ".jsonl":
        yield from json_lines(path)
    else:
        yield from ((f"{path}, question {row['id']!r}", row) for row in squad_rows(path))


def read_questions(source: str) -> Iterator[Question]:
    """Yield the cleaned questions of a source, each with its first gold answer.

    Raises ValueError, with the place, for a row that lacks a field, or whose answer is not in its
    context.
    """
    for place, row in read_rows(source):
        try:
            answer = row["answer"] if "answer" in row else row["answers"]["text"][0]
            texts = [row["context"], row["question"], answer]
        except (KeyError, IndexError, TypeError) as error:
            reason = f"{type(error).__name__} {error}"
            raise ValueError(f"{place}: {reason}; {EXPECTED}") from error
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{place}: found {texts!r}; {EXPECTED}, all of them text")
        question = Question(*map(cleaned, texts))
        if not question.answer or question.answer not in question.context:
            raise ValueError(f"{place}: answer {answer!r} is not in its context")
        yield question


def by_context(questions: Iterable[Question]) -> dict[str, list[Question]]:
    """Group questions by their context, in order of appearance."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.context, []).append(question)
    return groups
