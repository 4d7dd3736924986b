"""The built-in corpus: a generated encyclopedia of invented people and places, in SQuAD's schema.

An article describes one invented region. Each of its passages sets two or three subjects of one kind beside each other
with the same relations, so that every question has distractors, and each passage carries three extractive questions.
`grammar` holds the statements, questions, names and word lists; this module rolls the dice.

Text depends on (seed, split, names, article index) alone: each article has its own generator, and only
`random.Random.random` is used, whose sequence Python guarantees across versions and machines.
"""

import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from stage1.corpus.grammar import Relation, grammar

if TYPE_CHECKING:
    import datasets

PASSAGES_PER_ARTICLE = 4
QUESTIONS_PER_PASSAGE = 3
EXAMPLES_PER_ARTICLE = PASSAGES_PER_ARTICLE * QUESTIONS_PER_PASSAGE
SHORTEST, LONGEST = (
    320,
    400,
)  # characters of a passage before another filler is added; drawn anew for each
SHORT_NAME = 0.25  # chance that a statement calls a person by surname alone
SQUAD_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "title": pa.string(),
        "context": pa.string(),
        "question": pa.string(),
        "answers": pa.struct({"text": pa.list_(pa.string()), "answer_start": pa.list_(pa.int32())}),
    }
)


class Value(NamedTuple):
    """An answer or a subject: its text, and a shorter span inside it that is also accepted ("" for none)."""

    text: str
    also: str = ""


class Fact(NamedTuple):
    relation: Relation
    subject: Value
    answer: Value
    subject_start: int  # character offsets in the passage
    answer_start: int
    shortened: bool  # the statement calls its subject by surname


class Writer:
    """Writes one passage at a time; no name and no answer occurs twice in a passage."""

    def __init__(self, rng, names: str, region: str = ""):
        self.rng, self.grammar, self.region, self.used = rng, grammar(names), region, set()

    # dice

    def one(self, items):
        return items[int(self.rng() * len(items))]

    def sample(self, items, k: int) -> list:
        items = list(items)
        return [items.pop(int(self.rng() * len(items))) for _ in range(k)]

    def fresh(self, draw) -> str:
        """A draw that this passage has not used yet."""
        while (text := draw()) in self.used:
            pass
        self.used.add(text)
        return text

    def name(self, stock: str) -> str:
        return self.fresh(partial(self.grammar.names[stock].draw, self.rng))

    def words(self, name: str) -> str:
        return " ".join([row.draw(self.rng) for row in self.grammar.lists[name]])

    # makers of values, called by the name under which the grammar asks for them

    def person(self, _="") -> Value:
        full = f"{self.name('given')} {self.name('surname')}"
        return Value(f"{self.words('title')} {full}", full) if self.rng() < 0.2 else Value(full)

    def town(self, _="") -> Value:
        name = self.name("town")
        return (
            Value(f"{self.one(('Upper', 'Port', 'Great', 'Little'))} {name}")
            if self.rng() < 0.15
            else Value(name)
        )

    def river(self, _="") -> Value:
        name = self.name("river")
        return Value(f"River {name}", name) if self.rng() < 0.5 else Value(name)

    def hill(self, _="") -> Value:
        name = self.name(self.one(("surname", "town")))
        return Value(f"Mount {name}", name) if self.rng() < 0.5 else Value(f"{name} Hill", name)

    def organisation(self, _="") -> Value:
        noun, roll = self.words("organisation_noun"), self.rng()
        if roll < 0.3:
            return Value(f"{self.name('surname')} and {self.name('surname')} {noun}")
        return Value(f"{self.name('surname' if roll < 0.65 else 'town')} {noun}")

    def building(self, _="") -> Value:
        first = self.name("town") if self.rng() < 0.6 else self.fresh(partial(self.words, "emblem"))
        return Value(f"{first} {self.words('building_noun')}")

    def book(self, _="") -> Value:
        return Value(f"The {self.fresh(partial(self.words, 'emblem'))}")

    def ship(self, _="") -> Value:
        first = (
            self.name("given")
            if self.rng() < 0.4
            else self.grammar.lists["emblem"][0].draw(self.rng)
        )
        return Value(self.fresh(lambda: f"{first} {self.words('ship_noun')}"))

    def prize(self, _="") -> Value:
        return Value(f"{self.fresh(partial(self.words, 'emblem'))} {self.words('prize_noun')}")

    def festival(self, _="") -> Value:
        return Value(f"{self.fresh(partial(self.words, 'emblem'))} {self.words('festival_noun')}")

    def phrase(self, name: str) -> Value:
        return Value(self.fresh(partial(self.words, name)))

    def date(self, _="") -> Value:
        year = self.fresh(lambda: str(1650 + int(self.rng() * 320)))
        return Value(f"{1 + int(self.rng() * 28)} {self.one(self.grammar.months)} {year}", year)

    def quantity(self, unit_and_top: str) -> Value:
        # Two leading digits at a magnitude drawn by decades: 12, 340, 7,800, 61,000.
        unit, top = unit_and_top.split()
        draw = lambda: f"{(10 + int(self.rng() * 90)) * 10 ** int(self.rng() * (len(top) - 1)):,}"  # noqa: E731
        number = self.fresh(draw)
        return Value(f"{number} {unit}", number)

    # sentences

    def state(self, relation: Relation, kind: str, subject: Value) -> tuple[str, Fact]:
        """A sentence that states the relation, and the fact with offsets relative to it."""
        answer = getattr(self, relation.make_answer)(relation.argument)
        statement, name = self.one(relation.statements), subject.text
        shortened = kind == "person" and self.rng() < SHORT_NAME
        if shortened:
            name = name.rsplit(" ", 1)[1]
        first, second = (name, answer.text) if statement.subject_first else (answer.text, name)
        starts = len(statement.before), len(statement.before) + len(first) + len(statement.between)
        subject_start, answer_start = starts if statement.subject_first else starts[::-1]
        sentence = f"{statement.before}{first}{statement.between}{second}{statement.after}"
        return sentence, Fact(relation, subject, answer, subject_start, answer_start, shortened)

    def filler(self) -> str:
        pieces = list(self.one(self.grammar.fillers))
        pieces[1::2] = [
            self.region if slot == "region" else self.words(slot) for slot in pieces[1::2]
        ]
        return "".join(pieces)

    def passage(self) -> tuple[str, list[Fact]]:
        """Shuffled sentences as one text, and the facts in it with offsets in that text."""
        self.used.clear()
        kind = self.one(tuple(self.grammar.kinds))
        subjects, relations = (2, 3) if self.rng() < 0.5 else (3, 2)
        relations = self.sample(self.grammar.kinds[kind], relations)
        subjects = [getattr(self, kind)() for _ in range(subjects)]
        sentences = [
            self.state(relation, kind, subject) for relation in relations for subject in subjects
        ]
        wanted = (
            SHORTEST
            + self.rng() * (LONGEST - SHORTEST)
            - sum(len(sentence) for sentence, _ in sentences)
        )
        while sentences[-1][1] or wanted > 0:  # at least one
            sentences.append((self.filler(), None))
            wanted -= len(sentences[-1][0])
        facts, offset = [], 0
        sentences = self.sample(sentences, len(sentences))
        for sentence, fact in sentences:
            if fact:
                facts.append(
                    fact._replace(
                        subject_start=fact.subject_start + offset,
                        answer_start=fact.answer_start + offset,
                    )
                )
            offset += len(sentence) + 1
        return " ".join([sentence for sentence, _ in sentences]), facts

    def question(self, fact: Fact) -> tuple[str, dict]:
        """A question about the fact, and its accepted answers: the full span first."""
        if fact.relation.reverse and not fact.shortened and self.rng() < 0.3:
            question = self.one(fact.relation.reverse).replace("{a}", fact.answer.text)
            value, start = fact.subject, fact.subject_start
        else:
            question = self.one(fact.relation.questions).replace("{s}", fact.subject.text)
            value, start = fact.answer, fact.answer_start
        texts = [value.text, value.also] if value.also else [value.text]
        return question, {
            "text": texts,
            "answer_start": [start + value.text.index(text) for text in texts],
        }


