"""Many adapters at once: one pass of the language model reads the rows of all.

A small language model leaves a GPU idle. Here the batches of S adapters, which may differ in seed,
objective, start, rates and weights, are the rows of one pass. Losses stay apart: every adapter has
its own terms, clipping, learning rate and curve, and ends where it ends alone, up to rounding.
Readings of gradients, balancing rules and checkpoints are left to `loop.train`, for one adapter.
"""

import sys
import time
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import embedding
from tqdm import tqdm

from stage1 import names
from stage1.baselines import Adapter
from stage1.corpus.prompts import Encoded
from stage1.loss_parts import (
    Batch,
    Divergence,
    ExampleBatch,
    ObjectiveContext,
    Reconstruction,
    Term,
    Terms,
)
from stage1.machine.room import Room
from stage1.model import engine
from stage1.model.greedy import greedy_ids
from stage1.objectives import PARTS
from stage1.training import shared_pass
from stage1.training.batches import (
    examples_at,
    indices_at,
    steps_per_epoch,
    token_distribution,
    tokens_at,
)
from stage1.training.layouts import Layout, layout_of, sent
from stage1.training.loop import Progress
from stage1.training.members import Member, read_values, record_step
from stage1.training.microbatches import TrainingError
from stage1.training.observer import is_due
from stage1.training.shared_pass import PASS_VALUES, Reading, Tables
from stage1.training.stacked import StackedAdapters

ManyScores = Callable[[Sequence[Adapter]], list[dict]]


