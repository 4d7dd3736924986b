"""Extractive questions made from plain paragraphs: a sentence with one of its phrases asked for.

A phrase is a number, a date, a quotation or a name; a wh-word that fits its kind takes its place,
some words of the sentence are dropped (cloze questions with noise; Lewis et al., 2019, section 2),
and long sentences are cut around it. Where the phrase also stands elsewhere in the paragraph, the
sentence itself is taken out of the context in half of the cases, so that the answer cannot be
copied by matching words alone (Dhingra et al., 2018).
"""

import random
import re
from collections.abc import Iterator

from stage1.pretrain.questions import Question

SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z\"(])")
MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
LINKS = "(?:than|that|which|with|from|when|where|while|have|been|also|were)"
NEXT = "(?:of|in|for|and|by|was|is|were|are)"
CAPITALISED = r"[A-Z][\w'-]+"
PHRASES = [
    ("when", re.compile(rf"\b(?:\d{{1,2}} {MONTH} \d{{4}}|{MONTH} \d{{1,2}}, \d{{4}})\b")),
    ("when", re.compile(rf"\b(?:{MONTH} \d{{4}}|{MONTH} \d{{1,2}}|\d{{1,2}} {MONTH})\b")),
    ("when", re.compile(r"\b(?:1\d|20)\d\d\b")),
    ("how many", re.compile(r"\b\d[\d,.]*\d\b(?! ?%)|\b\d+\b(?! ?%)")),
    ("what", re.compile(r'(?<=")[^"]{3,60}(?=")')),
    ("what", re.compile(rf"(?<=\w )(?:{CAPITALISED}(?: of(?: the)?)? ){{0,4}}{CAPITALISED}")),
    ("what", re.compile(rf"(?<=\bthe )[a-z]+ (?!{LINKS}\b)[a-z]{{4,}}(?= {NEXT}\b)")),
    ("what", re.compile(r"(?:(?<=\ba )|(?<=\ban ))[a-z-]+(?= (?:of|in|for|that)\b)")),
]
"""The wh-word and the pattern of each kind of phrase; a kind is drawn first, then the phrase."""
PERSON_VERBS = re.compile(r"^ (?:wrote|said|won|played|served|directed|argued|married|became)\b")
FUNCTION_WORDS = set("the this that these those there a an in on at it its he she they".split())  # noqa: SIM905
DROPPED = 0.1
"""Share of a question's words that are dropped."""
MOST_WORDS = 18
"""Words of the sentence that a question keeps, around the phrase."""
CONTEXT_WORDS = (40, 260)
PER_PARAGRAPH = 4


def candidates(sentence: str) -> list[tuple[str, int, int]]:
    """Return the phrases of the sentence that can be asked for: wh-word, start and end."""
    found: list[tuple[str, int, int]] = []
    for word, pattern in PHRASES:
        for match in pattern.finditer(sentence):
            a, b = match.span()
            # A year within a date, say, has been found already.
            new = not any(a < end and start < b for _, start, end in found)
            if new and match[0].lower() not in FUNCTION_WORDS:
                found.append((word, a, b))
    return found


def shortened(before: list[str], after: list[str]) -> tuple[list[str], list[str]]:
    """Return the words next to the phrase, at most `MOST_WORDS` in all."""
    left = min(len(before), max(MOST_WORDS // 2, MOST_WORDS - len(after)))
    return before[len(before) - left :], after[: MOST_WORDS - left]


def question_text(sentence: str, phrase: tuple[str, int, int], rng: random.Random) -> str:
    """Return the sentence as a question for the phrase, with words dropped at random."""
    word, start, end = phrase
    if word == "what" and PERSON_VERBS.match(sentence[end:]):
        word = "who"
    before, after = sentence[:start].split(), sentence[end:].rstrip(".!? ").split()
    before, after = shortened(before, after)
    kept = [[w for w in part if rng.random() >= DROPPED] for part in (before, after)]
    # Asked first in half of the cases, as most questions of people are.
    order = [word, *kept[1], *kept[0]] if rng.random() < 0.5 else [*kept[0], word, *kept[1]]
    text = " ".join(order)
    return text[:1].upper() + text[1:] + "?"


def cloze(sentences: list[str], index: int, rng: random.Random) -> Question | None:
    """Return a question for a phrase of the sentence at `index`, or None if it has none."""
    sentence = sentences[index]
    found = candidates(sentence)
    if not found:
        return None
    kind = rng.choice(sorted({word for word, _, _ in found}))
    phrase = rng.choice([candidate for candidate in found if candidate[0] == kind])
    answer = sentence[phrase[1] : phrase[2]].strip()
    rest = " ".join(sentences[:index] + sentences[index + 1 :])
    recurs = re.search(rf"\b{re.escape(answer)}\b", rest)
    context = rest if recurs and rng.random() < 0.5 else " ".join(sentences)
    return Question(context, question_text(sentence, phrase, rng), answer)


def cloze_questions(paragraph: str, rng: random.Random) -> Iterator[list[Question]]:
    """Yield up to four questions on a paragraph, those that share a context in one list.

    Paragraphs of one sentence, or outside 40 to 260 words, have none.
    """
    sentences = SENTENCE.split(paragraph)
    if len(sentences) < 2 or not within(paragraph):
        return
    chosen = rng.sample(range(len(sentences)), min(PER_PARAGRAPH, len(sentences)))
    made = [question for i in chosen if (question := cloze(sentences, i, rng))]
    groups: dict[str, list[Question]] = {}
    for question in made:
        groups.setdefault(question.context, []).append(question)
    yield from groups.values()


def within(paragraph: str) -> bool:
    least, most = CONTEXT_WORDS
    return least <= paragraph.count(" ") + 1 <= most
