"""Answers of the frozen model under each condition, all through one code path.

A condition is a table with one input embedding per vocabulary entry. Compression and adapters work
token by token, so the table `decode(compress(vocabulary))` holds every embedding that a prompt can
be rebuilt from. Only the condition `embeddings` reads the prompt's original embeddings.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding

from stage1.compress import Compression, nearest_codebook
from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded, encode
from stage1.machine import processes
from stage1.model import engine
from stage1.model.generation import Answer, by_length, generate
from stage1.model.greedy import Embed
from stage1.model.language_model import FrozenLM
from stage1.model.token_batch import padded_batch
from stage1.names import FLOORS
from stage1.scoring.squad import exact_match, f1


def untrained_conditions(
    lm: FrozenLM,
    compression: Compression,
    control: Compression | None = None,
    ids: Int64[Tensor, " N"] | None = None,
) -> dict[str, Tensor | None]:
    """Return the tables [V, D] of the conditions that need no training; None means token ids.

    `control` is a random projection to the same width; without one its condition is left out.
    With `ids`, tables have the rows of these vocabulary entries alone, [N, D].
    """
    table = lm.embedding_table
    codebook = compression.compress(table)
    rows, compressed = (table, codebook) if ids is None else (table[ids], codebook[ids])
    tables = {
        "text": None,
        "embeddings": rows,
        "pca_inverse": compression.expand(compressed),
        "codebook": table[nearest_codebook(compressed, codebook)],
    }
    if control is not None:
        tables["random_projection"] = control.expand(control.compress(rows))
    return tables


def without_context(examples: Sequence[Mapping], floor: str) -> list[dict]:
    """Return the examples with an empty context (`question_only`) or that of another article.

    Raises ValueError if `shuffled_context` has only one article to choose from.
    """
    if floor == "question_only":
        return [{**example, "context": ""} for example in examples]
    if len({example["title"] for example in examples}) < 2:
        raise ValueError("shuffled_context: expected test questions on at least two articles")
    # Sorted by article, the example half the list further on is of another article, unless one
    # article has more than half of the examples; then the search goes on from there.
    order = sorted(range(len(examples)), key=lambda i: examples[i]["title"])
    changed: list[dict] = [{}] * len(examples)
    for position, i in enumerate(order):
        shift = len(order) // 2
        other = examples[order[(position + shift) % len(order)]]
        while other["title"] == examples[i]["title"]:
            shift += 1
            other = examples[order[(position + shift) % len(order)]]
        changed[i] = {**examples[i], "context": other["context"]}
    return changed


def score_answers(encoded: Encoded, answers: Sequence[Answer], condition: str) -> pd.DataFrame:
    """Return one row per example, with f1 and em in percent and the answer's length in tokens."""
    pairs = [(answer.text, golds) for answer, golds in zip(answers, encoded.golds, strict=True)]
    return pd.DataFrame(
        {
            "id": encoded.ids,
            "title": encoded.titles,
            "condition": condition,
            "prediction": [answer.text for answer in answers],
            "golds": encoded.golds,
            "f1": [f1(*pair) for pair in pairs],
            "em": [exact_match(*pair) for pair in pairs],
            "ended": [answer.ended for answer in answers],
            "empty": [not answer.text for answer in answers],
            "tokens": [len(answer.ids) for answer in answers],
        }
    )


@engine.uncompiled
@torch.inference_mode()
def forced_tokens(
    lm: FrozenLM, prompts: Sequence[list[int]], answers: Sequence[list[int]], embed: Embed
) -> tuple[list[list[float]], list[list[bool]]]:
    """Return cross-entropy (nats) and correctness of every answer token under teacher forcing.

    `embed` maps the prompts' token ids to embeddings; answers have their original ones.
    """
    tokens = padded_batch(prompts, answers, lm.pad_token, lm.device)
    rebuilt = embed(tokens.ids)
    original = lm.embed(tokens.ids).to(rebuilt.dtype)
    inputs = torch.where(tokens.is_prompt[..., None], rebuilt, original)
    logits = lm.logits(inputs, tokens.predictors(tokens.is_answer, "teacher_forced"))
    targets = tokens.ids[tokens.is_answer]
    lengths = [len(answer) for answer in answers]
    ce = cross_entropy(logits, targets, reduction="none").cpu().split(lengths)
    right = (logits.argmax(-1) == targets).cpu().split(lengths)
    return [row.tolist() for row in ce], [row.tolist() for row in right]


def teacher_forced(
    lm: FrozenLM, encoded: Encoded, table: Float[Tensor, "V D"], batch_size: int = 64
) -> dict[str, list[float]]:
    """Return measures of each example's gold answer under teacher forcing.

    Cross-entropy (nats) and accuracy (0 to 1) of the first token, `ce_first` and `right_first`, and
    means over the later ones with the end token, `ce_later` and `right_later` (nan without any).
    """
    names = ("ce_first", "right_first", "ce_later", "right_later")
    measures = {name: [math.nan] * len(encoded) for name in names}
    for batch in by_length(encoded.prompts, batch_size):
        prompts = [encoded.prompts[i] for i in batch]
        answers = [encoded.answers[i] for i in batch]
        ce, right = forced_tokens(lm, prompts, answers, lambda ids: embedding(ids, table))
        for i, (first, *later), (first_hit, *later_hits) in zip(batch, ce, right, strict=True):
            measures["ce_first"][i], measures["right_first"][i] = first, float(first_hit)
            if later:
                measures["ce_later"][i] = float(np.mean(later))
                measures["right_later"][i] = float(np.mean(later_hits))
    return measures


def evaluate(
    lm: FrozenLM,
    encoded: Encoded,
    condition: str,
    table: Float[Tensor, "V D"] | None,
    config: StudyConfig,
    description: str | None = None,
) -> pd.DataFrame:
    """Generate and score answers under one condition, one row per example.

    Adds the teacher-forced measures of the gold answers. A table of None passes the token ids
    themselves. Processes share the examples and return all rows. Progress is shown under the
    description (by default the condition); an empty one hides it.
    """
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded.prompts[i]))
    mine = sorted(processes.shard(order))  # similar prompt lengths in every process
    part = encoded.chosen(mine)
    embed = None if table is None else lambda ids: embedding(ids, table)
    shown = (condition if description is None else description) if processes.rank() == 0 else ""
    size = config.eval_batch_size
    answers = generate(lm, part.prompts, embed, config.max_new_tokens, size, shown)
    forced = teacher_forced(lm, part, lm.embedding_table if table is None else table, size)
    scored = score_answers(part, answers, condition).assign(**forced).set_axis(mine)
    return processes.gather_rows(scored)


def evaluate_floors(lm: FrozenLM, examples: Sequence[Mapping], config: StudyConfig) -> pd.DataFrame:
    """Score the model on the same questions without their context, read as text."""
    encoded = {
        floor: encode(without_context(examples, floor), lm.tokenizer, config) for floor in FLOORS
    }
    return pd.concat([evaluate(lm, encoded[floor], floor, None, config) for floor in FLOORS])
