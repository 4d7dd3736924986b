"""The built-in corpus: a generated encyclopedia of invented people and places, in SQuAD's schema.

An article describes one invented region in four passages. Each passage states the same relations of
two or three subjects of one kind, so that every question has distractors, and carries three
extractive questions. `grammar` holds templates and word lists, and `writer` samples from them.

Answers are short (a name, a date) or long (two or three consecutive sentences). Both kinds of
questions are asked of the same passages.

Text depends on seed, split, names and article index alone: each article has its own generator, and
another one for its long answers. Only `random.Random.random` is used, whose sequence Python
guarantees across versions and machines.
"""

import multiprocessing
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from stage1.corpus.writer import QUESTIONS_PER_PASSAGE, Writer
from stage1.fields import require

PASSAGES_PER_ARTICLE = 4
EXAMPLES_PER_ARTICLE = PASSAGES_PER_ARTICLE * QUESTIONS_PER_PASSAGE
SQUAD_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "title": pa.string(),
        "context": pa.string(),
        "question": pa.string(),
        "answers": pa.struct({"text": pa.list_(pa.string()), "answer_start": pa.list_(pa.int32())}),
    }
)


def article(
    index: int, seed: int = 0, split: str = "train", names: str = "seen", answers: str = "short"
) -> list[dict]:
    """Return article number `index` as SQuAD rows: 4 passages of 3 questions each.

    `answers` are `short` or `long`, of the same passages; others raise ValueError.
    """
    require(answers in ("short", "long"), "answers", answers, "'short' or 'long'")
    of_article = f"{seed} {split} {names} {index}"
    writer = Writer(random.Random(f"almanac {of_article}").random, names)
    quoter = Writer(random.Random(f"almanac quotes {of_article}").random, names)
    writer.region = writer.name("region")
    rows: list[dict[str, Any]] = []
    for p in range(PASSAGES_PER_ARTICLE):
        context, facts = writer.passage()
        # Short questions are drawn in any case: the next passage depends on it.
        asked = writer.questions(facts)
        if answers == "long":
            asked = quoter.quotes(context, facts)
        for q, (question, golds) in enumerate(asked):
            row = {
                "id": f"{split}-{names}-{seed}-{index}-{p}-{q}{'-long' * (answers == 'long')}",
                "title": f"{writer.region}, sheet {index} ({split})",
                "context": context,
                "question": question,
                "answers": golds,
            }
            rows.append(row)
    return rows


def articles_table(indices: range, **options) -> pa.Table:
    rows = [row for index in indices for row in article(index, **options)]
    return pa.Table.from_pylist(rows, schema=SQUAD_SCHEMA)


def table(
    n: int,
    seed: int = 0,
    split: str = "train",
    names: str = "seen",
    answers: str = "short",
    processes: int = 1,
) -> pa.Table:
    """Return the first n examples of a split; the number of processes changes nothing."""
    require(n >= 0, "n", n, "zero or more examples")
    make = partial(articles_table, seed=seed, split=split, names=names, answers=answers)
    ranges = chunks(-(-n // EXAMPLES_PER_ARTICLE), processes)
    parts = list(map_chunks(make, ranges, processes)) or [SQUAD_SCHEMA.empty_table()]
    return pa.concat_tables(parts).slice(0, n)


def chunks(articles: int, processes: int) -> list[range]:
    """Split article indices into ranges of at most 2,000, and at least one for each process."""
    step = max(1, min(2_000, -(-articles // processes)))
    return [range(start, min(start + step, articles)) for start in range(0, articles, step)]


def map_chunks(make: Callable, ranges: list[range], processes: int) -> Iterator:
    """Yield `make(articles)` of every range in order, computed by several processes if asked."""
    if processes == 1:
        yield from map(make, ranges)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(make, ranges)
