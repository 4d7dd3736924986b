"""The training step with the language model in the loop: throughput and memory, as found and now, on one GPU.

    python benchmarks/train_step.py                                     # the 8B shape: some minutes on an H200
    python benchmarks/train_step.py --preset quick --batches 4 8 --out /tmp/try   # does it run?

`as found` is the analysed step: a language model that is not frozen, prompts padded to their budget of 256 and answers
to 20, logits at every position. The other steps are `train.take_step` under the engine's settings. Prompts have 100 to
256 tokens and answers 2 to 8, uniform, of random tokens with Zipf frequencies: what a step costs depends on lengths,
not on words. A step's arithmetic is counted as 4 x parameters x real tokens (forward, and backward to the embeddings),
with all parameters and with the decoder layers' alone, and held against a bfloat16 product of 8192 x 8192 matrices.

Writes `train_step.csv` after every row, and beside it how loss and gradient of each path agree with the same step in
float32 (`_agreement`), the largest batches by a straight line through the peaks (`_largest`), and where that was.
"""

import argparse
import dataclasses
import datetime
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import mse_loss

from stage1 import adapter as adapters
from stage1 import objectives, store
from stage1.compress import fit_pca, variance
from stage1.config import StudyConfig, load_preset
from stage1.corpus.prompts import token_counts
from stage1.model import engine, language_model
from stage1.objectives import ExampleBatch, ObjectiveContext
from stage1.pretrain.model_card import markdown_table
from stage1.training import loss_scale
from stage1.training.loop import TrainingError, set_up, take_step

RESULTS = Path(__file__).parent / "results"
POOL = 512  # examples to draw batches from
NOW = "packed, compiled"


