"""Evaluation of many adapters in shared passes of the language model."""

from collections.abc import Sequence
from functools import partial

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding

from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded
from stage1.evaluation.conditions import evaluate, score_answers, teacher_forced
from stage1.machine.room import Room
from stage1.model.generation import Answer, generate
from stage1.model.language_model import FrozenLM

BATCH_VALUES, LARGEST_BATCH = 3_000_000, 2_048
"""Prompts times layers times width that a GPU generates for at a time, and prompts at most."""


def evaluate_together(
    lm: FrozenLM,
    encoded: Encoded,
    conditions: Sequence[str],
    tables: Float[Tensor, "S V D"],
    config: StudyConfig,
) -> list[pd.DataFrame]:
    """Return what `evaluate` returns for every condition and its table.

    Conditions share batches on a GPU alone: on a CPU larger batches gain nothing.
    """
    if lm.device.type == "cuda":
        return evaluate_in_shared_batches(lm, encoded, conditions, tables, config)
    pairs = zip(conditions, tables, strict=True)
    return [evaluate(lm, encoded, name, table, config, "") for name, table in pairs]


def evaluate_in_shared_batches(
    lm: FrozenLM,
    encoded: Encoded,
    conditions: Sequence[str],
    tables: Float[Tensor, "S V D"],
    config: StudyConfig,
) -> list[pd.DataFrame]:
    """Return the same from batches that hold prompts of all conditions.

    A prompt's token ids are offset by its condition's place in the stack of tables. Batches halve
    where memory runs out; raises RuntimeError where a single prompt does not fit.
    """
    V, flat = tables.shape[1], tables.flatten(0, 1)
    batch = max(config.eval_batch_size, min(LARGEST_BATCH, BATCH_VALUES // lm.values_per_token))
    prompts = []
    for row in range(len(tables)):
        prompts += [[token + row * V for token in prompt] for prompt in encoded.prompts]

    def answered(size: int) -> list[Answer]:
        return generate(lm, prompts, lambda ids: embedding(ids, flat), config.max_new_tokens, size)

    room, where = Room("prompt", batch), "shared evaluation"
    answers = room.fit(answered, len(prompts), where)
    frames, count = [], len(encoded)
    for row, name in enumerate(conditions):
        scored = score_answers(encoded, answers[row * count : (row + 1) * count], name)
        forced = room.fit(partial(teacher_forced, lm, encoded, tables[row]), count, where)
        frames.append(scored.assign(**forced))
    return frames
