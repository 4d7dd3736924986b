"""The training loop: one adapter, one objective, on `accelerate`; records every step and resumes exactly.

What step n does depends on the config and n alone (its batch and its random numbers are seeded by both), so a
checkpoint needs no random state, and a training that was interrupted ends where an uninterrupted one does, bit for bit
on the CPU.
"""

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from stage1 import engine, loss_scale, processes, store
from stage1.adapter import Adapter
from stage1.batches import Found, examples_at, occurring, split, steps_per_epoch, tokens_at
from stage1.config import StudyConfig, require
from stage1.objectives import Examples, Objective, Setting, Terms, Tokens, find, reads_tokens, total
from stage1.prompts import Encoded

EXPLODED = 1_000.0  # times the term's first value, or this value itself where that is below 1
Watch = Callable[[Adapter], dict]


class TrainingError(RuntimeError):
    """The loss is no number or explodes; the message names the step and the term."""


@dataclass
class Progress:
    """What a training has come to: what a checkpoint holds, and what it leaves at the end."""

    step: int
    curve: list[dict]
    """One row per step: the terms unweighted and weighted, gradient norm, learning rate, seconds, examples, tokens."""
    selection: list[dict]
    """One row per evaluation on the selection split: `step` and whatever was measured."""
    gradients: list[dict]
    """One row per term and reading of the terms' gradients: `step` and what `loss_scale.readings` says."""


@dataclass
class Loop:
    """The moving parts of one training."""

    setting: Setting
    objective: Objective
    adapter: Adapter
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    accelerator: Accelerator
    update: loss_scale.Update
    uncertainty: loss_scale.Uncertainty
    progress: Progress
    pass_size: int | None
    """Examples that a process passes through the language model at a time; None: all that it has."""


def check_terms(terms: dict[str, float], curve: list[dict], step: int) -> None:
    """Raise TrainingError for a term that is no finite number or has exploded since the first step."""
    for name, value in terms.items():
        first = curve[0][name] if curve else value
        if not math.isfinite(value) or (curve and value > EXPLODED * max(1.0, first)):
            raise TrainingError(
                f"step {step}: {name}={value:.4g} (first step {first:.4g}); expected a finite number below "
                f"{EXPLODED:g} times its first value; try a lower learning_rate"
            )


def at_parameters(loop: Loop, batch: Examples | Tokens) -> tuple[Terms, loss_scale.Vectors]:
    """The terms, and the gradient of each at the adapter's parameters."""
    terms = loop.objective(loop.adapter, batch, loop.setting)
    return terms, loss_scale.term_gradients(terms, list(loop.adapter.parameters()), keep_graph=False)


def at_embeddings(loop: Loop, batch: Examples) -> tuple[Terms, loss_scale.Vectors]:
    """The same at the reconstructed embeddings."""
    return loss_scale.embedding_gradients(loop.objective, loop.adapter, batch, loop.setting)


def over_passes(loop: Loop, batch: Examples | Tokens, read: Callable) -> Found:
    """The terms and their gradients over the batch, from as many passes as `loop.pass_size` asks for."""
    parts = split(batch, math.ceil(len(batch) / loop.pass_size) if loop.pass_size else 1)
    found = Found({}, {})
    for part in parts:
        found = found.joined(*read(loop, part))
    return found


def measure(loop: Loop, batch: Examples | Tokens, read: Callable = at_parameters) -> Found:
    """The terms and their gradients over the batch of all processes, each reading its own part of it. Where memory runs
    out the part is read again in passes of half the size: the means are those of the whole batch all the same.

    Raises TrainingError where a single example does not fit.
    """
    config, step, parts = loop.setting.config, loop.progress.step, split(batch, processes.count())
    mine = parts[processes.rank() % len(parts)]
    found = None
    while found is None:
        torch.manual_seed(config.seed * 1_000_003 + step)  # for sampled answers
        with suppress(torch.OutOfMemoryError), engine.tensor_cores(config):
            found = over_passes(loop, mine, read)
        if found is None:
            loop.pass_size = halved(min(loop.pass_size or len(mine), len(mine)), step)
            torch.cuda.empty_cache()
    return found.over_processes(counts=processes.rank() < len(parts))


