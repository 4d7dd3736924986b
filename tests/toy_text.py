"""Tiny text, questions and a development set, for tests of real-text training."""

import json
import random
from pathlib import Path

NAMES = ["Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry"]
CITIES = ["Athens", "Bergen", "Cairo", "Dublin", "Essen", "Florence", "Geneva", "Hanoi"]
TRADES = ["baker", "carpenter", "doctor", "engineer", "farmer", "gardener", "painter", "sailor"]


def passage(rng: random.Random) -> tuple[str, str, str]:
    """Return a passage of a few sentences, a question and its answer."""
    name, city, other = rng.choice(NAMES), *rng.sample(CITIES, 2)
    year, trade = rng.randrange(1800, 2000), rng.choice(TRADES)
    text = (
        f"The {trade} named {name} was born in {city} in {year} and went to school there for "
        f"{rng.randrange(3, 12)} years. After the war {name} moved to {other} and opened a shop "
        f"near the river. People from {city} and from {other} came to see the work of {name}, "
        f"and {rng.randrange(20, 900)} of them wrote about it."
    )
    return text, f"In which year was the {trade} {name} born?", str(year)


def squad(path: Path, seed: str, articles: int = 3, passages: int = 4) -> Path:
    """Write questions in SQuAD's nested form."""
    rng = random.Random(seed)
    data = []
    for a in range(articles):
        paragraphs = []
        for p in range(passages):
            context, question, answer = passage(rng)
            answers = [{"text": answer, "answer_start": context.index(answer)}]
            qas = [{"id": f"{a}-{p}", "question": question, "answers": answers}]
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": f"article {a}", "paragraphs": paragraphs})
    path.write_text(json.dumps({"data": data}), "utf-8")
    return path


def write_sources(folder: Path, planted: str = "") -> dict[str, str]:
    """Write text, questions and a development set; return their paths.

    `planted` is a paragraph that one of the 120 documents holds.
    """
    rng = random.Random("toy")
    documents = ["\n".join(passage(rng)[0] for _ in range(2)) for _ in range(120)]
    documents[7] += f"\n{planted}"
    text = folder / "text.jsonl"
    text.write_text("\n".join(map(json.dumps, documents)), "utf-8")
    questions = squad(folder / "questions.json", "train", articles=6, passages=6)
    development = squad(folder / "development.json", "development")
    return {"text": str(text), "questions": str(questions), "development": str(development)}
