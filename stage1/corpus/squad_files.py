"""Questions from files: SQuAD's nested JSON, or flat rows as a list or as JSON lines."""

import gzip
import json
import lzma
from collections.abc import Callable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pyarrow as pa

from stage1.corpus.almanac import SQUAD_SCHEMA
from stage1.fields import require

TITLE = 60
"""Characters of a passage that stand for its missing title; passages that share them are one
article."""
KINDS = (".json", ".jsonl")
OPENERS: Mapping[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}


def opened(path: Path) -> TextIOWrapper:
    """Open a UTF-8 text file, unpacking `.xz` and `.gz`."""
    return OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8")


def kind(path: Path) -> str:
    """Return a file's suffix below that of its packing: `.jsonl` for `a.jsonl.xz`."""
    return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


def read_squad_json(path: Path, field: str = "data") -> pa.Table:
    """Read questions as flat rows: SQuAD's nested v1.1 JSON, or a .jsonl file or a list of rows.

    A row has `context`, `question`, `answers` (or one `answer`) and perhaps `id` and `title`.
    Raises FileNotFoundError, or ValueError that names the file and the place in it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{field}={str(path)!r}: no such file; expected a SQuAD v1.1 JSON file or .jsonl"
        )
    try:
        document = read_document(path)
    except ValueError as error:  # malformed JSON or UTF-8
        raise ValueError(f"{path}: not JSON: {error}") from error
    if isinstance(document, list):
        rows = [flat_row(row, number, path) for number, row in enumerate(document, 1)]
        require(len(rows) > 0, field, str(path), "at least one question in the file")
    else:
        try:
            rows = list(flat_rows(document["data"]))
        except (KeyError, TypeError) as error:
            is_missing = isinstance(error, KeyError)
            reason = f"no {error} in it" if is_missing else f"{type(error).__name__} {error}"
            raise ValueError(f"{path}: not in SQuAD v1.1 form: {reason}") from error
    for row in rows:
        check_answers(row, str(path))
    return pa.Table.from_pylist(rows, schema=SQUAD_SCHEMA)


def read_document(path: Path) -> Any:
    """Return the parsed JSON; that of a .jsonl file as a list with an item per line."""
    with opened(path) as file:
        text = file.read()
    if kind(path) == ".json":
        return json.loads(text)
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            items += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return items


def flat_row(row: Any, number: int, path: Path) -> dict:
    """Return item `number` of a file, counted from 1, as a row in SQuAD's schema.

    Raises ValueError with what was found and what is expected.
    """
    found = ", ".join(map(str, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
    try:
        return {
            "id": str(row.get("id", number)),
            "title": row.get("title") or row["context"][:TITLE],
            "context": row["context"],
            "question": row["question"],
            "answers": flat_answers(row.get("answers", row.get("answer")), row["context"]),
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: item {number} of a flat list has {found}; expected context, question and "
            'answers {"text": [...], "answer_start": [...]}, or in place of the list SQuAD v1.1\'s '
            'nested form, {"data": [{"title": ..., "paragraphs": [...]}]}'
        ) from error


def flat_answers(answers: Any, context: str) -> dict[str, list]:
    """Return one or several answers with their offsets, by default where they first occur."""
    if isinstance(answers, dict):
        texts, starts = answers["text"], answers.get("answer_start")
    elif isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        texts = [answer["text"] for answer in answers]
        starts = [answer["answer_start"] for answer in answers]
    else:
        texts, starts = answers, None
    texts = [texts] if isinstance(texts, str) else list(texts)
    return {"text": texts, "answer_start": starts or [context.find(text) for text in texts]}


def flat_rows(articles: list[dict]) -> Iterator[dict]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = qa["answers"]
                yield {
                    "id": qa["id"],
                    "title": article["title"],
                    "context": paragraph["context"],
                    "question": qa["question"],
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                }


def check_answers(row: Mapping, source: str) -> None:
    """Raise ValueError unless the example has answers, each at its offset in the context."""
    texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
    question = f"{source}: question {row['id']!r}"
    if len(texts) != len(starts):
        raise ValueError(f"{question} has {len(texts)} answers at {len(starts)} offsets")
    if not texts:
        raise ValueError(f"{question} has no answer; SQuAD v1.1 questions have at least one")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int):
            raise ValueError(f"{question}: answer {text!r} at {start!r}; expected text and offset")
        if row["context"][start : start + len(text)] != text:
            place = f" at {start}" if start >= 0 else ""  # -1: it was searched for
            raise ValueError(f"{question}: answer {text!r} is not in its context{place}")