def halved(size: int, step: int) -> int:
    """Half as many examples. Raises TrainingError where there is only one."""
    if size <= 1:
        raise TrainingError(
            f"step {step}: memory runs out with one example at a time; try recomputed=1.0, dtype='bfloat16' or a "
            "smaller max_prompt_tokens"
        )
    tqdm.write(f"step {step}: memory runs out with {size} examples at a time; going on with {math.ceil(size / 2)}")
    return math.ceil(size / 2)


def weigh(loop: Loop, terms: Terms, gradients: loss_scale.Vectors) -> Terms:
    """The terms with the weights that the config's balancing rule gives them."""
    rule = loop.setting.config.balancing
    if len(terms) > 1 and rule == "equal_gradient_norms":
        return loss_scale.equal_norms(terms, gradients)
    if len(terms) > 1 and rule == "uncertainty":
        total(loop.uncertainty(terms)).backward()  # the log variances have a gradient of their own
        return loop.uncertainty(terms)
    return terms


def take_step(loop: Loop, batch: Examples | Tokens) -> dict:
    """One optimizer step; returns its row of the curve. Raises TrainingError before a bad gradient is applied."""
    config, step = loop.setting.config, loop.progress.step
    loop.optimizer.zero_grad()
    terms, gradients = measure(loop, batch)
    terms = weigh(loop, terms, gradients)
    pull = {name: loss_scale.number(terms[name].weight) * gradient for name, gradient in gradients.items()}
    loss_scale.put(sum(pull.values()), list(loop.adapter.parameters()))
    norm = loop.accelerator.clip_grad_norm_(loop.adapter.parameters(), config.max_grad_norm)
    measured = torch.stack([*(term.value.detach() for term in terms.values()), norm.detach()]).tolist()  # one transfer
    values = dict(zip([*terms, "gradient_norm"], measured, strict=True))
    check_terms(values, loop.progress.curve, step)
    rate = loop.schedule.get_last_lr()[0]
    several = len(gradients) > 1 and (config.gradients_every or config.balancing == "equal_gradient_norms")
    due = several and config.gradients_every and step % config.gradients_every == 0
    felt = measure(loop, batch, at_embeddings).gradients if due else {}
    loop.optimizer.step()
    loop.schedule.step()
    clip = min(1.0, config.max_grad_norm / max(values["gradient_norm"], 1.0e-12))
    applied = {name: clip * part for name, part in pull.items()} if several else {}
    loop.update.follow(applied)
    if due:
        rows = loss_scale.readings(terms, gradients, felt, applied, loop.update)
        loop.progress.gradients += [{"step": step} | one for one in rows]
    return row(terms, values) | {"step": step, "learning_rate": rate}


def row(terms: Terms, values: dict[str, float]) -> dict:
    """Terms unweighted, weighted (`_weighted`), their supervised tokens (`_tokens`), the loss and the gradient norm."""
    weighted = {f"{name}_weighted": loss_scale.number(term.weight) * values[name] for name, term in terms.items()}
    supervised = {f"{name}_tokens": term.tokens for name, term in terms.items()}
    return values | weighted | supervised | {"loss": sum(weighted.values())}


def set_up(adapter: Adapter, setting: Setting, steps: int, checkpoint: Path | None) -> Loop:
    """Optimizer, schedule and accelerator, with the checkpoint's state where there is one."""
    config = setting.config
    fused = setting.lm.device.type == "cuda"
    optimizer = torch.optim.AdamW(
        adapter.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
    )
    uncertainty = loss_scale.Uncertainty().to(setting.lm.device)
    if config.balancing == "uncertainty":
        optimizer.add_param_group({"params": list(uncertainty.parameters()), "weight_decay": 0.0})
    update = loss_scale.Update(optimizer, list(adapter.parameters()))
    schedule = get_cosine_schedule_with_warmup(optimizer, round(config.warmup * steps), steps)
    accelerator = Accelerator(cpu=setting.lm.device.type == "cpu")
    parts = {"adapter": adapter, "optimizer": optimizer, "schedule": schedule, "uncertainty": uncertainty}
    progress = resume(checkpoint, parts | {"update": update}, config)
    optimizer = accelerator.prepare(optimizer)  # the adapter's gradients are summed term by term: it needs no wrapper
    parts = (adapter, optimizer, schedule, accelerator, update, uncertainty, progress)
    objective = find(config.objective)
    # The size of a pass spares the language model's memory: tokens alone do not pass through it.
    return Loop(setting, objective, *parts, None if reads_tokens(objective) else config.micro_batch_size)