class Group:
    """Adapters with one language model, codebook, training set and budget, trained together."""

    def __init__(
        self,
        adapters: Sequence[Adapter],
        contexts: Sequence[ObjectiveContext],
        encoded: Encoded,
        counts: Int64[np.ndarray, " V"],
    ):
        configs = [context.config for context in contexts]
        rates = [config.learning_rate or 0.0 for config in configs]
        self.context, self.encoded = contexts[0], encoded
        self.distribution = token_distribution(counts)
        self.prompts = [np.asarray(prompt) for prompt in encoded.prompts]
        self.steps = configs[0].epochs * steps_per_epoch(configs[0], len(encoded))
        self.stack = StackedAdapters(adapters, configs, rates, self.steps)
        tokens = max(1, PASS_VALUES // self.context.lm.values_per_token)
        on_gpu = self.stack.device.type == "cuda"
        self.pass_room = Room("token", tokens if on_gpu else None, TrainingError)
        self.answer_room = Room("prompt", error=TrainingError)
        self.made: dict[tuple, Layout] = {}
        self.members = [self.member(contexts[i]) for i in self.stack.order]

    def member(self, context: ObjectiveContext) -> Member:
        """Describe an adapter by its config; layouts are shared by all that read the same rows."""
        config, encoded = context.config, self.encoded
        batch: Batch = ExampleBatch(encoded.prompts, encoded.answers, [True] * len(encoded))
        if names.OBJECTIVES[config.objective].reads == "tokens":
            batch = tokens_at(config, self.distribution, 1, 0, context.lm.device)
        member = Member(config, {}, {}, {}, set())
        for term, part in PARTS[config.objective](self.stack.template, batch, context).items():
            if isinstance(part, Reconstruction):
                member.reconstructions[term] = part
                continue
            key = config.objective, config.padding_layout, config.labels_on, term
            if key not in self.made:
                self.made[key] = layout_of(part, config.objective)
            member.layouts[term], member.weights[term] = self.made[key], part.weight
            if isinstance(part, Divergence):
                member.divergences.add(term)
        return member

    # ---------------------------------------------------------------- one step

    def take_step(self, step: int) -> None:
        """Take one optimizer step of every member and write its row of the curve."""
        begin, running = time.perf_counter(), sum(member.error is None for member in self.members)
        with engine.tf32(self.stack.device.type == "cuda"):
            rates, terms = self.stack.rates(), self.backward(step)
            norms = self.stack.step()
        self.stack.schedule.step()
        values = read_values(terms, norms)
        seconds = (time.perf_counter() - begin) / max(1, running)
        for member, each, numbers, rate in zip(self.members, terms, values, rates, strict=True):
            if member.error is None:
                examples = len(indices_at(member.config, len(self.encoded), step))
                about = {"step": step, "learning_rate": rate, "examples": examples}
                record_step(member, each, numbers, about | {"seconds": seconds})

    def backward(self, step: int) -> list[Terms]:
        """Add the gradients of all members' losses; return their terms.

        Where memory runs out, the gradients at the tables are taken again in smaller passes, and no
        parameter has changed meanwhile.
        """
        tables = self.stack.decode(self.context.codebook)
        readings = self.readings(step, tables)

        def at_tables(size: int) -> tuple[Tensor, list[Terms]]:
            leaf = tables.detach().requires_grad_()
            terms: list[Terms] = [{} for _ in self.members]
            reconstruction = self.add_reconstructions(step, leaf, terms)
            if reconstruction.requires_grad:
                reconstruction.backward()
            self.add_language_model_terms(readings, leaf, terms, None if size == total else size)
            assert leaf.grad is not None
            return leaf.grad, terms

        total = max(1, sum(reading.tokens for reading in readings))
        gradient, terms = self.pass_room.fit(at_tables, total, f"step {step}")
        tables.backward(gradient)
        return terms

    def add_reconstructions(self, step: int, tables: Tables, terms: list[Terms]) -> Tensor:
        """Add the members' reconstruction terms; return their weighted sum."""
        loss, table = tables.new_zeros(()), self.context.lm.embedding_table.float()
        shares: dict[tuple, tuple[Tensor, int]] = {}
        for row, member in enumerate(self.members):
            for name, part in member.reconstructions.items():
                key = member.config.seed, member.objective.reads
                if key not in shares:
                    counts = self.token_counts(member, step)
                    tokens = int(counts.sum())
                    share = torch.from_numpy(counts / tokens).to(tables.dtype)
                    shares[key] = sent(share, tables.device), tokens
                share, tokens = shares[key]
                value = share @ (tables[row] - table).square().mean(1)
                if part.measure == "fvu":
                    value = value / self.context.variance
                terms[row][name] = Term(value, tokens, part.weight)
                loss = loss + part.weight * value
        return loss

    def token_counts(self, member: Member, step: int) -> Int64[np.ndarray, " V"]:
        """Return how often each token counts in the member's reconstruction error."""
        config, V = member.config, len(self.context.codebook)
        index = indices_at(config, len(self.encoded), step)
        if member.objective.reads == "tokens":
            tokens = round(len(index) * self.distribution.total / len(self.encoded))
            drawn = tokens_at(config, self.distribution, tokens, step, torch.device("cpu"))
            return np.bincount(drawn.ids, drawn.counts, V).astype(np.int64)
        return np.bincount(np.concatenate([self.prompts[i] for i in index]), minlength=V)

    def readings(self, step: int, tables: Tables) -> list[Reading]:
        """Return what every member's objective reads, cross-entropies before divergences."""
        readings, generated = [], self.generated_layouts(step, tables)
        for row, member in enumerate(self.members):
            index = indices_at(member.config, len(self.encoded), step)
            for term, layout in member.layouts.items():
                if row in generated:
                    layout, index = generated[row][term], np.arange(len(index))
                is_kl = term in member.divergences
                readings.append(Reading(row, term, member.weights[term], is_kl, layout, index))
        return sorted(readings, key=lambda reading: reading.is_kl)

    def generated_layouts(self, step: int, tables: Tables) -> dict[int, dict[str, Layout]]:
        """Lay out answers generated now, for members that train on them; one decoding serves all.

        A prompt's token ids are offset by its member's place in the stack of tables.
        """
        V, flat = tables.shape[1], tables.detach().flatten(0, 1)
        batches, answers, asked = {}, {}, []
        for row, member in enumerate(self.members):
            if member.objective.generates:
                batches[row] = examples_at(member.config, self.encoded, step)
                answers[row] = list(batches[row].answers)
                keeps_gold = batches[row].keeps_gold or []
                asked += [(row, i) for i, keeps in enumerate(keeps_gold) if not keeps]
        if asked:
            prompts = [[token + row * V for token in batches[row].prompts[i]] for row, i in asked]
            own = self.generated(prompts, flat, step)
            for (row, i), answer in zip(asked, own, strict=True):
                answers[row][i] = answer
        layouts = {}
        for row, batch in batches.items():
            name = self.members[row].config.objective
            supervised = ExampleBatch(batch.prompts, answers[row], [True] * len(batch))
            parts = PARTS[name](self.stack.template, supervised, self.context)
            layouts[row] = {
                term: layout_of(part, name)
                for term, part in parts.items()
                if not isinstance(part, Reconstruction)
            }
        return layouts

    def generated(
        self, prompts: Sequence[list[int]], flat: Float[Tensor, "N D"], step: int
    ) -> list[list[int]]:
        """Return each prompt's greedy answer, in batches that fit into memory."""
        lm, longest = self.context.lm, self.context.config.max_new_tokens

        def decode(size: int) -> list[list[int]]:
            rows: list[list[int]] = []
            for start in range(0, len(prompts), size):
                some = prompts[start : start + size]
                rows += greedy_ids(lm, some, lambda ids: embedding(ids, flat), longest)
            return rows

        return self.answer_room.fit(decode, len(prompts), f"step {step}, answers")

    def add_language_model_terms(
        self, readings: Sequence[Reading], tables: Tables, terms: list[Terms], tokens: int | None
    ) -> None:
        """Add the terms that the language model gives, and their gradients at the tables."""
        for is_kl, group in groupby(readings, key=lambda reading: reading.is_kl):
            some = list(group)
            losses = shared_pass.add_gradients(self.context.lm, some, tables, is_kl, tokens)
            sizes = [reading.supervised for reading in some]
            for reading, own in zip(some, losses.split(sizes), strict=True):
                term = Term(own.mean(), reading.supervised, reading.weight)
                terms[reading.member][reading.term] = term

    def record_selection(self, step: int, selection_scores: ManyScores) -> None:
        """Write every member's scores on the selection split."""
        self.stack.write_back()
        scores = selection_scores(self.stack.adapters)
        for member, row in zip(self.members, scores, strict=True):
            member.progress.selection.append({"step": step} | row)


def train_together(
    adapters: Sequence[Adapter],
    contexts: Sequence[ObjectiveContext],
    encoded: Encoded,
    counts: Int64[np.ndarray, " V"],
    selection_scores: ManyScores,
) -> list[Progress | TrainingError]:
    """Train the adapters in place, each by its own context's config, as `loop.train` does.

    The contexts share language model, codebook, budget and batch size. `selection_scores` measures
    several adapters. An adapter that diverges leaves its TrainingError; the others go on. Raises
    TrainingError where a single row does not fit into memory.
    """
    group, every = Group(adapters, contexts, encoded, counts), contexts[0].config.selection_every
    if every:
        group.record_selection(0, selection_scores)
    for step in tqdm(range(group.steps), desc=f"{len(adapters)} adapters", file=sys.stdout):
        group.take_step(step)
        if step + 1 == group.steps or is_due(every, step + 1):
            group.record_selection(step + 1, selection_scores)
    members = dict(zip(group.stack.order, group.members, strict=True))
    return [members[i].error or members[i].progress for i in range(len(adapters))]
