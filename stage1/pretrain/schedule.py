"""Which rows a step reads and how fast it learns: everything that depends on the step alone."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from stage1.pretrain.recipe import ReaderConfig


def rate_share(config: ReaderConfig, step: int) -> float:
    """Return the share of the peak learning rate: linear warm-up, plateau, linear decay to zero.

    The last step, too, has a rate above zero.
    """
    warmup, decay = config.warmup * config.steps, config.decay * config.steps
    rising = (step + 1) / warmup if warmup else 1.0
    falling = (config.steps - step) / decay if decay else 1.0
    return min(1.0, rising, falling)


def question_progress(config: ReaderConfig, step: int) -> float:
    """Return where a step lies between the first question (0) and the end (1); below 0 before."""
    progress = (step + 0.5) / config.steps
    return (progress - config.questions_from) / (1 - config.questions_from)


def shares(config: ReaderConfig, step: int, rows: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each kind of row in a step; kinds without rows leave theirs to others.

    Questions grow linearly from none to `questions_share`. Among them, cloze questions change
    linearly from `cloze_from` to `cloze_to`.
    """
    grown = max(0.0, question_progress(config, step))
    questions = config.questions_share * grown if rows["cloze"] + rows["questions"] else 0.0
    cloze = config.cloze_from + (config.cloze_to - config.cloze_from) * grown
    cloze = cloze if rows["questions"] else 1.0
    cloze = cloze if rows["cloze"] else 0.0
    return {
        "text": 1 - questions,
        "cloze": questions * cloze,
        "questions": questions * (1 - cloze),
    }


def counts(config: ReaderConfig, rows: Mapping[str, int]) -> Int[np.ndarray, "S 3"]:
    """Return how many rows of each kind every step has; rounding errors even out over steps."""
    ideal = np.array([[*shares(config, step, rows).values()] for step in range(config.steps)])
    wanted = np.cumsum(ideal[:, 1:] * config.batch, axis=0).round().astype(int)
    other = np.diff(wanted, axis=0, prepend=0)
    return np.column_stack([config.batch - other.sum(axis=1), other])


def plan(config: ReaderConfig, rows: Mapping[str, int]) -> Int[np.ndarray, "S B"]:
    """Return the rows that every step reads, as indices into all kinds' rows in a line.

    A kind's rows come in random order, each once before any comes again. Equal configs have equal
    plans, so a resumed training reads what it would have read.
    """
    per_step = counts(config, rows)
    offsets = np.cumsum([0, *rows.values()])
    streams = []
    for kind, (size, total) in enumerate(zip(rows.values(), per_step.sum(axis=0), strict=True)):
        rng = np.random.default_rng([config.seed, kind])
        rounds = [rng.permutation(size) for _ in range(-(-total // max(1, size)))]
        order = np.concatenate([*rounds, np.zeros(0, dtype=int)])[:total]
        streams.append(np.split(order + offsets[kind], np.cumsum(per_step[:, kind])[:-1]))
    steps = [np.concatenate(parts) for parts in zip(*streams, strict=True)]
    return np.stack(steps).astype(np.int32)
