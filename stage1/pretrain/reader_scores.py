"""Score a trained reader on questions of SQuAD form, through the study's own evaluation."""

from pathlib import Path

from stage1.config import StudyConfig
from stage1.corpus.prompts import encode
from stage1.evaluation.conditions import evaluate, without_context
from stage1.fields import require
from stage1.model.loading import load
from stage1.pretrain.questions import squad_rows
from stage1.scoring.intervals import mean_interval

ANSWER_TOKENS = 24
"""Tokens of a row that are left for the answer."""


def check_development(path: str) -> None:
    require(Path(path).is_file(), "development", path, "an existing SQuAD .json file")
    squad_rows(Path(path))  # raises for a malformed file before any training


def score(folder: Path, development: str, device: str) -> list[dict]:
    """Return F1 and EM (percent, with 95 % intervals over articles) of the reader and its floor.

    The floor is the same model given the question without its context. `shortened` counts prompts
    whose context was cut to leave 24 tokens of a training row for the answer.
    """
    examples = squad_rows(Path(development))
    lm = load(StudyConfig(language_model=str(folder), device="cpu" if device == "cpu" else "auto"))
    budget = int(lm.model.config.max_position_embeddings) - ANSWER_TOKENS
    config = StudyConfig(
        max_prompt_tokens=budget, max_new_tokens=ANSWER_TOKENS, eval_batch_size=250
    )
    scores = []
    for condition in ("text", "question_only"):
        given = examples if condition == "text" else without_context(examples, condition)
        encoded = encode(given, lm.tokenizer, config)
        table = evaluate(lm, encoded, condition, None, config)
        ended = float(table["ended"].mean())
        record: dict = {"condition": condition, "questions": len(table), "ended": ended}
        record["shortened"] = encoded.shortened
        for metric in ("f1", "em"):
            values, titles = table[metric].tolist(), table["title"].tolist()
            record[metric] = mean_interval(values, titles)._asdict()
        scores.append(record)
    return scores
