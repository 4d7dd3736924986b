"""What does the recipe cost at the shape of Llama-3.1-8B, stage by stage, from start to record?

    python benchmarks/recipe_at_shape.py                                # a minute on a GPU
    python benchmarks/recipe_at_shape.py --preset my.yaml --out /tmp/r.csv    # any other shape

Random weights from a config.json, and a vocabulary table with a real spectrum (`vocabulary.py`).
Prompts have 100 to 256 random tokens, answers 2 to 8. The stages are those of the study's own code:
load, PCA, answers without training, warm-up, option 3, answers of the adapter, record.

One row per stage: `seconds` for `count` units, and `first_seconds` before it, which larger counts
do not repeat: a first step that compiles. The model never ends an answer: all have 20 tokens, more
than real ones. `docs/llama.md` scales the rows to the preset's own counts.
"""

import dataclasses
import os
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import common
import numpy as np
import pandas as pd
import torch
from torch import nn
from vocabulary import random_prompts, random_table

from stage1 import adapter as adapters
from stage1 import study
from stage1.baselines import Adapter
from stage1.compress import fit_pca, nearest_codebook
from stage1.config import StudyConfig, load_preset
from stage1.corpus.prompts import Encoded, token_counts
from stage1.evaluation import evaluate
from stage1.model import loading
from stage1.model.language_model import FrozenLM
from stage1.scoring.tables import markdown_table
from stage1.study import Study
from stage1.study.preparation import objective_context
from stage1.training.loop import Progress, train
from stage1.training.warmup import warm_up

COMPILED = 3  # steps of a training, of which the first ones compile


@dataclass(frozen=True)
class RandomLM(FrozenLM):
    """A frozen model whose prompts use the whole table, whatever its tokenizer knows."""

    @property
    def token_rows(self) -> int:  # type: ignore[override]
        return len(self.embedding_table)


@dataclass
class State:
    """What the stages hand on; each sets its own."""

    config: StudyConfig
    lm: RandomLM = field(init=False)
    study: Study = field(init=False)
    adapter: Adapter = field(init=False)
    progress: Progress = field(init=False)
    scored: pd.DataFrame = field(init=False)

    @property
    def table(self) -> torch.Tensor:
        return self.lm.embedding_table


def random_examples(vocabulary: int, count: int) -> Encoded:
    """Draw prompts of Zipf tokens, with answers of 2 to 8 of the same tokens."""
    encoded, rng = random_prompts(vocabulary, count), np.random.default_rng(1)
    sizes = rng.integers(2, 9, count)
    pairs = zip(encoded.prompts, sizes, strict=True)
    return dataclasses.replace(encoded, answers=[prompt[:size] for prompt, size in pairs])


def load(state: State) -> None:
    lm = loading.load(state.config)
    state.lm = RandomLM(lm.model, lm.tokenizer, lm.name, lm.recomputed)


def give_spectrum(state: State, given: Namespace) -> dict[str, Encoded]:
    """Replace the model's vocabulary table in place; return the prompts it was made for."""
    table = state.table
    encoded = {"train": random_examples(len(table), given.train)}
    encoded |= {"test": encoded["train"].first(given.questions)}
    encoded |= {"selection": encoded["train"].first(0)}
    counts = torch.from_numpy(token_counts(encoded["train"].prompts, len(table))).to(table.device)
    width = state.config.width(table.shape[1])
    with torch.no_grad():
        table.copy_(random_table(counts, table.shape[1], width))
    return encoded


def fit(state: State, encoded: dict[str, Encoded]) -> None:
    """Count the tokens, fit PCA and compress the vocabulary."""
    table = state.table
    counts = token_counts(encoded["train"].prompts, len(table))
    pca = fit_pca(table, torch.from_numpy(counts), state.config.width(table.shape[1]))
    state.study = Study(state.config, state.lm, encoded, counts, pca)
    state.study.codebook  # noqa: B018  (made once, and kept)


def answer(state: State, condition: str, make_table: Callable[[], torch.Tensor]) -> dict:
    """Answer the test questions from a table; its making is the first seconds."""
    device, test = state.lm.device, state.study.encoded["test"]
    table, made = common.timed(device, make_table)
    few = test.first(min(8, len(test)))
    evaluate(state.lm, few, condition, table, state.config, "")  # kernels load
    arguments = state.lm, test, condition, table, state.config, ""
    state.scored, row = common.timed(device, evaluate, *arguments)
    peak = max(row["peak_GB"], made["peak_GB"])
    about = {"count": len(test), "unit": "question", "first_seconds": made["seconds"]}
    return row | about | {"peak_GB": peak}


