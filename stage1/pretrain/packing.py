"""Rows of token ids for pre-training: documents packed side by side, with their boundaries.

A row holds 16-bit codes: the token id in the lower 15 bits, and in the highest bit whether the
token belongs to an answer. A document starts with the begin token, and a row starts a document, so
the boundaries stand in the ids themselves. Padding comes last in a row.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from jaxtyping import Bool, Int, UInt16
from transformers import PreTrainedTokenizerFast

from stage1.corpus.prompts import render
from stage1.pretrain.questions import Question

ANSWER = np.uint16(1 << 15)
LARGEST_VOCABULARY = 1 << 15
OPEN_ROWS = 64
"""Rows that the packer keeps open; a document goes to the fullest of them that has room."""
CHUNK = 1_024
Document = UInt16[np.ndarray, " _"]
Rows = UInt16[np.ndarray, "N T"]


@dataclass
class OpenRow:
    """A row that still takes documents."""

    free: int
    documents: list[Document]


def encoded(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def text_documents(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Iterator[Document]:
    """Yield every text between begin and end token."""
    ends = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for chunk in chunks(texts, CHUNK):
        for ids in encoded(tokenizer, chunk):
            yield np.array([*ends[0], *ids, *ends[1]], dtype=np.uint16)


def chunks(items: Iterable, size: int) -> Iterator[list]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def question_documents(
    tokenizer: PreTrainedTokenizerFast, groups: Iterable[Sequence[Question]], length: int
) -> Iterator[Document]:
    """Yield one document per context: the prompt of its first question, then the other questions.

    It begins exactly as a prompt of the study. Questions that do not fit into `length` tokens are
    left out, and so is a context whose first question does not fit.
    """
    for chunk in chunks(groups, CHUNK):
        texts, counts = [], []
        for group in chunk:
            parts = question_texts(tokenizer, group)
            texts += parts
            counts.append(len(parts))
        ids = iter(encoded(tokenizer, texts))
        for count in counts:
            document = one_document([next(ids) for _ in range(count)], length)
            if document is not None:
                document[0] = tokenizer.bos_token_id
                yield document


def question_texts(tokenizer: PreTrainedTokenizerFast, group: Sequence[Question]) -> list[str]:
    """Return question, answer, question, answer, ...; the first question has the context."""
    texts = []
    for i, (context, question, answer) in enumerate(group):
        prompt, target = render(tokenizer, "plain", context, question, answer)
        texts += [prompt if i == 0 else prompt[len("Context: ") + len(context) :], target]
    return texts


def one_document(parts: list[list[int]], length: int) -> Document | None:
    """Join whole pairs of question and answer, after a place for the begin token."""
    codes: list[int] = [0]
    for question, answer in zip(parts[::2], parts[1::2], strict=True):
        if len(codes) + len(question) + len(answer) > length:
            break
        codes += question + [token | int(ANSWER) for token in answer]
    return np.array(codes, dtype=np.uint16) if len(codes) > 1 else None


def stream_rows(documents: Iterable[Document], length: int) -> Rows:
    """Return rows cut from one stream of documents; the last, incomplete row is left out.

    A document that is cut goes on in the next row as a document of its own.
    """
    parts = list(documents)
    stream = np.concatenate([*parts, np.zeros(0, dtype=np.uint16)])
    return stream[: len(stream) // length * length].reshape(-1, length)


def packed_rows(documents: Iterable[Document], length: int, pad: int) -> Rows:
    """Return rows of whole documents, by best fit among 64 open rows.

    Raises ValueError for a document longer than a row.
    """
    done: list[list[Document]] = []
    open_rows: list[OpenRow] = []
    for document in documents:
        size = len(document)
        if size > length:
            raise ValueError(f"document of {size} tokens: expected at most row={length}")
        fitting = [row for row in open_rows if row.free >= size]
        if not fitting:
            fitting = [OpenRow(length, [])]
            open_rows += fitting
        row = min(fitting, key=attrgetter("free"))
        row.free -= size
        row.documents.append(document)
        if len(open_rows) > OPEN_ROWS:
            fullest = min(open_rows, key=attrgetter("free"))
            open_rows = [row for row in open_rows if row is not fullest]
            done.append(fullest.documents)
    done += [row.documents for row in open_rows]
    rows = np.full((len(done), length), pad, dtype=np.uint16)
    for codes, parts in zip(rows, done, strict=True):
        joined = np.concatenate(parts)
        codes[: len(joined)] = joined
    return rows


def ids_of(rows: Rows) -> Int[np.ndarray, "N T"]:
    return (rows & ~ANSWER).astype(np.int64)


def is_answer(rows: Rows) -> Bool[np.ndarray, "N T"]:
    return (rows & ANSWER) > 0


def document_counts(rows: Rows, begin: int) -> Int[np.ndarray, " N"]:
    """Return the number of documents of every row: its begin tokens, and a row's own start."""
    starts = rows == begin
    return starts[:, 1:].sum(1) + 1
