"""Every fault is caught: a check that a sound package passes, and that fails with the fault."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from stage1 import adapter as adapters
from stage1 import compress, gallery, loss_parts, objectives, study
from stage1.adapter import Adapter
from stage1.config import StudyConfig
from stage1.corpus import data, prompts
from stage1.corpus.prompts import token_counts
from stage1.evaluation import conditions
from stage1.faults import current, switched_on
from stage1.loss_parts import ExampleBatch
from stage1.model import generation
from stage1.model.language_model import FrozenLM
from stage1.scoring import squad, tables
from stage1.study import Study
from stage1.training import loop

CHECKS = {}
"""For every fault, a check of what it breaks."""


@dataclass
class World:
    """A tiny study, and a language model whose predictions depend on all that it reads."""

    base: StudyConfig
    sharp: FrozenLM

    @property
    def config(self) -> StudyConfig:
        return self.base.replace(faults=current())

    def study(self) -> Study:
        return study.prepare(self.config)

    def sharp_context(self) -> loss_parts.ObjectiveContext:
        table = self.sharp.embedding_table
        fitted = compress.fit_pca(table, torch.ones(len(table), dtype=torch.int64), 4)
        return loss_parts.ObjectiveContext(self.sharp, fitted.compress(table), self.config, 1.0)

    def rows(self, split: str = "train") -> list[dict]:
        return data.rows(self.config, split)


@pytest.fixture(scope="module")
def world(tiny_config, sharp_lm) -> World:
    sizes = {"train_examples": 24, "selection_examples": 6, "epochs": 1, "max_new_tokens": 3}
    return World(tiny_config.replace(test_examples=24, **sizes), sharp_lm)


def check(function):
    CHECKS[function.__name__] = function
    return function


@pytest.mark.parametrize("name", gallery.FAULTS)
def test_a_check_passes_without_the_fault_and_fails_with_it(world, name):
    CHECKS[name](world)
    with switched_on(name), pytest.raises(AssertionError):
        CHECKS[name](world)
    CHECKS[name](world)  # and it is off again


# ---------------------------------------------------------------- data


@check
def no_end_token(world):
    tokenizer = world.sharp.tokenizer
    texts = [f" Anna{tokenizer.eos_token}"]
    (answer,) = prompts.tokenize_answers(tokenizer, texts, tokenizer.eos_token_id)
    assert answer[-1] == tokenizer.eos_token_id


@check
def begin_token_in_answer(world):
    tokenizer = world.sharp.tokenizer
    texts = [f" Anna{tokenizer.eos_token}"]
    (answer,) = prompts.tokenize_answers(tokenizer, texts, tokenizer.eos_token_id)
    assert tokenizer.bos_token_id not in answer


@check
def space_before_answer(world):
    prompt, answer = prompts.render(world.sharp.tokenizer, "plain", "Anna slept.", "Who?", "Anna")
    assert prompt.endswith("Answer:") and answer.startswith(" Anna")


@check
def right_truncation(world):
    tokenizer = world.sharp.tokenizer
    (row, *_) = world.rows()
    encoded = prompts.encode([row | {"context": 2 * row["context"]}], tokenizer, world.config)
    assert all(tokenizer.decode(prompt).endswith("Answer:") for prompt in encoded.prompts)


@check
def duplicate_articles(world):
    titles = {split: {row["title"] for row in world.rows(split)} for split in ("train", "test")}
    assert titles["train"].isdisjoint(titles["test"])


@check
def selection_is_test(world):
    titles = {s: {row["title"] for row in world.rows(s)} for s in ("selection", "test")}
    assert titles["selection"].isdisjoint(titles["test"])


@check
def pad_is_end(world):
    assert world.sharp.pad_token == world.sharp.tokenizer.pad_token_id


# ---------------------------------------------------------------- compression


def mean_of(table: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(counts / counts.sum()).float() @ table.float()


def fitted(world: World) -> tuple[compress.Compression, torch.Tensor, np.ndarray]:
    table = world.sharp.embedding_table
    counts = np.random.default_rng(0).integers(0, 50, len(table))
    return compress.fit_pca(table, torch.from_numpy(counts), 4), table, counts


@check
def pca_on_few_tokens(world):
    compression, table, counts = fitted(world)
    torch.testing.assert_close(compression.mean, mean_of(table, counts), rtol=1e-4, atol=1e-6)


@check
def no_mean_subtracted(world):
    compression, table, counts = fitted(world)
    mean = mean_of(compression.compress(table), counts)
    assert mean.abs().max() < 1e-4


@check
def pca_on_test(world):
    prepared = world.study()
    table = prepared.lm.embedding_table
    train = token_counts(prepared.encoded["train"].prompts, len(table))
    expected = mean_of(table, train)
    torch.testing.assert_close(prepared.compression.mean, expected, rtol=1e-4, atol=1e-6)


@check
def explained_over_kept(world):
    compression, table, counts = fitted(world)
    spread = compress.variance(table, torch.from_numpy(counts)) * table.shape[1]
    total = spread * counts.sum() / (counts.sum() - 1)
    assert compression.kept == pytest.approx(float(compression.variances[:4].sum()) / total)


# ---------------------------------------------------------------- adapter


@check
def unit_rms_output(world):
    made = study.new_adapter(world.study())
    residual = made.output_norm.weight
    assert residual.square().mean().sqrt() < 0.5  # the tiny model's embeddings have RMS 0.02


@check
def xavier_start(world):
    config = world.config.replace(initialisation="random", output_scaling="unit_rms")
    prepared = world.study()
    table, counts = prepared.lm.embedding_table, torch.from_numpy(prepared.counts)
    made = adapters.make(prepared.compression, table, counts, config)
    torch.manual_seed(config.seed)
    expected = adapters.Film(*prepared.compression.components.shape, "random")
    for own, other in zip(made.parameters(), expected.parameters(), strict=True):
        assert torch.equal(own, other)


def random_start(world: World) -> tuple[Adapter, torch.Tensor]:
    """Return an adapter whose MLP matters from the start, and compressed vectors."""
    prepared = study.prepare(world.config.replace(initialisation="random"))
    return study.new_adapter(prepared), prepared.codebook[:50]


@check
def dropout_in_training(world):
    made, z = random_start(world)
    assert torch.equal(made(z), made(z))


@check
def dropout_at_evaluation(world):
    made, z = random_start(world)
    assert torch.equal(adapters.decode(made, z), adapters.decode(made, z))


# ---------------------------------------------------------------- training


def trained(world: World, rate: float) -> dict[str, torch.Tensor]:
    """Return the weights after three steps at this rate."""
    prepared = study.prepare(world.config.replace(learning_rate=rate, warmup=0.0))
    made, context = study.new_adapter(prepared), study.objective_context(prepared)
    steps = loop.set_up(made, context, 3, None)
    batch = ExampleBatch(prepared.encoded["train"].prompts, prepared.encoded["train"].answers)
    for _ in range(3):
        loop.take_step(steps, batch)
    return dict(made.named_parameters())


@check
def bfloat16_weights(world):
    weights = trained(world, 1e-3)
    assert not all(torch.equal(w, w.bfloat16().float()) for w in weights.values())


@check
def frozen_gains(world):
    weights = trained(world, 5e-4)
    assert not (weights["compressed_norm.weight"] == 1).all()


def batch_of(lengths: list[int]) -> ExampleBatch:
    rng = np.random.default_rng(1)
    own = [rng.integers(10, 4_000, length).tolist() for length in lengths]
    return ExampleBatch(own, [[*rng.integers(10, 4_000, 3).tolist(), 2] for _ in own])


def cross_entropy(world: World, batch: ExampleBatch) -> loss_parts.Term:
    context = world.sharp_context()
    lookup = torch.nn.Linear(4, world.sharp.embedding_table.shape[1])
    torch.nn.init.constant_(lookup.weight, 0.1)
    torch.nn.init.zeros_(lookup.bias)
    return objectives.FUNCTIONS["answer_ce"](lookup, batch, context)["cross_entropy"]


@check
def labels_on_prompt(world):
    batch = batch_of([5, 5])
    assert cross_entropy(world, batch).tokens == sum(map(len, batch.answers))


@check
def labels_on_padding(world):
    batch = batch_of([3, 9])
    assert cross_entropy(world, batch).tokens == sum(map(len, batch.answers))


@check
def gap_before_answer(world):
    batch = batch_of([3, 9])
    alone = [float(cross_entropy(world, batch.select([i])).value.detach()) for i in (0, 1)]
    together = float(cross_entropy(world, batch).value.detach())
    assert together == pytest.approx(sum(alone) / 2, rel=1e-5)


# ---------------------------------------------------------------- generation


def answers_in_batch_and_alone(world: World) -> tuple[list, list]:
    own, table = batch_of([3, 9]).prompts, world.sharp.embedding_table

    def embed(ids):
        return table[ids]

    together = generation.generate(world.sharp, own, embed, 4, 2)
    return together, [generation.generate(world.sharp, [p], embed, 4, 1)[0] for p in own]


@check
def mask_of_ones(world):
    together, alone = answers_in_batch_and_alone(world)
    assert together == alone


@check
def right_padded_generation(world):
    together, alone = answers_in_batch_and_alone(world)
    assert together == alone


@check
def slice_of_generated_ids(world):
    own, table = batch_of([5, 5]).prompts, world.sharp.embedding_table
    by_embedding = generation.generate(world.sharp, own, lambda ids: table[ids], 4)
    assert by_embedding == generation.generate(world.sharp, own, None, 4)


@check
def oracle_norm(world):
    """The norm of the output matters: embeddings of twice their norm are read as such."""
    encoded, table = world.study().encoded["selection"], world.sharp.embedding_table
    given = (world.config, "")
    once = conditions.evaluate(world.sharp, encoded, "distill", table, *given)
    twice = conditions.evaluate(world.sharp, encoded, "distill", 2 * table, *given)
    assert once["ce_first"].tolist() != pytest.approx(twice["ce_first"].tolist(), rel=1e-4)


# ---------------------------------------------------------------- scoring


@check
def f1_on_sets(world):
    assert squad.f1("red red red", ["red"]) == 50.0


@check
def first_gold_only(world):
    assert squad.f1("Anna", ["Anna Bell", "Anna"]) == 100.0


@check
def no_normalisation(world):
    assert squad.exact_match("The red house.", ["red house"]) == 100.0


@check
def other_baseline(world):
    assert tables.retention(45.0, ceiling=90.0, floor=0.0) == pytest.approx(50.0)
    assert math.isnan(tables.retention(1.0, ceiling=5.0, floor=5.0))
