"""What a training or an evaluation will cost, in a sentence: measured on a little of it, before it starts."""

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

STEPS = 3
"""Training steps to measure, after one that warms up."""


def training(study: Study) -> str:
    """Device, peak memory, rates and the whole budget's time, from a few steps of an adapter that is thrown away. An
    adapter that the repository holds is not trained, and nothing is measured for it."""
    if store.committed_adapter(study.config):
        return "The repository holds this adapter: it is not trained here."
    config, encoded = study.resolved, study.encoded["train"]
    size = -(-config.batch_size // config.processes)
    trial = config.replace(
        batch_size=size, epochs=1, selection_every=0, gradients_every=0, checkpoint_every=0
    )
    few = encoded.first((STEPS + 1) * size)
    counts = token_counts(few.prompts, len(study.counts))
    peak = peak_memory(study)
    progress = train(
        new_adapter(study), objective_context(study, trial), few, counts, lambda adapter: {}
    )
    seconds = statistics.median(step["seconds"] for step in progress.curve[1:] or progress.curve)
    steps = config.epochs * steps_per_epoch(config, len(encoded))
    rates = throughput(few.first(size), seconds / config.processes)
    return f"Training on {device(study, config)}: {rates}; {steps:,} steps {took(steps * seconds)}{peak()}"


def evaluation(study: Study, conditions: int) -> str:
    """The same of answering the test questions under that many conditions, from one batch of original embeddings."""
    config, test = study.config, study.encoded["test"]
    few, table = test.first(config.eval_batch_size), study.lm.embedding_table
    peak = peak_memory(study)
    evaluate(study.lm, few.first(1), "warm-up", table, config, description="")
    begin = time.perf_counter()
    evaluate(study.lm, few, "measured", table, config, description="")
    seconds = time.perf_counter() - begin
    whole = conditions * seconds * len(test) / len(few)
    about = f"{conditions} conditions of {len(test):,} questions {took(whole)}"
    return f"Answers on {device(study, config)}: {throughput(few, seconds)}; {about}{peak()}"


def throughput(encoded: Encoded, seconds: float) -> str:
    """Examples and real tokens, prompts and gold answers, per second."""
    tokens = sum(map(len, encoded.prompts)) + sum(map(len, encoded.answers))
    return f"{len(encoded) / seconds:,.1f} examples/s, {tokens / seconds:,.0f} tokens/s"


def took(seconds: float) -> str:
    return f"in about {timedelta(seconds=max(1, round(seconds)))}"


def device(study: Study, config: StudyConfig) -> str:
    kind = study.lm.device.type
    name = torch.cuda.get_device_name(study.lm.device) if kind == "cuda" else "the CPU"
    return f"{config.processes} x {name}" if config.processes > 1 else name


def peak_memory(study: Study) -> Callable[[], str]:
    """Starts to watch the GPU's memory; the function returned tells its peak since. Nothing on a CPU."""
    if study.lm.device.type != "cuda":
        return lambda: ""
    torch.cuda.reset_peak_memory_stats()
    return lambda: f"; peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
