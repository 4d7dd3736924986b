"""Estimates of what a training or an evaluation will cost, from a short measurement beforehand."""

import statistics
import time
from collections.abc import Callable
from datetime import timedelta

import torch

from stage1 import store
from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded, token_counts
from stage1.evaluation.conditions import evaluate
from stage1.study.preparation import Study, new_adapter, objective_context
from stage1.training.batches import steps_per_epoch
from stage1.training.loop import train
from stage1.training.warmup import warm_up

STEPS = 3
"""Measured training steps, after one warm-up step."""


def training(study: Study) -> str:
    """Return device, throughput, time for the whole budget and peak memory, in a sentence.

    Measures a few steps of a throwaway adapter, unless the repository holds the trained one.
    """
    if store.committed_adapter(study.config):
        return "The repository holds this adapter: it is not trained here."
    config, encoded = study.resolved, study.encoded["train"]
    assert isinstance(config.batch_size, int)
    size = -(-config.batch_size // config.processes)
    trial = config.replace(
        batch_size=size, epochs=1, selection_every=0, gradients_every=0, checkpoint_every=0
    )
    sample = encoded.first((STEPS + 1) * size)
    counts = token_counts(sample.prompts, len(study.counts))
    peak = peak_memory(study)
    context = objective_context(study, trial)
    curve = train(new_adapter(study), context, sample, counts, lambda adapter: {}).curve
    seconds = statistics.median(step["seconds"] for step in curve[1:] or curve)
    steps = config.epochs * steps_per_epoch(config, len(encoded))
    rates = throughput(sample.first(size), seconds / config.processes)
    budget = f"{steps:,} steps {duration(steps * seconds)}"
    return f"Training on {devices(study, config)}: {warmup(study)}{rates}; {budget}{peak()}"


def warmup(study: Study) -> str:
    """Return the steps and the time of the warm-up, measured on a few of them; "" without one."""
    config = study.config
    if not config.warmup_steps:
        return ""
    few = objective_context(study, study.resolved.replace(warmup_steps=min(8, config.warmup_steps)))
    begin = time.perf_counter()
    warm_up([new_adapter(study)], few, study.counts, show=False)
    seconds = (time.perf_counter() - begin) / few.config.warmup_steps
    return f"{config.warmup_steps:,} warm-up steps {duration(config.warmup_steps * seconds)}; "


def evaluation(study: Study, conditions: int) -> str:
    """Return the same estimate for answering the test questions under that many conditions.

    Measures one batch that reads the original embeddings.
    """
    config, test = study.config, study.encoded["test"]
    sample, table = test.first(config.eval_batch_size), study.lm.embedding_table
    peak = peak_memory(study)
    evaluate(study.lm, sample.first(1), "warm-up", table, config, description="")
    begin = time.perf_counter()
    evaluate(study.lm, sample, "measured", table, config, description="")
    seconds = time.perf_counter() - begin
    whole = duration(conditions * seconds * len(test) / len(sample))
    budget = f"{conditions} conditions of {len(test):,} questions {whole}"
    return f"Answers on {devices(study, config)}: {throughput(sample, seconds)}; {budget}{peak()}"


def throughput(encoded: Encoded, seconds: float) -> str:
    """Return examples and tokens (prompts and gold answers, no padding) per second."""
    tokens = sum(map(len, encoded.prompts)) + sum(map(len, encoded.answers))
    return f"{len(encoded) / seconds:,.1f} examples/s, {tokens / seconds:,.0f} tokens/s"


def duration(seconds: float) -> str:
    return f"in about {timedelta(seconds=max(1, round(seconds)))}"


def devices(study: Study, config: StudyConfig) -> str:
    kind = study.lm.device.type
    name = torch.cuda.get_device_name(study.lm.device) if kind == "cuda" else "the CPU"
    return f"{config.processes} x {name}" if config.processes > 1 else name


def peak_memory(study: Study) -> Callable[[], str]:
    """Start to track GPU memory; the returned function states the peak since then ("" on a CPU)."""
    if study.lm.device.type != "cuda":
        return lambda: ""
    torch.cuda.reset_peak_memory_stats()
    return lambda: f"; peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
