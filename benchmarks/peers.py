"""The training step beside what people use, at the shape of Llama-3.1-8B, in one run.

    python benchmarks/peers.py                                          # minutes on a GPU
    python benchmarks/peers.py --preset quick --batches 4 8 --out /tmp/peers.csv    # does it run?

Every path trains the same adapter on the same random prompts of 100 to 256 tokens, by option 3:
reconstruction and cross-entropy of the answer, through a frozen language model. Each has a new
model of the same weights, and TF32 for the adapter.

- `transformers`: padded rows, logits everywhere, as its documentation has it
- `Liger-Kernel`: the same with its kernels, its loss included
- `packed, compiled`: ours
- `transformers, one row`: no padding; positions that start again separate the examples (sdpa)
- `flash attention`: the same row through flash-attn's variable-length kernel

What is not installed or runs out of memory is a row that says so. `ours_is_faster` divides our
examples per second by the row's, at the same batch. The path `generation`, off unless named,
compares answers of 20 tokens with `generate` and its compiled static cache.
"""

import gc
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import common
import pandas as pd
import torch
from torch.nn.functional import mse_loss
from train_step import DEVICE, Bench, Step, timed
from transformers import GenerationConfig
from transformers.models.llama import modeling_llama

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.loss_parts import ExampleBatch
from stage1.model import engine, loading
from stage1.model.greedy import greedy_ids, left_pad
from stage1.model.token_batch import TokenBatch, packed_batch, padded_batch
from stage1.scoring.tables import markdown_table

PLAIN, OURS = "transformers", "packed, compiled"
LIGER, ROW, FLASH = "Liger-Kernel", "transformers, one row", "flash attention"
STEPS = [PLAIN, LIGER, OURS, ROW, FLASH]
GENERATION = "generation"
PACKAGES = {LIGER: "liger-kernel", FLASH: "flash-attn"}
"""What a path needs besides transformers, by its name on the package index."""
PATCHED = ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP")
"""What Liger-Kernel replaces in transformers' module."""
NEW_TOKENS = 20


def renew(bench: Bench, config: StudyConfig) -> None:
    """Give the bench a new model of the same weights, made for these settings."""
    bench.lm = bench.table = bench.loop = None  # type: ignore[assignment]
    gc.collect()
    torch.cuda.empty_cache()
    bench.lm = loading.load(config)
    bench.table = bench.lm.embedding_table


def inputs_of(tokens: TokenBatch, is_packed: bool) -> dict:
    """Return what the model reads besides embeddings, and the answers as labels."""
    labels = tokens.ids.where(tokens.is_answer, -100)
    if is_packed:
        return {"position_ids": tokens.positions, "labels": labels}
    return {"attention_mask": (tokens.is_prompt | tokens.is_answer).long(), "labels": labels}


def usual_step(bench: Bench, config: StudyConfig, is_packed: bool, **options) -> Step:
    """Return option 3's step as one writes it with transformers; `options` go to the model."""
    lm, adapter, arrange = bench.lm, bench.adapter(config), (padded_batch, packed_batch)[is_packed]
    fused, rate = DEVICE.type == "cuda", config.learning_rate
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=rate, fused=fused)

    def step(batch: ExampleBatch) -> None:
        tokens = arrange(batch.prompts, batch.answers, lm.pad_token, lm.device)
        original, rebuilt = lm.embed(tokens.ids), adapter(bench.codebook[tokens.ids])
        error = mse_loss(rebuilt[tokens.is_prompt], original[tokens.is_prompt].float())
        inputs = torch.where(tokens.is_prompt[..., None], rebuilt.to(original.dtype), original)
        read = inputs_of(tokens, is_packed) | options
        ce = lm.model(inputs_embeds=inputs, use_cache=False, **read).loss
        optimizer.zero_grad()
        (error / bench.spread + ce).backward()
        optimizer.step()

    def with_tf32(batch: ExampleBatch) -> None:
        with engine.tf32(lm.model.dtype == torch.bfloat16):
            step(batch)

    return with_tf32


def check_installed(path: str) -> None:
    """Raise ImportError, with its name on the package index, where a path's package is missing."""
    module = {LIGER: "liger_kernel", FLASH: "flash_attn"}.get(path)
    if module and importlib.util.find_spec(module) is None:
        raise ImportError(f"{PACKAGES[path]} is not installed")


