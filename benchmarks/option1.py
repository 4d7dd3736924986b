"""Fix option 1 from the vocabulary table and token counts, against the same objective prompt by prompt, in one run.

    python benchmarks/option1.py                 # Llama-3.1-8B's shape, on a GPU
    python benchmarks/option1.py --vocabulary 4096 --width 256 --compressed 32 --prompts 640     # seconds on a CPU

No language model: its table is random bfloat16 in clusters, with a decaying spectrum and rows of norm 0.55, its
prompts Zipf tokens (the exponent fits SQuAD: about 2,800 distinct ones in a batch of 11,500). Both paths go through
`stage1.train` with the same adapter, seed, schedule and batch size, after a warm-up that is not timed; fvu is exact,
over all training tokens, in float32 throughout. `times_per_prompt` and `fvu_difference` (relative) compare with the
per-prompt path at the same precision, `times_per_prompt_float32` with that path in float32. Peak memory is the GPU's,
or all of the process so far. Writes `benchmarks/results/option1.csv`.
"""

import argparse
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn.functional import embedding

from stage1 import adapter as adapters
from stage1 import compress, store
from stage1.adapter import Adapter
from stage1.compress import Compression
from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded, token_counts
from stage1.model.language_model import choose_device
from stage1.objectives import (
    OBJECTIVES,
    ExampleBatch,
    ObjectiveContext,
    Term,
    Terms,
    TokenCounts,
    join,
    mse,
)
from stage1.pretrain.model_card import markdown_table
from stage1.training import loop

RESULTS = Path(__file__).parent / "results" / "option1.csv"
PATHS = {"from counts": "option1_reconstruction", "per prompt": "per_prompt"}
PRECISIONS = {"float32": "highest", "tf32": "high"}
COLUMNS = [
    "path", "precision", "steps", "tokens", "seconds", "times_per_prompt", "times_per_prompt_float32", "fvu",
    "fvu_difference", "peak_GB",
]  # fmt: skip
ROWS = 8_192  # of the table at a time, where fvu is measured


@dataclass(frozen=True)
class Vocabulary:
    """All that reconstruction reads of a language model."""

    embedding_table: Float[Tensor, "V D"]
    pad_token: int = 0

    @property
    def device(self) -> torch.device:
        return self.embedding_table.device

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return embedding(ids, self.embedding_table)


def per_prompt(adapter: nn.Module, batch: ExampleBatch, context: ObjectiveContext) -> Terms:
    """Option 1 with a prompt as a prompt: embed, compress and rebuild every slot, and mask the padding's error."""
    rows = padded_batch(
        batch.prompts, [[]] * len(batch.prompts), context.lm.pad_token, context.lm.device
    )
    original = context.lm.embed(rows.ids).float()
    rebuilt = adapter((original - adapter.mean) @ adapter.components.T)
    error = (rebuilt - original).square().mean(-1)
    value = (error * rows.is_prompt).sum() / rows.is_prompt.sum()
    return {"reconstruction": Term(value / context.variance, sum(map(len, batch.prompts)))}


OBJECTIVES["per_prompt"] = per_prompt


def random_table(vocabulary: int, width: int, compressed: int) -> Float[Tensor, "V D"]:
    """Bfloat16 rows of norm 0.55 in 4K clusters, more than a linear map to K dimensions can tell apart: an adapter has
    something to learn."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4 * compressed, width, generator=generator)
    table = torch.randn(vocabulary, width, generator=generator).mul_(0.3**0.5)
    table.add_(
        centres[torch.randint(len(centres), (vocabulary,), generator=generator)], alpha=0.7**0.5
    )
    spectrum = torch.arange(1, width + 1) ** -0.35
    return table.mul_(0.55 * spectrum / spectrum.norm()).bfloat16()


def random_prompts(vocabulary: int, prompts: int) -> Encoded:
    """Prompts of 100 to 256 tokens of Zipf frequencies; a quarter of the vocabulary may occur."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(vocabulary)[: vocabulary // 4]
    shares = 1 / (np.arange(1, len(ids) + 1) + 2.7) ** 1.2
    lengths = rng.integers(100, 257, prompts)
    tokens = rng.choice(ids, lengths.sum(), p=shares / shares.sum())
    rows = [part.tolist() for part in np.split(tokens, lengths.cumsum()[:-1])]
    names = [str(i) for i in range(prompts)]
    return Encoded(names, names, [[""]] * prompts, rows, [[0]] * prompts, shortened=0, dropped=0)


@dataclass(frozen=True)
class Problem:
    """What both paths share."""

    context: ObjectiveContext
    pca: Compression
    encoded: Encoded
    counts: Int64[np.ndarray, " V"]

    def adapter(self) -> Adapter:
        """A new one, which starts exactly at the PCA inverse."""
        table = self.context.lm.embedding_table
        return adapters.make(self.pca, table, torch.from_numpy(self.counts), self.context.config)

    @torch.no_grad()
    def fvu(self, adapter: nn.Module) -> float:
        counts = torch.from_numpy(self.counts).to(self.context.lm.device)
        used = counts.nonzero().squeeze(1)
        terms = [
            mse(adapter, TokenCounts(rows, counts[rows]), self.context, "fvu")
            for rows in used.split(ROWS)
        ]
        return (
            sum(term.value.item() * term.tokens for term in terms)
            / int(counts.sum())
            / self.context.variance
        )