def article(index: int, seed: int = 0, split: str = "train", names: str = "seen") -> list[dict]:
    """Article number `index` as SQuAD rows: 4 passages of 3 questions each."""
    rng = random.Random(f"almanac {seed} {split} {names} {index}").random
    writer = Writer(rng, names)
    writer.region = writer.name("region")
    rows, title = [], f"{writer.region}, sheet {index} ({split})"
    for p in range(PASSAGES_PER_ARTICLE):
        context, facts = writer.passage()
        for q, fact in enumerate(writer.sample(facts, QUESTIONS_PER_PASSAGE)):
            question, answers = writer.question(fact)
            key = f"{split}-{names}-{seed}-{index}-{p}-{q}"
            rows.append(
                {
                    "id": key,
                    "title": title,
                    "context": context,
                    "question": question,
                    "answers": answers,
                }
            )
    return rows


def articles_table(indices: range, **kind) -> pa.Table:
    return pa.Table.from_pylist(
        [row for index in indices for row in article(index, **kind)], schema=SQUAD_SCHEMA
    )


def table(
    n: int, seed: int = 0, split: str = "train", names: str = "seen", processes: int = 1
) -> pa.Table:
    """The first n examples of a split as an Arrow table; the same for any number of processes."""
    if n < 0:
        raise ValueError(f"n={n}: expected zero or more examples")
    articles, make = (
        -(-n // EXAMPLES_PER_ARTICLE),
        partial(articles_table, seed=seed, split=split, names=names),
    )
    step = max(1, min(2_000, -(-articles // processes)))
    chunks = [range(start, min(start + step, articles)) for start in range(0, articles, step)]
    if processes == 1:
        tables = list(map(make, chunks))
    else:
        with ProcessPoolExecutor(
            processes, mp_context=multiprocessing.get_context("spawn")
        ) as pool:
            tables = list(pool.map(make, chunks))
    return pa.concat_tables(tables or [SQUAD_SCHEMA.empty_table()]).slice(0, n)


def dataset(n: int, **kind) -> "datasets.Dataset":
    """`table` as a `datasets.Dataset` in SQuAD's schema (id, title, context, question, answers)."""
    import datasets  # not needed to train the language model, nor present where that happens

    return datasets.Dataset(table(n, **kind))
