"""The training of a reader: its state, its steps, and checkpoints that lose nothing.

On a GPU nothing waits for the device between two readings: rows lie on it, their order is known
from the start, and every tensor has a fixed shape, so that each function is compiled once.
"""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int16
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from stage1 import store
from stage1.model.loading import choose_device
from stage1.pretrain import packing, transformer
from stage1.pretrain.head_loss import weighted_cross_entropy
from stage1.pretrain.optimizer import optimizers, set_rates
from stage1.pretrain.recipe import ReaderConfig
from stage1.pretrain.schedule import counts, plan, rate_share
from stage1.pretrain.speed import Meter, matmul_rate
from stage1.pretrain.transformer import Transformer

READ_EVERY = 50
"""Steps between two readings of the curve, the only times that training waits for the device."""
CHECKPOINT_SECONDS = 120.0
ID = 0x7FFF
"""The bits of a code that hold the token id."""
SUMS = ["weighted", "weight", "nll", "tokens", "answer_nll", "answer_right", "answer_tokens"]
"""Sums over a reading's steps that the curve is made of."""


class Supervision(NamedTuple):
    """What every token of a batch should predict, row after row, and how much it counts."""

    targets: Int[Tensor, " N"]
    real: Float[Tensor, " N"]
    """1 where there is a target, else 0."""
    answers: Float[Tensor, " N"]
    """1 where the target belongs to an answer, else 0."""
    weights: Float[Tensor, " N"]
    """Weights of the loss."""


