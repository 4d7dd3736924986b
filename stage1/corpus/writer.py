"""Passages and questions of the almanac: what `grammar` allows, drawn from one generator."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from stage1.corpus.grammar import Relation, grammar

QUESTIONS_PER_PASSAGE = 3
SHORTEST, LONGEST = 320, 400
"""Range of the length (characters) up to which fillers are added; drawn for each passage."""
SURNAME_ALONE = 0.25
"""Probability that a statement calls a person by surname alone."""


class Value(NamedTuple):
    """An answer or a subject: its text, and a shorter span of it that is also accepted, or ""."""

    text: str
    short: str = ""


class Fact(NamedTuple):
    """A stated relation, with the character offsets of subject and answer in the text."""

    relation: Relation
    subject: Value
    answer: Value
    subject_start: int
    answer_start: int
    surname_alone: bool

    def shifted(self, offset: int) -> "Fact":
        return self._replace(
            subject_start=self.subject_start + offset, answer_start=self.answer_start + offset
        )


class Writer:
    """Writes one passage at a time; no name and no answer occurs twice in a passage."""

    def __init__(self, rng: Callable[[], float], names: str, region: str = ""):
        self.rng, self.grammar, self.region = rng, grammar(names), region
        self.used: set[str] = set()

    # draws

    def one(self, items: Sequence):
        return items[int(self.rng() * len(items))]

    def sample(self, items: Sequence, k: int) -> list:
        remaining = list(items)
        return [remaining.pop(int(self.rng() * len(remaining))) for _ in range(k)]

    def fresh(self, draw: Callable[[], str]) -> str:
        """Draw until the text is new to this passage."""
        while (text := draw()) in self.used:
            pass
        self.used.add(text)
        return text

    def name(self, stock: str) -> str:
        return self.fresh(partial(self.grammar.names[stock].draw, self.rng))

    def words(self, name: str) -> str:
        return " ".join([words.draw(self.rng) for words in self.grammar.lists[name]])

    def emblem(self) -> str:
        return self.fresh(partial(self.words, "emblem"))

    # makers of values, which the grammar calls by name

    def person(self, _="") -> Value:
        full = f"{self.name('given')} {self.name('surname')}"
        return Value(f"{self.words('title')} {full}", full) if self.rng() < 0.2 else Value(full)

    def town(self, _="") -> Value:
        name = self.name("town")
        if self.rng() < 0.15:
            name = f"{self.one(('Upper', 'Port', 'Great', 'Little'))} {name}"
        return Value(name)

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
        first = self.name("town") if self.rng() < 0.6 else self.emblem()
        return Value(f"{first} {self.words('building_noun')}")

    def book(self, _="") -> Value:
        return Value(f"The {self.emblem()}")

    def ship(self, _="") -> Value:
        emblem = self.grammar.lists["emblem"][0]
        first = self.name("given") if self.rng() < 0.4 else emblem.draw(self.rng)
        return Value(self.fresh(lambda: f"{first} {self.words('ship_noun')}"))

    def prize(self, _="") -> Value:
        return Value(f"{self.emblem()} {self.words('prize_noun')}")

    def festival(self, _="") -> Value:
        return Value(f"{self.emblem()} {self.words('festival_noun')}")

    def phrase(self, name: str) -> Value:
        return Value(self.fresh(partial(self.words, name)))

    def date(self, _="") -> Value:
        year = self.fresh(lambda: str(1650 + int(self.rng() * 320)))
        return Value(f"{1 + int(self.rng() * 28)} {self.one(self.grammar.months)} {year}", year)

    def quantity(self, unit_and_top: str) -> Value:
        """Draw two leading digits at one of the decades below the top: 12, 340, 7,800, 61,000."""
        unit, top = unit_and_top.split()

        def draw() -> str:
            leading = 10 + int(self.rng() * 90)
            return f"{leading * 10 ** int(self.rng() * (len(top) - 1)):,}"

        number = self.fresh(draw)
        return Value(f"{number} {unit}", number)

    # sentences

    def state(self, relation: Relation, kind: str, subject: Value) -> tuple[str, Fact]:
        """Return a sentence that states the relation, and the fact with offsets in it."""
        answer = getattr(self, relation.make_answer)(relation.argument)
        statement, name = self.one(relation.statements), subject.text
        surname_alone = kind == "person" and self.rng() < SURNAME_ALONE
        if surname_alone:
            name = name.rsplit(" ", 1)[1]
        first, second = (name, answer.text) if statement.subject_first else (answer.text, name)
        starts = len(statement.before), len(statement.before) + len(first) + len(statement.between)
        subject_start, answer_start = starts if statement.subject_first else starts[::-1]
        sentence = f"{statement.before}{first}{statement.between}{second}{statement.after}"
        return sentence, Fact(relation, subject, answer, subject_start, answer_start, surname_alone)

    def filler(self) -> str:
        pieces = list(self.one(self.grammar.fillers))
        for i in range(1, len(pieces), 2):
            pieces[i] = self.region if pieces[i] == "region" else self.words(pieces[i])
        return "".join(pieces)

    def passage(self) -> tuple[str, list[Fact]]:
        """Return shuffled sentences as one text, and its facts with offsets in that text."""
        self.used.clear()
        kind = self.one(tuple(self.grammar.kinds))
        subject_count, relation_count = (2, 3) if self.rng() < 0.5 else (3, 2)
        relations = self.sample(self.grammar.kinds[kind], relation_count)
        subjects = [getattr(self, kind)() for _ in range(subject_count)]
        sentences: list[tuple[str, Fact | None]] = [
            self.state(relation, kind, subject) for relation in relations for subject in subjects
        ]
        missing = SHORTEST + self.rng() * (LONGEST - SHORTEST)
        missing -= sum(len(sentence) for sentence, _ in sentences)
        while sentences[-1][1] or missing > 0:  # at least one filler
            sentences.append((self.filler(), None))
            missing -= len(sentences[-1][0])
        sentences = self.sample(sentences, len(sentences))
        facts, offset = [], 0
        for sentence, fact in sentences:
            if fact:
                facts.append(fact.shifted(offset))
            offset += len(sentence) + 1
        return " ".join([sentence for sentence, _ in sentences]), facts

    def question(self, fact: Fact) -> tuple[str, dict]:
        """Return a question about the fact and its accepted answers, the full span first."""
        if fact.relation.reverse and not fact.surname_alone and self.rng() < 0.3:
            question = self.one(fact.relation.reverse).replace("{a}", fact.answer.text)
            value, start = fact.subject, fact.subject_start
        else:
            question = self.one(fact.relation.questions).replace("{s}", fact.subject.text)
            value, start = fact.answer, fact.answer_start
        texts = [value.text, value.short] if value.short else [value.text]
        starts = [start + value.text.index(text) for text in texts]
        return question, {"text": texts, "answer_start": starts}

    def questions(self, facts: list[Fact]) -> list[tuple[str, dict]]:
        return [self.question(fact) for fact in self.sample(facts, QUESTIONS_PER_PASSAGE)]

    def quote(self, context: str, fact: Fact) -> tuple[str, dict]:
        """Return a question for the fact's sentence and one or two that follow, and the answer."""
        question, _ = self.question(fact)
        count = self.one(tuple(self.grammar.quotes))
        question += f" {self.one(self.grammar.quotes[count])}"
        before = context.rfind(". ", 0, fact.subject_start)  # -1 in the first sentence
        start = end = 0 if before < 0 else before + 2
        for _ in range(count):
            end = context.index(".", end) + 1
        return question, {"text": [context[start:end]], "answer_start": [start]}

    def quotes(self, context: str, facts: list[Fact]) -> list[tuple[str, dict]]:
        """Return questions for long answers; only facts with enough sentences after them serve."""
        most = max(self.grammar.quotes) - 1
        facts = [fact for fact in facts if context.count(". ", fact.subject_start) >= most]
        return [self.quote(context, fact) for fact in self.sample(facts, QUESTIONS_PER_PASSAGE)]
