"""Throughput and memory of the training step through the language model, as found and now.

    python benchmarks/train_step.py                                  # 8B shape: minutes on an H200
    python benchmarks/train_step.py --preset quick --batches 4 8 --out /tmp/try   # does it run?

`as found` is the analysed step: the language model is not frozen, prompts are padded to their
budget of 256 and answers to 20, logits are computed everywhere. The other steps are those of the
training loop under the engine's settings. Random prompts of 100 to 256 tokens and answers of 2 to 8
have Zipf frequencies: the cost of a step depends on lengths, not on words. A step's arithmetic is
counted as 4 x parameters x real tokens (forward, and backward to the embeddings), with all
parameters and with those of the decoder layers, and compared with a bfloat16 product of 8192 x 8192
matrices.

Writes `train_step.csv` after every row, and beside it how loss and gradient of each path agree with
the same step in float32 (`_agreement`), the largest batches by a straight line through the peaks
(`_largest`), and provenance.
"""

import dataclasses
import datetime
import math
import statistics
import sys
from collections.abc import Callable, Iterator

import common
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import mse_loss

from stage1 import adapter as adapters
from stage1 import objectives, store
from stage1.baselines import Adapter
from stage1.compress import fit_pca, variance
from stage1.config import StudyConfig, load_preset
from stage1.corpus.prompts import token_counts
from stage1.loss_parts import ExampleBatch, ObjectiveContext
from stage1.model import engine, loading
from stage1.scoring.tables import markdown_table
from stage1.training.gradients import term_gradients
from stage1.training.loop import set_up, take_step
from stage1.training.microbatches import TrainingError

POOL = 512  # examples to draw batches from
WARM_UP = 3  # steps, which also compile
NOW = "packed, compiled"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Step = Callable[[ExampleBatch], object]


def examples(vocabulary: int, config: StudyConfig) -> ExampleBatch:
    """Draw prompts and answers of SQuAD-like lengths."""
    rng = np.random.default_rng(0)
    longest, share = config.max_prompt_tokens, 1 / np.arange(1, vocabulary + 1)
    ids = rng.permutation(vocabulary)

    def text(low: int, high: int) -> list[int]:
        drawn = rng.choice(vocabulary, rng.integers(low, high + 1), p=share / share.sum())
        return ids[drawn].tolist()

    prompts = [text(longest * 100 // 256, longest) for _ in range(POOL)]
    return ExampleBatch(prompts, [text(2, 8) for _ in range(POOL)])


def batch_of(pool: ExampleBatch, size: int, step: int) -> ExampleBatch:
    return pool.select([(step * size + i) % POOL for i in range(size)])


def matmul_rate(size: int) -> float:
    """Return the FLOP/s of a product of square matrices, by the median of twenty."""
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in "ab")
    times = [common.seconds(DEVICE, torch.matmul, a, b) for _ in range(25)]
    return 2 * size**3 / statistics.median(times[5:])


def as_found_step(context: ObjectiveContext, adapter, optimizer, batch: ExampleBatch) -> None:
    """Take the analysed training step, line by line."""
    tokens, real = objectives.pad_in_place(batch, context, gap=True)
    begin, model = context.config.max_prompt_tokens, context.lm.model
    original = context.lm.embed(tokens.ids[:, :begin])
    rebuilt = adapter(context.codebook[tokens.ids[:, :begin]])
    error = mse_loss(rebuilt[real[:, :begin]], original[real[:, :begin]].float())
    whole = torch.cat([rebuilt.to(original.dtype), context.lm.embed(tokens.ids[:, begin:])], dim=1)
    ce = model(inputs_embeds=whole, attention_mask=real.long(), labels=tokens.ids).loss
    optimizer.zero_grad()
    (error + ce).backward()
    optimizer.step()
    model.zero_grad(set_to_none=True)


def timed(step: Step, pool: ExampleBatch, batch: int, steps: int) -> dict:
    """Return seconds per step, examples and real tokens per second, and peak memory."""
    torch.cuda.empty_cache()
    common.reset_peak(DEVICE)
    batches = [batch_of(pool, batch, number) for number in range(steps + WARM_UP)]
    seconds = [common.seconds(DEVICE, step, taken) for taken in batches][WARM_UP:]
    tokens = sum(sum(map(len, [*one.prompts, *one.answers])) for one in batches[WARM_UP:])
    return {
        "seconds": statistics.median(seconds),
        "slowest": max(seconds),
        "examples_per_s": batch * steps / sum(seconds),
        "tokens_per_s": tokens / sum(seconds),
        "peak_GB": common.peak(DEVICE) / 1e9,
    }


def attempt(name: str, step: Step, bench: "Bench", batch: int, steps: int) -> dict:
    bench.loop = None if name == "as found" else bench.loop
    try:
        row = timed(step, bench.pool, batch, steps)
        size = bench.loop.microbatch_size if bench.loop else None
        row |= {"passes": math.ceil(batch / size) if size else 1}
    except (torch.OutOfMemoryError, TrainingError):
        row = {"note": "out of memory"}
    print(name, batch, row, flush=True)
    return {"step": name, "batch": batch} | row


class Bench:
    """One language model, with what every step of it shares."""

    def __init__(self, config: StudyConfig):
        plain = config.replace(compiled=False, matmul="native", recomputed=0.0)
        self.lm = loading.load(plain)
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

    def adapter(self, config: StudyConfig) -> Adapter:
        return adapters.make(self.compression, self.table, self.counts, config)

    def step(self, config: StudyConfig) -> Step:
        """Return one step of the project's training loop."""
        self.loop = set_up(self.adapter(config), self.context(config), 1_000, None)
        return lambda batch: take_step(self.loop, batch)

    def as_found(self, config: StudyConfig) -> Step:
        self.lm.model.requires_grad_(True)
        adapter = self.adapter(config)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1.0e-4)
        return lambda batch: as_found_step(self.context(config), adapter, optimizer, batch)

    def gradient(self, config: StudyConfig, batch: ExampleBatch) -> tuple[float, torch.Tensor]:
        """Return the cross-entropy of the gold answers and its gradient at the adapter."""
        adapter = self.adapter(config)
        terms = objectives.answer_ce(adapter, batch, self.context(config))
        gradients = term_gradients(terms, list(adapter.parameters()), keep_graph=False)
        return float(terms["cross_entropy"].value.detach()), gradients["cross_entropy"]