class Training:
    """A model in training, with everything that a checkpoint holds."""

    def __init__(self, config: ReaderConfig, tokenizer: PreTrainedTokenizerFast, rows: dict):
        self.config, self.device = config, choose_device(config.device)
        self.begin, self.pad = tokenizer.bos_token_id, tokenizer.pad_token_id
        cuda = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if cuda else torch.float32
        attention = "varlen" if cuda else "dense"
        self.attention = attention if config.attention == "auto" else config.attention
        joined = np.concatenate([*rows.values()])
        sizes = {name: len(array) for name, array in rows.items()}
        order = plan(config, sizes)
        parts = order.reshape(-1, config.batch // config.microbatches)
        # The largest number of documents in a microbatch, so that its edges have a fixed shape.
        per_row = packing.document_counts(joined, self.begin)
        self.most_documents = int(per_row[parts].sum(axis=1).max())
        self.rows_per_kind = dict(zip(sizes, counts(config, sizes).sum(0).tolist(), strict=True))
        self.rows = torch.from_numpy(joined.view(np.int16)).to(self.device)
        self.order = torch.from_numpy(order).to(self.device)
        self.model = Transformer(config.shape(len(tokenizer)), config.seed).to(self.device)
        rates = config.muon_rate, config.adam_rate, config.weight_decay
        self.optimizers = optimizers(self.model, *rates)
        hidden = self.model.hidden
        mode = "max-autotune-no-cudagraphs" if config.tuned else "default"
        self.hidden = torch.compile(hidden, dynamic=False, mode=mode) if cuda else hidden
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.sums = torch.zeros(len(SUMS), device=self.device)
        self.identity = config.identity() | {"rows": sizes, "vocabulary": len(tokenizer)}

    def documents(self, ids: Tensor) -> transformer.Documents:
        if self.attention == "varlen":
            return transformer.ragged_documents(ids, self.begin, self.most_documents)
        if self.attention == "flex":
            return transformer.flex_documents(ids, self.begin)
        return transformer.dense_documents(ids, self.begin)

    def supervision(self, codes: Int16[Tensor, "B T"]) -> Supervision:
        """Return what each token predicts; the last of a row and of a document predict nothing."""
        following = pad(codes[:, 1:], (0, 1), value=self.pad).flatten()
        targets, answer = following.long() & ID, following < 0
        real = ((targets != self.pad) & (targets != self.begin)).float()
        answers = answer * real
        return Supervision(targets, real, answers, real + (self.config.answer_weight - 1) * answers)

    def backward(self, codes: Int16[Tensor, "B T"], total: Tensor) -> None:
        """Add the gradients of rows, of a batch whose weights sum to `total`, and their figures."""
        ids = codes.long() & ID
        targets, real, answers, weights = self.supervision(codes)
        given = ids, self.documents(ids), self.dtype, self.config.dropout
        hidden = self.hidden(*given).flatten(0, 1)
        head = self.model.head
        loss, each, right = weighted_cross_entropy(hidden, head, targets, weights / total)
        loss.backward()
        figures = {
            "weighted": weights * each,
            "weight": weights,
            "nll": real * each,
            "tokens": real,
            "answer_nll": answers * each,
            "answer_right": answers * right,
            "answer_tokens": answers,
        }
        self.sums += torch.stack([figures[name].sum() for name in SUMS])

    def take_step(self) -> None:
        set_rates(self.optimizers, rate_share(self.config, self.step))
        if self.config.dropout:  # a resumed training leaves out the same
            torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        codes = self.rows[self.order[self.step]]
        total = self.supervision(codes).weights.sum()
        for part in codes.chunk(self.config.microbatches):
            self.backward(part, total)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def reading(self, **figures: float) -> None:
        """Add a row to the curve: cross-entropies in nats per token, means since the last row."""
        sums = dict(zip(SUMS, self.sums.tolist(), strict=True))
        self.sums.zero_()
        answers = sums["answer_tokens"] or float("nan")
        self.curve.append(
            {
                "step": self.step,
                "loss": sums["weighted"] / sums["weight"],
                "cross_entropy": sums["nll"] / sums["tokens"],
                "answer_cross_entropy": sums["answer_nll"] / answers,
                "answer_accuracy": sums["answer_right"] / answers,
                "rate_share": rate_share(self.config, self.step - 1),
                **figures,
            }
        )

    def save(self, path: Path) -> None:
        """Write a checkpoint; call it after a reading, when all sums are zero."""
        state = {
            "identity": self.identity,
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        store.write_atomically(path, lambda temporary: torch.save(state, temporary))

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises RecordError for a damaged one or another training's."""
        try:
            state = torch.load(path, weights_only=True, map_location=self.device)
        except Exception as error:  # zip, pickle and end-of-file errors alike
            reason = f"truncated or malformed ({error})"
            raise store.RecordError(f"{path}: {reason}; delete it to start again") from error
        changed = [n for n, v in self.identity.items() if state["identity"].get(n) != v]
        if changed:
            raise store.RecordError(
                f"{path}: is of a training with another {', '.join(changed)}; expected the same "
                "command, or another folder"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]


def train(training: Training, path: Path) -> bool:
    """Train to the last step, or until `pause_after`; return whether it was the last step.

    Writes a checkpoint to `path` every two minutes and at the end.
    """
    config, device = training.config, training.device
    shape = training.rows.shape[1]
    meter = Meter(config.batch * shape, training.model.multiplied, matmul_rate(device))
    begin = saved = time.perf_counter()
    earlier = training.seconds
    progress = tqdm(total=config.steps, initial=training.step, desc="train", mininterval=5)
    while training.step < config.steps:
        training.take_step()
        meter.step(device)
        progress.update()
        if training.step % READ_EVERY and training.step < config.steps:
            continue
        figures = meter.read(device)
        now = time.perf_counter()
        training.seconds = earlier + now - begin
        training.reading(seconds=training.seconds, **figures)
        last = training.curve[-1]
        progress.set_postfix_str(
            f"loss {last['loss']:.3f}, {last['tokens_per_s']:,.0f} tokens/s, "
            f"{last['share_of_matmul_rate']:.0%} of the matmul rate"
        )
        paused = 0 < config.pause_after <= now - begin
        if paused or now - saved > CHECKPOINT_SECONDS or training.step == config.steps:
            training.save(path)
            saved = now
        if paused:
            break
    progress.close()
    return training.step == config.steps
