"""A tiny training set, one line to train on it, and objectives that fail on purpose."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from stage1 import adapter as adapters
from stage1.baselines import Adapter
from stage1.compress import Compression, fit_pca, variance
from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded, token_counts
from stage1.loss_parts import ExampleBatch, ObjectiveContext, Term
from stage1.model.language_model import FrozenLM
from stage1.objectives import FUNCTIONS
from stage1.training import Progress, train

N = 30  # examples: at a batch size of 8 that is 4 steps an epoch, the last one of 6
BASE = StudyConfig(
    device="cpu",
    compressed_width=4,
    batch_size=8,
    epochs=2,
    learning_rate=1.0e-2,
    max_prompt_tokens=12,
    max_answer_tokens=4,
    max_new_tokens=3,
    selection_every=3,
    checkpoint_every=2,
    objective="answer_ce",
)
SEVERAL = ["as_found", "option3_teacher_forced"]
RULES = ["fixed", "equal_gradient_norms", "uncertainty"]


class Interrupted(Exception):
    """Stands for Ctrl-C or a lost machine."""


def random_examples(n: int) -> Encoded:
    rng = np.random.default_rng(0)
    firsts = 10 + rng.permutation(4_000)[:n]
    prompts = [
        [int(first), *rng.integers(3, 4_096, rng.integers(3, 12)).tolist()] for first in firsts
    ]
    answers = [[*rng.integers(3, 4_096, rng.integers(0, 4)).tolist(), 2] for _ in range(n)]
    names = [str(i) for i in range(n)]
    return Encoded(names, names, [["x"]] * n, prompts, answers, shortened=0, dropped=0)


def weights_of(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in adapter.state_dict().items()}


def same_weights(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_seconds(curve: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in curve]


def fingerprint(adapter: Adapter) -> dict[str, float]:
    """Stand in for selection scores: changes with any weight."""
    weights = torch.cat([parameter.detach().flatten() for parameter in adapter.parameters()])
    return {"sum": float(weights.double().abs().sum())}


Training = tuple[dict[str, torch.Tensor], Progress]
"""The weights and the records of a training."""


def assert_identical(one: Training, other: Training) -> None:
    """Assert the same weights and records, bit for bit."""
    (weights, progress), (expected_weights, expected) = one, other
    assert same_weights(weights, expected_weights)
    assert without_seconds(progress.curve) == without_seconds(expected.curve)
    assert (progress.step, progress.selection) == (expected.step, expected.selection)
    assert progress.gradients == expected.gradients


def assert_close(one: Training, other: Training) -> None:
    """Assert the same training but for the rounding of sums in another order.

    AdamW divides by the size of a gradient, which magnifies the rounding of tiny ones.
    """
    (weights, progress), (expected_weights, expected) = one, other
    curves = without_seconds(progress.curve), without_seconds(expected.curve)
    for row, wanted in zip(*curves, strict=True):
        # A divergence is a difference of numbers near 8.
        assert row == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=2e-6)


@dataclass
class Bench:
    """The tiny model with a small training set."""

    lm: FrozenLM
    encoded: Encoded
    counts: np.ndarray
    compression: Compression
    cache: dict[StudyConfig, Training] = field(default_factory=dict)

    def adapter(self, config: StudyConfig) -> Adapter:
        counts = torch.from_numpy(self.counts)
        return adapters.make(self.compression, self.lm.embedding_table, counts, config)

    def context(self, config: StudyConfig) -> ObjectiveContext:
        table = self.lm.embedding_table
        spread = variance(table, torch.from_numpy(self.counts))
        return ObjectiveContext(self.lm, self.compression.compress(table), config, spread)

    def train(
        self,
        config: StudyConfig,
        selection_scores: Callable[[Adapter], dict] = fingerprint,
        checkpoint: Path | None = None,
        adapter: Adapter | None = None,
    ) -> Training:
        adapter = adapter or self.adapter(config)
        given = (self.context(config), self.encoded, self.counts, selection_scores, checkpoint)
        progress = train(adapter, *given)
        return weights_of(adapter), progress

    def trained(self, config: StudyConfig) -> Training:
        """Return an uninterrupted training of the config, made once; call it before any patch."""
        if config not in self.cache:
            self.cache[config] = self.train(config)
        return self.cache[config]


def make_bench(lm: FrozenLM, encoded: Encoded, width: int) -> Bench:
    counts = token_counts(encoded.prompts, len(lm.embedding_table))
    compression = fit_pca(lm.embedding_table, torch.from_numpy(counts), width)
    return Bench(lm, encoded, counts, compression)


def watch(monkeypatch, objective: str, before: Callable[[int, ExampleBatch], object]) -> None:
    """Call `before` with the number of the call (from 0) and the batch ahead of the objective."""
    original, calls = FUNCTIONS[objective], count()

    def watched(adapter, batch, context):
        before(next(calls), batch)
        return original(adapter, batch, context)

    monkeypatch.setitem(FUNCTIONS, objective, watched)


def interrupt(monkeypatch, objective: str, at: int) -> None:
    """Let the objective raise Interrupted at its `at`-th call, counting from 0."""

    def before(call, batch):
        if call == at:
            raise Interrupted

    watch(monkeypatch, objective, before)


def run_out_of_memory(monkeypatch, objective: str, room: int, at: int = 0) -> list[ExampleBatch]:
    """Let the objective run out of memory above `room` examples, from its `at`-th call on.

    Returns a list that fills with the batches it has read.
    """
    read = []

    def before(call, batch):
        if call >= at and len(batch) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        read.append(batch)

    watch(monkeypatch, objective, before)
    return read


def replace_answer_ce(monkeypatch, loss: Callable[[Adapter], torch.Tensor]) -> None:
    """Replace `answer_ce` by one term, `pretended`, with this value."""

    def answer_ce(adapter, batch, context):
        return {"pretended": Term(loss(adapter), 1)}

    monkeypatch.setitem(FUNCTIONS, "answer_ce", answer_ce)
