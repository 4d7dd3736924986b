"""The training loop: one adapter, one objective, on `accelerate`; records every step and resumes exactly.

What step n does depends on the config and n alone (its batch and its random numbers are seeded by both), so a
checkpoint needs no random state, and a training that was interrupted ends where an uninterrupted one does, bit for bit
on the CPU.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from jaxtyping import Float64, Int64
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from stage1 import loss_scale, store
from stage1.adapter import Adapter
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


def steps_per_epoch(config: StudyConfig, examples: int) -> int:
    return math.ceil(examples / config.batch_size)


def examples_at(config: StudyConfig, encoded: Encoded, step: int) -> Examples:
    """The batch of one step: the epoch's examples in an order of their own, the last batch what is left of them."""
    epoch, place = divmod(step, steps_per_epoch(config, len(encoded)))
    order = np.random.default_rng([config.seed, epoch]).permutation(len(encoded))
    chosen = order[place * config.batch_size : (place + 1) * config.batch_size]
    return Examples([encoded.prompts[i] for i in chosen], [encoded.answers[i] for i in chosen])


class Occurring(NamedTuple):
    """The tokens that occur in the training prompts: a draw from a large vocabulary costs what these cost."""

    ids: Int64[np.ndarray, " N"]
    shares: Float64[np.ndarray, " N"]


def occurring(counts: Int64[np.ndarray, " V"]) -> Occurring:
    ids = counts.nonzero()[0]
    return Occurring(ids, counts[ids] / counts.sum())


def tokens_at(config: StudyConfig, known: Occurring, tokens: int, step: int, device: torch.device) -> Tokens:
    """As many prompt tokens as a batch of examples has on average, drawn by their counts in the training prompts."""
    drawn = np.random.default_rng([config.seed, step]).multinomial(tokens, known.shares)
    places = drawn.nonzero()[0]
    return Tokens(torch.from_numpy(known.ids[places]).to(device), torch.from_numpy(drawn[places]).to(device))


def check_terms(terms: dict[str, float], curve: list[dict], step: int) -> None:
    """Raise TrainingError for a term that is no finite number or has exploded since the first step."""
    for name, value in terms.items():
        first = curve[0][name] if curve else value
        if not math.isfinite(value) or (curve and value > EXPLODED * max(1.0, first)):
            raise TrainingError(
                f"step {step}: {name}={value:.4g} (first step {first:.4g}); expected a finite number below "
                f"{EXPLODED:g} times its first value; try a lower learning_rate"
            )


def backward(loop: Loop, terms: Terms) -> tuple[Terms, loss_scale.Vectors]:
    """Give the parameters their gradients. Returns the terms as they were weighed, and the gradient of each where the
    config asks for several terms to be read or balanced by it."""
    rule, parameters = loop.setting.config.balancing, list(loop.adapter.parameters())
    if len(terms) == 1 or not (loop.setting.config.gradients_every or rule == "equal_gradient_norms"):
        terms = loop.uncertainty(terms) if len(terms) > 1 and rule == "uncertainty" else terms
        loop.accelerator.backward(total(terms))
        return terms, {}
    gradients = loss_scale.term_gradients(terms, parameters)
    if rule == "equal_gradient_norms":
        terms = loss_scale.equal_norms(terms, gradients)
    elif rule == "uncertainty":
        fixed = {name: term._replace(value=term.value.detach()) for name, term in terms.items()}
        total(loop.uncertainty(fixed)).backward()  # the log variances have a gradient of their own
        terms = loop.uncertainty(terms)
    loss_scale.put(sum(loss_scale.number(terms[name].weight) * gradients[name] for name in gradients), parameters)
    return terms, gradients


def take_step(loop: Loop, batch: Examples | Tokens) -> dict:
    """One optimizer step; returns its row of the curve. Raises TrainingError before a bad gradient is applied."""
    config, step = loop.setting.config, loop.progress.step
    loop.optimizer.zero_grad()
    terms, gradients = backward(loop, loop.objective(loop.adapter, batch, loop.setting))
    norm = loop.accelerator.clip_grad_norm_(loop.adapter.parameters(), config.max_grad_norm)
    measured = torch.stack([*(term.value.detach() for term in terms.values()), norm.detach()]).tolist()  # one transfer
    values = dict(zip([*terms, "gradient_norm"], measured, strict=True))
    check_terms(values, loop.progress.curve, step)
    rate = loop.schedule.get_last_lr()[0]
    due = gradients and config.gradients_every and step % config.gradients_every == 0
    at_embeddings = loss_scale.embedding_gradients(loop.objective, loop.adapter, batch, loop.setting) if due else {}
    loop.optimizer.step()
    loop.schedule.step()
    clip = min(1.0, config.max_grad_norm / max(values["gradient_norm"], 1.0e-12))
    applied = {name: clip * loss_scale.number(terms[name].weight) * gradient for name, gradient in gradients.items()}
    loop.update.follow(applied)
    if due:
        rows = loss_scale.readings(terms, gradients, at_embeddings, applied, loop.update)
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
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    uncertainty = loss_scale.Uncertainty().to(setting.lm.device)
    if config.balancing == "uncertainty":
        optimizer.add_param_group({"params": list(uncertainty.parameters()), "weight_decay": 0.0})
    update = loss_scale.Update(optimizer, list(adapter.parameters()))
    schedule = get_cosine_schedule_with_warmup(optimizer, round(config.warmup * steps), steps)
    accelerator = Accelerator(cpu=setting.lm.device.type == "cpu")
    parts = {"adapter": adapter, "optimizer": optimizer, "schedule": schedule, "uncertainty": uncertainty}
    progress = resume(checkpoint, parts | {"update": update}, config)
    prepared = accelerator.prepare(adapter, optimizer)  # the adapter only, never the frozen model
    return Loop(setting, find(config.objective), *prepared, schedule, accelerator, update, uncertainty, progress)


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
    bar = tqdm(range(progress.step, steps), desc=config.objective, initial=progress.step, total=steps, file=sys.stdout)
    for step in bar:
        begin = time.perf_counter()
        batch = examples = examples_at(config, encoded, step)
        if reads_tokens(loop.objective):
            tokens = round(len(examples.prompts) * counts.sum() / len(encoded))
            batch = tokens_at(config, known, tokens, step, device)
        torch.manual_seed(config.seed * 1_000_003 + step)  # for sampled answers
        taken = take_step(loop, batch)
        taken |= {"examples": len(examples.prompts), "seconds": time.perf_counter() - begin}
        progress.curve.append(taken)
        progress.step = step + 1
        if progress.step == steps or (config.selection_every and progress.step % config.selection_every == 0):
            progress.selection.append({"step": progress.step} | watch(adapter))
        if checkpoint and config.checkpoint_every and progress.step % config.checkpoint_every == 0:
            save(checkpoint, loop)
    return progress


def save(checkpoint: Path, loop: Loop) -> None:
    parts = {
        "adapter": loop.accelerator.unwrap_model(loop.adapter),
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
