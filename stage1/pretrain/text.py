"""Real text for pre-training: documents from files or the hub, as cleaned paragraphs.

A source is a JSON-lines file (each line a string, or an object with `text`), a text file (one
document), a folder of such files, or a hub dataset with a column `text`; files may be packed by xz
or gzip.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stage1.corpus.squad_files import kind, opened

TEXT_KINDS = (".jsonl", ".txt", ".md")
LEAST_WORDS = 6
"""Shorter paragraphs are headings, captions and leftovers of tables."""
UNWANTED = re.compile(r"<(?:pad|bos|eos)>|[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b-\u200f\ufeff\ufffd]")


def is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def hub_rows(source: str, field: str) -> Iterable[Mapping[str, Any]]:
    """Return the `train` split of a hub dataset, streamed.

    Raises OSError if the hub does not provide it.
    """
    import datasets  # needed for the hub alone

    try:
        return datasets.load_dataset(source, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{field}={source!r} cannot be loaded from the hub: expected an id 'owner/name' of a "
            f"dataset with a split 'train' that you have access to, or a file. {error}"
        ) from error


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place (`file:line`) and the value of every line.

    Raises ValueError with the place of a line that is not JSON.
    """
    with opened(path) as lines:
        for number, line in enumerate(lines, 1):
            place = f"{path}:{number}"
            try:
                yield place, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{place}: not JSON: {error}") from error


def text_of(value: Any, place: str) -> str:
    """Return the text of a JSON value. Raises ValueError with its place for any other value."""
    text = value.get("text") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        shown = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"{place}: found {shown}; expected a string, or an object with 'text'")
    return text


def check_sources(sources: Iterable[str], field: str, kinds: tuple[str, ...]) -> None:
    """Raise before any work for a source that is neither a file of these kinds nor a hub id.

    Raises FileNotFoundError for one that does not exist, else ValueError.
    """
    for source in sources:
        path = Path(source).expanduser()
        if not path.exists() and not is_hub_id(source):
            raise FileNotFoundError(
                f"{field}={source!r}: no such file; expected one of {', '.join(kinds)} "
                "(or the same with .xz or .gz), or a hub id 'owner/name'"
            )
        if path.is_file() and kind(path) not in kinds:
            raise ValueError(
                f"{field}={source!r}: a file of kind {kind(path)!r}; expected {', '.join(kinds)}"
            )


def read_documents(source: str) -> Iterator[str]:
    """Yield the documents of a source as they stand.

    Raises ValueError for a malformed line, OSError for a hub dataset that cannot be loaded.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        for member in sorted(path.rglob("*")):
            if member.is_file() and kind(member) in TEXT_KINDS:
                yield from read_documents(str(member))
    elif not path.is_file():
        rows = enumerate(hub_rows(source, "text"))
        yield from (text_of(row, f"{source}, row {index}") for index, row in rows)
    elif kind(path) == ".jsonl":
        yield from (text_of(value, place) for place, value in json_lines(path))
    else:
        with opened(path) as file:
            yield file.read()


def cleaned(text: str) -> str:
    """Return one paragraph in Unicode form NFC, with single spaces.

    Control characters go, and what a tokenizer would read as a begin, end or pad token.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(UNWANTED.sub(" ", text).split())


def paragraphs(document: str) -> list[str]:
    """Return the cleaned paragraphs (lines) of a document that have at least six words."""
    lines = map(cleaned, document.split("\n"))
    return [line for line in lines if line.count(" ") >= LEAST_WORDS - 1]
