"""What the frozen model answers under each condition, through one code path.

A condition is a table with one input embedding per vocabulary entry. Compression and adapters work token by token, so
the table `decode(compress(vocabulary))` holds every embedding that a prompt can be rebuilt from; the prompt's own
embeddings are read under `embeddings` alone.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding

from stage1.compress import Compression, nearest_codebook
from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded, encode
from stage1.machine import processes
from stage1.model import engine
from stage1.model.generation import Answer, by_length, generate
from stage1.model.language_model import FrozenLM
from stage1.model.token_batch import padded_batch
from stage1.names import FLOORS
from stage1.scoring.squad import exact_match, f1


def untrained_conditions(
    lm: FrozenLM, compression: Compression, control: Compression
) -> dict[str, Tensor | None]:
    """Tables [V, D] of the conditions that need no training; None stands for the token ids themselves.

    `control` is a random projection to the same width.
    """
    table = lm.embedding_table
    codebook = compression.compress(table)
    return {
        "text": None,
        "embeddings": table,
        "pca_inverse": compression.expand(codebook),
        "codebook": table[nearest_codebook(codebook, codebook)],
        "random_projection": control.expand(control.compress(table)),
    }


def without_context(examples: Sequence[Mapping], floor: str) -> list[dict]:
    """The examples as a floor sees them: with no context, or with that of another article.

    Raises ValueError where `shuffled_context` has a single article to choose from.
    """
    if floor == "question_only":
        return [example | {"context": ""} for example in examples]
    if len({example["title"] for example in examples}) < 2:
        raise ValueError("shuffled_context: expected test questions on at least two articles")
    # Sorted by article, half the examples further on is another article's, unless one article has more than half.
    order = sorted(range(len(examples)), key=lambda i: examples[i]["title"])
    changed: list[dict] = [{}] * len(examples)
    for place, i in enumerate(order):
        there = (
            examples[order[(place + shift) % len(order)]]
            for shift in range(len(order) // 2, 2 * len(order))
        )
        other = next(example for example in there if example["title"] != examples[i]["title"])
        changed[i] = examples[i] | {"context": other["context"]}
    return changed


def score_answers(encoded: Encoded, answers: Sequence[Answer], condition: str) -> pd.DataFrame:
    """One row per example: id, title, condition, prediction, golds, f1 and em in percent, ended, empty, tokens."""
    return pd.DataFrame(
        {
            "id": encoded.ids,
            "title": encoded.titles,
            "condition": condition,
            "prediction": [answer.text for answer in answers],
            "golds": encoded.golds,
            "f1": [
                f1(answer.text, golds) for answer, golds in zip(answers, encoded.golds, strict=True)
            ],
            "em": [
                exact_match(answer.text, golds)
                for answer, golds in zip(answers, encoded.golds, strict=True)
            ],
            "ended": [answer.ended for answer in answers],
            "empty": [not answer.text for answer in answers],
            "tokens": [len(answer.ids) for answer in answers],
        }
    )


@engine.uncompiled
@torch.inference_mode()
def teacher_forced(
    lm: FrozenLM, encoded: Encoded, table: Float[Tensor, "V D"], batch_size: int = 64
) -> dict[str, list[float]]:
    """Per example, on its gold answer: cross-entropy (nats) and accuracy (0 to 1) of the first token, `ce_first` and
    `right_first`, and means over the later ones with the end token, `ce_later` and `right_later` (nan without any)."""
    measures = {
        name: [math.nan] * len(encoded)
        for name in ("ce_first", "right_first", "ce_later", "right_later")
    }
    for batch in by_length(encoded.prompts, batch_size):
        rows = padded_batch(
            [encoded.prompts[i] for i in batch],
            [encoded.answers[i] for i in batch],
            lm.pad_token,
            lm.device,
        )
        inputs = torch.where(
            rows.is_prompt[..., None],
            embedding(rows.ids, table),
            lm.embed(rows.ids).to(table.dtype),
        )
        logits = lm.logits(inputs, rows.predictors(rows.is_answer, "teacher_forced"))
        targets = rows.ids[rows.is_answer]
        ce = cross_entropy(logits, targets, reduction="none").tolist()
        right = (logits.argmax(-1) == targets).tolist()
        at = 0
        for i in batch:
            end = at + len(encoded.answers[i])
            measures["ce_first"][i], measures["right_first"][i] = ce[at], float(right[at])
            if end > at + 1:
                measures["ce_later"][i], measures["right_later"][i] = (
                    np.mean(ce[at + 1 : end]),
                    np.mean(right[at + 1 : end]),
                )
            at = end
    return measures


def evaluate(
    lm: FrozenLM,
    encoded: Encoded,
    condition: str,
    table: Float[Tensor, "V D"] | None,
    config: StudyConfig,
    description: str | None = None,
) -> pd.DataFrame:
    """Generate and score under one condition, with the gold answer's teacher-forced measures beside; one row per
    example, each process answering its share. A table of None passes the token ids themselves. An empty description
    hides the progress."""
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded.prompts[i]))
    mine = sorted(processes.shard(order))  # of similar lengths in every process
    part = encoded.chosen(mine)
    embed = None if table is None else lambda ids: embedding(ids, table)
    shown = (condition if description is None else description) if processes.rank() == 0 else ""
    answers = generate(
        lm, part.prompts, embed, config.max_new_tokens, config.eval_batch_size, shown
    )
    forced = teacher_forced(
        lm, part, lm.embedding_table if table is None else table, config.eval_batch_size
    )
    scored = score_answers(part, answers, condition).assign(**forced).set_axis(mine)
    return processes.gather_rows(scored)


def evaluate_floors(lm: FrozenLM, examples: Sequence[Mapping], config: StudyConfig) -> pd.DataFrame:
    """What the model scores on the same questions without their context, read as text."""
    encoded = {
        floor: encode(without_context(examples, floor), lm.tokenizer, config) for floor in FLOORS
    }
    return pd.concat([evaluate(lm, encoded[floor], floor, None, config) for floor in FLOORS])
