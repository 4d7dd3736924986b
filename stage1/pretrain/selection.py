"""What is kept of the sources, and in which order it becomes questions and rows."""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from stage1.pretrain.cloze import cloze_questions, within
from stage1.pretrain.held_out import HeldOut
from stage1.pretrain.packing import chunks
from stage1.pretrain.questions import Question, by_context, read_questions
from stage1.pretrain.text import paragraphs, read_documents

TOGETHER = 3
"""Questions on a passage that follow each other in one document; a prompt has only the first."""


class Kept:
    """Counts of what was read, and of why some of it was left out."""

    def __init__(self, held_out: HeldOut):
        self.held_out = held_out
        self.seen: set[int] = set()
        self.counts = dict.fromkeys(("read", "duplicates", "shared with held-out", "kept"), 0)

    def keeps(self, key: str, shared: bool) -> bool:
        """Count an item, and return whether it is new and not shared with the held-out texts."""
        digest = hash(key)
        reason = "duplicates" if digest in self.seen else "shared with held-out" if shared else ""
        self.seen.add(digest)
        self.counts["read"] += 1
        self.counts[reason or "kept"] += 1
        return not reason

    def documents(self, sources: Sequence[str], most: int) -> Iterator[list[str]]:
        """Yield each document's paragraphs; documents without any are left out."""
        for source in sources:
            for document in islice(read_documents(source), most or None):
                lines = paragraphs(document)
                lines = [p for p in lines if self.keeps(p, self.held_out.shares_text(p))]
                if lines:
                    yield lines

    def questions(self, sources: Sequence[str]) -> Iterator[Question]:
        """Yield the questions; one goes if its passage or itself is shared with held-out texts."""
        passages: dict[str, bool] = {}
        for source in sources:
            for item in read_questions(source):
                if item.context not in passages:
                    passages[item.context] = self.held_out.shares_text(item.context)
                shared = passages[item.context] or self.held_out.shares_question(item.question)
                if self.keeps(f"{item.context}\n{item.question}", shared):
                    yield item


def tokenizer_texts(
    documents: list[list[str]], questions: list[Question], characters: int, rng: random.Random
) -> Iterator[str]:
    """Yield random items up to a number of characters: questions for a tenth, then documents."""
    tenth = characters // 10
    for items, budget in ((questions, tenth), (documents, characters - tenth)):
        order = rng.sample(range(len(items)), len(items))
        for i in order:
            text = "\n".join(items[i])
            budget -= len(text)
            if budget < 0:
                break
            yield text


def cloze_groups(
    documents: list[list[str]], most: int, rng: random.Random
) -> Iterator[list[Question]]:
    """Yield cloze questions on random paragraphs, those on the same context together."""
    pool = [(d, p) for d, lines in enumerate(documents) for p, x in enumerate(lines) if within(x)]
    for d, p in rng.sample(pool, min(most, len(pool))):
        yield from cloze_questions(documents[d][p], rng)


def question_groups(
    questions: Iterable[Question], passes: int, seed: int
) -> Iterator[list[Question]]:
    """Yield up to three questions on a passage, every pass in another order and combination."""
    groups = list(by_context(questions).values())
    for number in range(passes):
        rng = random.Random(f"questions {seed} {number}")
        shuffled = (rng.sample(group, len(group)) for group in groups)
        parts = [part for group in shuffled for part in chunks(group, TOGETHER)]
        yield from rng.sample(parts, len(parts))