def warm(state: State) -> dict:
    """Take the warm-up's steps, after a few of another adapter that load the kernels."""
    context, device, steps = objective_context(state.study), state.lm.device, 8

    def take(adapter: nn.Module, count: int) -> None:
        config = context.config.replace(warmup_steps=count)
        warm_up([adapter], dataclasses.replace(context, config=config), state.study.counts, False)

    _, first = common.timed(device, take, study.new_adapter(state.study), steps)
    state.adapter = study.new_adapter(state.study)
    _, row = common.timed(device, take, state.adapter, state.config.warmup_steps)
    about = {"count": state.config.warmup_steps, "unit": "step"}
    return row | about | {"first_seconds": first["seconds"]}


def learn(state: State) -> dict:
    """Train by the objective; its first steps compile."""
    context, encoded = objective_context(state.study), state.study.encoded["train"]
    arguments = state.adapter, context, encoded, state.study.counts, lambda adapter: {}
    state.progress, row = common.timed(state.lm.device, train, *arguments)
    seconds = [step["seconds"] for step in state.progress.curve]
    usual = statistics.median(seconds[COMPILED:] or seconds)
    first = sum(seconds[:COMPILED]) - usual * len(seconds[:COMPILED])
    size = state.config.batch_size
    times = {"seconds": usual * len(seconds), "first_seconds": max(0.0, first)}
    return row | times | {"count": size * len(seconds), "unit": "example"}


def record(state: State, folder: str) -> None:
    os.environ["STAGE1_RUNS"] = folder
    study.write_adapter(state.study, state.adapter, state.progress, state.scored, {})


def once(state: State, call: Callable[[], object], unit: str = "run") -> dict:
    """Return the row of a stage that happens once in its unit."""
    _, row = common.timed(loading.choose_device(state.config.device), call)
    return row | {"count": 1, "unit": unit, "first_seconds": 0.0}


def stages(state: State, given: Namespace, folder: str) -> dict[str, Callable[[], dict]]:
    """Return what measures each stage, by name; every stage needs those before it."""

    def looked_up() -> torch.Tensor:
        return state.table[nearest_codebook(state.study.codebook, state.study.codebook)]

    def inverse() -> torch.Tensor:
        return state.study.compression.expand(state.study.codebook)

    def decoded() -> torch.Tensor:
        return adapters.decode(state.adapter, state.study.codebook)

    return {
        "load": lambda: once(state, lambda: load(state), "process"),
        "PCA": lambda: once(state, partial(fit, state, give_spectrum(state, given))),
        "answers, pca_inverse": lambda: answer(state, "pca_inverse", inverse),
        "answers, codebook": lambda: answer(state, "codebook", looked_up),
        "answers, embeddings": lambda: answer(state, "embeddings", lambda: state.table),
        "checksum": lambda: once(state, state.lm.checksum),
        "warm-up": lambda: warm(state),
        "training": lambda: learn(state),
        "answers, adapter": lambda: answer(state, "adapter", decoded),
        "record": lambda: once(state, lambda: record(state, folder)),
    }


def per_unit(table: pd.DataFrame) -> pd.DataFrame:
    """Add seconds per unit."""
    if "seconds" in table:
        table["seconds_per_unit"] = table["seconds"] / table["count"]
    return table


def main() -> None:
    sizes = {"train": 640, "questions": 256, "warmup_steps": 300, "budget": 100.0}
    options = {"preset": "llama31_8b"} | sizes
    given = common.parser(__doc__, "recipe_at_shape.csv", **options).parse_args()
    config = load_preset(given.preset).replace(
        shape_only=True, objective="option3_teacher_forced", learning_rate=1.0e-3, epochs=1,
        warmup_steps=given.warmup_steps, selection_every=0, gradients_every=0, checkpoint_every=0,
    )  # fmt: skip
    table = common.Rows(given.out, given.budget, per_unit)
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in stages(State(config), given, folder).items():
            table.add({"stage": name}, measure)
    print(markdown_table(table.table.round(4)))


if __name__ == "__main__":
    main()