@contextmanager
def step_of(path: str, bench: Bench, config: StudyConfig) -> Iterator[Step]:
    """Yield the path's step on a new model. Raises ImportError where its package is missing."""
    if path == OURS:
        renew(bench, config.replace(compiled=True))
        yield bench.step(config)
        return
    before = {name: getattr(modeling_llama, name) for name in PATCHED}
    try:
        yield peers_step(path, bench, config.replace(packed=False, trim_last_layer=False))
    finally:
        for name, own in before.items():
            setattr(modeling_llama, name, own)


def peers_step(path: str, bench: Bench, plain: StudyConfig) -> Step:
    check_installed(path)
    renew(bench, plain)
    options = {}
    if path == LIGER:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(model=bench.lm.model)
        options = {"skip_logits": True}  # a frozen model is in evaluation mode
    if path == FLASH:
        bench.lm.model.set_attn_implementation("flash_attention_2")
    return usual_step(bench, plain, path in (ROW, FLASH), **options)


def measure_steps(table: common.Rows, path: str, bench: Bench, config: StudyConfig, given) -> None:
    """Add the path's rows, one per batch size; only one where it cannot be set up."""

    def measure(step: Step, batch: int) -> dict:
        row, loop = timed(step, bench.pool, batch, given.steps), bench.loop
        size = loop.microbatch_size if loop else None
        return row | {"passes": -(-batch // size) if size else 1}

    try:
        with step_of(path, bench, config) as step:
            for batch in given.batches:
                package = PACKAGES.get(path, "transformers")
                version = f"{package} {store.version(package)}"
                about = {"path": path, "batch": batch, "with": version}
                table.add(about, lambda batch=batch: measure(step, batch))
    except Exception as error:  # of the set-up; rows keep their own
        table.add({"path": path}, lambda error=error: raised(error))


def raised(error: Exception) -> dict:
    raise error


def decoders(bench: Bench) -> dict[str, Callable]:
    """Return our decoding and that of transformers, given a batch of prompts."""
    lm = bench.lm

    def static(prompts: list[list[int]]) -> torch.Tensor:
        ids, mask = (tensor.to(lm.device) for tensor in left_pad(prompts, lm.pad_token))
        settings = GenerationConfig(
            max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
            pad_token_id=lm.pad_token, eos_token_id=lm.end_tokens, cache_implementation="static",
        )  # fmt: skip
        inputs = {"inputs_embeds": lm.embed(ids), "attention_mask": mask.long()}
        return lm.model.generate(**inputs, generation_config=settings)

    def greedy(prompts: list[list[int]]) -> list[list[int]]:
        return greedy_ids(lm, prompts, lm.embed, NEW_TOKENS, share=False)

    return {"generate, static cache, compiled": static, "greedy decoding": greedy}


@torch.no_grad()
def measure_generation(table: common.Rows, bench: Bench, config: StudyConfig, given) -> None:
    """Add a row per decoder and batch size, after one untimed call."""
    renew(bench, config.replace(packed=False, compiled=False))
    for name, decode in decoders(bench).items():
        for batch in given.batches:
            prompts = list(bench.pool.prompts[:batch])

            def measure(prompts=prompts, decode=decode) -> dict:
                _, first = common.timed(DEVICE, decode, prompts)
                _, row = common.timed(DEVICE, decode, prompts)
                rate = {"examples_per_s": len(prompts) / row["seconds"]}
                return row | rate | {"first_call_seconds": first["seconds"]}

            table.add({"path": name, "batch": batch}, measure)


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Add our speed over the row's at the same batch."""
    if "examples_per_s" in table and "batch" in table:
        ours = table[table["path"] == OURS].set_index("batch")["examples_per_s"]
        is_step = table["path"].isin(STEPS)
        table["ours_is_faster"] = (table["batch"].map(ours) / table["examples_per_s"])[is_step]
    return table


def main() -> None:
    options = {"preset": "llama31_8b", "batches": [16, 32, 64], "steps": 3, "budget": 100.0}
    given = common.parser(__doc__, "peers.csv", **options, paths=STEPS).parse_args()
    config = load_preset(given.preset).replace(
        shape_only=given.preset == "llama31_8b", learning_rate=1.0e-4, gradients_every=0,
        objective="option3_teacher_forced", packed=True, compiled=True,
    )  # fmt: skip
    table = common.Rows(given.out, given.budget, compared)
    bench = Bench(config)
    for path in given.paths:
        if path == GENERATION:
            measure_generation(table, bench, config, given)
        else:
            measure_steps(table, path, bench, config, given)
    print(markdown_table(table.table.round(4)))


if __name__ == "__main__":
    main()