def examples(vocabulary: int, config: StudyConfig, seed: int = 0) -> ExampleBatch:
    """Random prompts and answers of SQuAD-like lengths."""
    rng = np.random.default_rng(seed)
    longest, share = config.max_prompt_tokens, 1 / np.arange(1, vocabulary + 1)
    ids = rng.permutation(vocabulary)

    def text(low: int, high: int) -> list[int]:
        return ids[
            rng.choice(vocabulary, rng.integers(low, high + 1), p=share / share.sum())
        ].tolist()

    return ExampleBatch(
        [text(longest * 100 // 256, longest) for _ in range(POOL)],
        [text(2, 8) for _ in range(POOL)],
    )


def batch_of(pool: ExampleBatch, size: int, step: int) -> ExampleBatch:
    return pool.chosen([(step * size + place) % POOL for place in range(size)])


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_rate(size: int) -> float:
    """FLOP/s of a product of square matrices, the median of twenty."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in "ab")
    seconds = []
    for _ in range(25):
        synchronize()
        begin = time.perf_counter()
        a @ b
        synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(seconds[5:])


def as_found_step(context: ObjectiveContext, adapter, optimizer, batch: ExampleBatch) -> None:
    """The analysed training step, line by line."""
    rows, real = objectives.padded(batch, context)
    begin, model = context.config.max_prompt_tokens, context.lm.model
    original = context.lm.embed(rows.ids[:, :begin])
    rebuilt = adapter(context.codebook[rows.ids[:, :begin]])
    error = mse_loss(rebuilt[real[:, :begin]], original[real[:, :begin]].float())
    whole = torch.cat([rebuilt.to(original.dtype), context.lm.embed(rows.ids[:, begin:])], dim=1)
    ce = model(inputs_embeds=whole, attention_mask=real.long(), labels=rows.ids).loss
    optimizer.zero_grad()
    (error + ce).backward()
    optimizer.step()
    model.zero_grad(set_to_none=True)


def timed(step, pool: ExampleBatch, batch: int, steps: int) -> dict:
    """Seconds per step, real tokens and examples per second, and peak memory; steps before the clock starts compile."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, tokens = [], []
    for number in range(steps + 3):
        taken = batch_of(pool, batch, number)
        synchronize()
        begin = time.perf_counter()
        step(taken)
        synchronize()
        seconds.append(time.perf_counter() - begin)
        tokens.append(sum(map(len, taken.prompts)) + sum(map(len, taken.answers)))
    total, peak = (
        sum(seconds[3:]),
        torch.cuda.max_memory_allocated() if torch.cuda.is_available() else float("nan"),
    )
    return {
        "seconds": statistics.median(seconds[3:]),
        "slowest": max(seconds[3:]),
        "examples_per_s": batch * steps / total,
        "tokens_per_s": sum(tokens[3:]) / total,
        "peak_GB": peak / 1e9,
    }


def attempt(name: str, step, bench: "Bench", batch: int, steps: int) -> dict:
    bench.loop = None if name == "as found" else bench.loop
    try:
        row = timed(step, bench.pool, batch, steps)
        size = bench.loop.pass_size if bench.loop else None
        row |= {"passes": math.ceil(batch / size) if size else 1}
    except (torch.OutOfMemoryError, TrainingError):
        row = {"note": "out of memory"}
    print(name, batch, row, flush=True)
    return {"step": name, "batch": batch} | row


class Bench:
    """One language model under test, with what every step of it shares."""

    def __init__(self, config: StudyConfig):
        self.lm = language_model.load(
            config.replace(compiled=False, matmul="native", recomputed=0.0)
        )
        self.table = self.lm.embedding_table
        self.pool = examples(len(self.table), config)
        self.counts = torch.from_numpy(token_counts(self.pool.prompts, len(self.table)))
        self.compression = fit_pca(self.table, self.counts, config.compressed_width)
        self.codebook = self.compression.compress(self.table)
        self.spread = variance(self.table, self.counts)
        self.loop = None

    def context(self, config: StudyConfig) -> ObjectiveContext:
        lm = dataclasses.replace(self.lm, recomputed=config.recomputed)
        return ObjectiveContext(lm, self.codebook, config, self.spread)

    def adapter(self, config: StudyConfig) -> adapters.Adapter:
        return adapters.make(self.compression, self.table, self.counts, config)

    def step(self, config: StudyConfig):
        """One step of the project's own training loop, as a function of the batch."""
        self.loop = set_up(self.adapter(config), self.context(config), 1_000, None)
        return lambda batch: take_step(self.loop, batch)

    def as_found(self, config: StudyConfig):
        self.lm.model.requires_grad_(True)
        adapter = self.adapter(config)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1.0e-4)
        return lambda batch: as_found_step(self.context(config), adapter, optimizer, batch)

    def gradient(self, config: StudyConfig, batch: ExampleBatch) -> tuple[float, torch.Tensor]:
        """Cross-entropy of the gold answers and its gradient at the adapter."""
        adapter = self.adapter(config)
        terms = objectives.answer_ce(adapter, batch, self.context(config))
        (gradient,) = loss_scale.term_gradients(
            terms, list(adapter.parameters()), keep_graph=False
        ).values()
        return float(terms["cross_entropy"].value.detach()), gradient


def steps_of(
    bench: Bench, config: StudyConfig, batches: list[int], readings: dict
) -> Iterator[tuple]:
    """Name, step and batch size of all that is measured; between them the model changes, to end in fp8."""
    model, few, packed = bench.lm.model, batch_of(bench.pool, 8, 0), config.replace(packed=True)
    plain, usual = config.replace(packed=False, compiled=False), min(64, max(batches))
    yield from (("as found", bench.as_found(config), size) for size in batches if size <= 64)
    model.requires_grad_(False).zero_grad(set_to_none=True)
    yield "frozen, padded rows", bench.step(plain), usual
    readings["padded rows"] = bench.gradient(plain, few)
    yield "packed", bench.step(packed.replace(compiled=False)), usual
    model.float()
    readings["float32"] = bench.gradient(plain, few)
    model.to(getattr(torch, config.dtype))
    engine.configure(model, config.replace(compiled=True, recomputed=1.0))
    readings["packed, compiled"] = bench.gradient(packed, few)
    yield from ((NOW, bench.step(packed), size) for size in batches)
    for share in (0.25, 0.5, 1.0):
        yield f"{NOW}, {share:.0%} recomputed", bench.step(packed.replace(recomputed=share)), usual
    yield f"{NOW}, 100% recomputed", bench.step(packed.replace(recomputed=1.0)), 2 * usual
    yield f"{NOW}, 16 at a time", bench.step(packed.replace(micro_batch_size=16)), usual
    for objective in ("option2_prompt_ce", "distill"):
        yield f"{NOW}, {objective}", bench.step(packed.replace(objective=objective)), usual
    engine.to_fp8(engine.decoder_layers(model))
    readings["packed, compiled, fp8"] = bench.gradient(packed, few)
    yield from ((f"{NOW}, fp8", bench.step(packed), size) for size in batches if size >= usual)


def largest_batches(table: pd.DataFrame) -> pd.DataFrame:
    """The largest batch that takes at most 90 % of this card and of one of 85 GB, by a straight line through the peaks
    of the batches that fitted in one pass."""
    card = (
        torch.cuda.get_device_properties(0).total_memory / 1e9
        if torch.cuda.is_available()
        else float("nan")
    )
    rows = []
    for name, steps in table[table["passes"] == 1].groupby("step", sort=False):
        if len(steps) > 1:
            slope, base = np.polyfit(steps["batch"], steps["peak_GB"], 1)
            row = {"step": name, "base_GB": base, "GB_per_example": slope, "card_GB": card}
            rows.append(
                row
                | {
                    f"largest on {n}": (0.9 * size - base) // slope
                    for n, size in (("this card", card), ("85 GB", 85))
                }
            )
    return pd.DataFrame(rows)


def agreement(readings: dict[str, tuple[float, torch.Tensor]]) -> list[dict]:
    """Loss, and the gradient's relative error and cosine, of each path against float32, once that is measured."""
    if "float32" not in readings:
        return []
    loss, exact = readings["float32"]
    return [
        {
            "path": name,
            "loss": value,
            "loss_difference": value - loss,
            "gradient_error": float((gradient - exact).norm() / exact.norm()),
            "cosine": float(torch.cosine_similarity(gradient.double(), exact.double(), dim=0)),
        }
        for name, (value, gradient) in readings.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama31_8b")
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 32, 48, 64, 96, 128, 256])
    parser.add_argument(
        "--steps", type=int, default=8, help="measured steps, after three that are not"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    config = load_preset(given.preset).replace(
        shape_only=given.preset == "llama31_8b",
        learning_rate=1.0e-4,
        gradients_every=0,
        objective="option3_teacher_forced",
    )
    torch.manual_seed(0)
    rate = matmul_rate(8_192 if torch.cuda.is_available() else 512)
    bench = Bench(config)
    parameters = sum(parameter.numel() for parameter in bench.lm.model.parameters())
    in_layers = sum(
        parameter.numel() for parameter in engine.decoder_layers(bench.lm.model).parameters()
    )
    rows, readings = [], {}
    about = {
        "matmul_TFLOP_per_s": rate / 1e12,
        "parameters": parameters,
        "parameters_in_layers": in_layers,
    }
    about |= {"command": " ".join(["python", *sys.argv]), "date": datetime.date.today().isoformat()}
    store.write_record(given.out / "train_step.json", config, about)
    for name, step, batch in steps_of(bench, config, given.batches, readings):
        rows.append(attempt(name, step, bench, batch, given.steps))
        table = pd.DataFrame(rows)
        for column, counted in (
            ("of_matmul_rate", parameters),
            ("of_matmul_rate_layers_only", in_layers),
        ):
            table[column] = 4 * counted * table["tokens_per_s"] / rate
        results = {
            "": table,
            "_largest": largest_batches(table),
            "_agreement": pd.DataFrame(agreement(readings)),
        }
        for suffix, result in results.items():
            result.to_csv(given.out / f"train_step{suffix}.csv", index=False, float_format="%.5g")
    for result in results.values():
        print(markdown_table(result.round(4)))


if __name__ == "__main__":
    main()