def train(
    adapter: Adapter,
    setting: Setting,
    encoded: Encoded,
    counts: np.ndarray,
    watch: Watch,
    checkpoint: Path | None = None,
) -> Progress:
    """Train the adapter in place by the config's objective and learning rate, which must be set.

    `counts` are the training prompts' token counts [V]. `watch` measures the adapter on the selection split before the
    first step, every `selection_every` steps and after the last. With a checkpoint path the state is saved there every
    `checkpoint_every` steps, and taken up again. Raises TrainingError for a loss that is no number or explodes,
    RecordError for a checkpoint of another config, and ValueError without training examples.
    """
    config, device = setting.config, setting.lm.device
    require(len(encoded) > 0, "train_examples", len(encoded), "at least one whose answer is not cut")
    steps = config.epochs * steps_per_epoch(config, len(encoded))
    loop, known = set_up(adapter, setting, steps, checkpoint), occurring(counts)
    progress = loop.progress
    if not progress.selection:
        progress.selection.append({"step": 0} | watch(adapter))
    first = processes.rank() == 0
    bar = {"desc": config.objective, "initial": progress.step, "total": steps, "disable": not first}
    for step in tqdm(range(progress.step, steps), file=sys.stdout, **bar):
        begin = time.perf_counter()
        batch = examples = examples_at(config, encoded, step)
        if reads_tokens(loop.objective):
            tokens = round(len(examples.prompts) * counts.sum() / len(encoded))
            batch = tokens_at(config, known, tokens, step, device)
        taken = take_step(loop, batch)
        taken |= {"examples": len(examples.prompts), "seconds": time.perf_counter() - begin}
        progress.curve.append(taken)
        progress.step = step + 1
        if progress.step == steps or (config.selection_every and progress.step % config.selection_every == 0):
            progress.selection.append({"step": progress.step} | watch(adapter))
        if first and checkpoint and config.checkpoint_every and progress.step % config.checkpoint_every == 0:
            save(checkpoint, loop)
    return progress


def save(checkpoint: Path, loop: Loop) -> None:
    parts = {
        "adapter": loop.adapter,
        "optimizer": loop.optimizer,
        "schedule": loop.schedule,
        "uncertainty": loop.uncertainty,
        "update": loop.update,
    }
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"progress": vars(loop.progress), "config": store.identity(loop.setting.config)}
    store.write_atomically(checkpoint, lambda path: torch.save(state, path))


def resume(checkpoint: Path | None, parts: dict, config: StudyConfig) -> Progress:
    """The progress of the checkpoint, with its state put into the parts; a new one where there is no checkpoint.

    Raises RecordError for a file that cannot be read or is no checkpoint of this config.
    """
    if checkpoint is None or not checkpoint.exists():
        return Progress(0, [], [], [])
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except Exception as error:  # zip, pickle and end-of-file errors alike
        raise store.RecordError(f"{checkpoint}: truncated or malformed ({error}); delete it to start again") from error
    if not isinstance(state, dict) or state.get("config") != store.identity(config):
        raise store.RecordError(f"{checkpoint}: is no checkpoint of this config; delete it to start again")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return Progress(**state["progress"])


def curve_table(progress: Progress) -> pd.DataFrame:
    """The curve with running totals: examples seen and seconds since the start."""
    table = pd.DataFrame(progress.curve)
    return table.assign(examples_seen=table["examples"].cumsum(), seconds_total=table["seconds"].cumsum())