def prepare(given: argparse.Namespace, config: StudyConfig) -> tuple[Problem, dict]:
    """Table and prompts on the device with their PCA, and the PCA's row of the results."""
    table = random_table(given.vocabulary, given.width, given.compressed).to(
        choose_device(given.device)
    )
    encoded = random_prompts(given.vocabulary, given.prompts)
    counts = token_counts(encoded.prompts, given.vocabulary)
    pca, row = fit(table, counts, given.compressed)
    context = ObjectiveContext(
        Vocabulary(table),
        pca.compress(table),
        config,
        compress.variance(table, torch.from_numpy(counts)),
    )
    problem = Problem(context, pca, encoded, counts)
    return problem, row | {"fvu": problem.fvu(problem.adapter())}


def fit(
    table: Float[Tensor, "V D"], counts: Int64[np.ndarray, " V"], width: int
) -> tuple[Compression, dict]:
    """Exact PCA from counts where the table is. On a GPU a first fit is the warm-up."""
    for _ in range(2 if table.is_cuda else 1):
        pca, measured = timed(
            table.device, compress.fit_pca, table, torch.from_numpy(counts), width
        )
    about = {
        "path": f"PCA, {table.device.type}",
        "precision": "float64",
        "tokens": int(counts.sum()),
    }
    return pca, about | measured


def timed(device: torch.device, call: Callable, *arguments) -> tuple[Any, dict]:
    """What the call returns, its seconds until the device is done, and the peak memory in GB."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    result = call(*arguments)
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    peak = (
        torch.cuda.max_memory_allocated()
        if gpu
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return result, {"seconds": seconds, "peak_GB": peak / 1e9}


def run(problem: Problem, path: str, precision: str, steps: int | None = None) -> dict:
    """One training, or its first steps extrapolated, after three steps of another adapter that warm the device up."""
    config, encoded = problem.context.config.replace(objective=PATHS[path]), problem.encoded
    whole = config.epochs * loop.steps_per_epoch(config, len(encoded))
    once = config.replace(epochs=1)
    torch.set_float32_matmul_precision(PRECISIONS[precision])
    fit_adapter(problem, problem.adapter(), once, encoded.first(3 * config.batch_size))
    if steps:
        config, encoded = once, encoded.first(steps * config.batch_size)
    adapter, device = problem.adapter(), problem.context.lm.device
    progress, measured = timed(device, fit_adapter, problem, adapter, config, encoded)
    torch.set_float32_matmul_precision("highest")
    measured["seconds"] *= whole / progress.step
    tokens = sum(row["reconstruction_tokens"] for row in progress.curve)
    left = math.nan if steps else problem.fvu(adapter)
    return {
        "path": path,
        "precision": precision,
        "steps": progress.step,
        "tokens": tokens,
        "fvu": left,
    } | measured


def fit_adapter(
    problem: Problem, adapter: Adapter, config: StudyConfig, encoded: Encoded
) -> loop.Progress:
    context = replace(problem.context, config=config)
    return loop.train(adapter, context, encoded, problem.counts, watch=lambda adapter: {})


def compare(rows: list[dict]) -> pd.DataFrame:
    table = pd.DataFrame(rows).astype({"steps": "Int64"})
    direct = table[table["path"] == "per prompt"].set_index("precision")
    table["times_per_prompt"] = table["precision"].map(direct["seconds"]) / table["seconds"]
    table["times_per_prompt_float32"] = direct["seconds"]["float32"] / table["seconds"]
    table.loc[table["steps"].isna(), "times_per_prompt_float32"] = math.nan  # PCA trains nothing
    table["fvu_difference"] = table["fvu"] / table["precision"].map(direct["fvu"]) - 1
    digits = {
        "seconds": 3,
        "times_per_prompt": 1,
        "times_per_prompt_float32": 1,
        "fvu": 6,
        "fvu_difference": 6,
    }
    return table[COLUMNS].round(digits | {"peak_GB": 2})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {
        "vocabulary": 128_256,
        "width": 4_096,
        "compressed": 512,
        "prompts": 10_000,
        "epochs": 3,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--learning-rate", type=float, default=1.0e-3)
    parser.add_argument("--cpu-pca", action="store_true", help="time the PCA on the CPU too")
    parser.add_argument(
        "--per-prompt-steps", type=int, help="steps per prompt, at most an epoch, instead of all"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    config = StudyConfig(
        compressed_width=given.compressed,
        epochs=given.epochs,
        learning_rate=given.learning_rate,
        reconstruction_term="fvu",  # at these norms the gradients of mse are no larger than AdamW's epsilon
        selection_every=0,
        checkpoint_every=0,
    )
    problem, row = prepare(given, config)
    rows = [row]
    if given.cpu_pca:
        rows.append(
            fit(problem.context.lm.embedding_table.cpu(), problem.counts, given.compressed)[1]
        )
    for precision in PRECISIONS if problem.context.lm.device.type == "cuda" else ["float32"]:
        rows.append(run(problem, "from counts", precision))
        rows.append(run(problem, "per prompt", precision, given.per_prompt_steps))
    table = compare(rows)
    store.traced(table).to_csv(given.results, index=False)
    print(markdown_table(table))


if __name__ == "__main__":
    main()