def steps_of(bench: Bench, config: StudyConfig, batches: list, readings: dict) -> Iterator[tuple]:
    """Yield name, step and batch size of each measurement; the model changes on the way to fp8."""
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
    """Return the largest batches that take at most 90 % of this card and of one of 85 GB.

    Extrapolates a straight line through the peaks of the batches that fitted in one pass.
    """
    gpu = DEVICE.type == "cuda"
    card = torch.cuda.get_device_properties(0).total_memory / 1e9 if gpu else math.nan
    rows = []
    for name, steps in table[table["passes"] == 1].groupby("step", sort=False):
        if len(steps) < 2:
            continue
        slope, base = np.polyfit(steps["batch"], steps["peak_GB"], 1)
        row = {"step": name, "base_GB": base, "GB_per_example": slope, "card_GB": card}
        for on, size in (("this card", card), ("85 GB", 85)):
            row[f"largest on {on}"] = (0.9 * size - base) // slope
        rows.append(row)
    return pd.DataFrame(rows)


def agreement(readings: dict[str, tuple[float, torch.Tensor]]) -> pd.DataFrame:
    """Return loss and gradient error of each path against float32, once that is measured."""
    if "float32" not in readings:
        return pd.DataFrame()
    loss, exact = readings["float32"]
    rows = []
    for name, (value, gradient) in readings.items():
        row = {"path": name, "loss": value, "loss_difference": value - loss}
        row |= {"gradient_error": float((gradient - exact).norm() / exact.norm())}
        cosine = torch.cosine_similarity(gradient.double(), exact.double(), dim=0)
        rows.append(row | {"cosine": float(cosine)})
    return pd.DataFrame(rows)


def main() -> None:
    options = {"preset": "llama31_8b", "batches": [16, 32, 48, 64, 96, 128, 256], "steps": 8}
    given = common.parser(__doc__, "", **options).parse_args()
    config = load_preset(given.preset).replace(
        shape_only=given.preset == "llama31_8b",
        learning_rate=1.0e-4,
        gradients_every=0,
        objective="option3_teacher_forced",
    )
    torch.manual_seed(0)
    rate = matmul_rate(8_192 if DEVICE.type == "cuda" else 512)
    bench = Bench(config)
    model = bench.lm.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    in_layers = sum(p.numel() for p in engine.decoder_layers(model).parameters())
    about = {
        "matmul_TFLOP_per_s": rate / 1e12,
        "parameters": parameters,
        "parameters_in_layers": in_layers,
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
    }
    store.write_record(given.out / "train_step.json", config, about)
    rows, readings = [], {}
    for name, step, batch in steps_of(bench, config, given.batches, readings):
        rows.append(attempt(name, step, bench, batch, given.steps))
        table = pd.DataFrame(rows)
        tokens = 4 * table["tokens_per_s"] / rate
        table["of_matmul_rate"] = parameters * tokens
        table["of_matmul_rate_layers_only"] = in_layers * tokens
        results = {"": table, "_largest": largest_batches(table), "_agreement": agreement(readings)}
        for suffix, result in results.items():
            result.to_csv(given.out / f"train_step{suffix}.csv", index=False, float_format="%.5g")
    for result in results.values():
        print(markdown_table(result.round(4)))


if __name__ == "__main__":
    main()
