"""Fix option 1 from vocabulary table and token counts, against the same objective per prompt.

    python benchmarks/option1.py                 # Llama-3.1-8B's shape, on a GPU
    python benchmarks/option1.py --vocabulary 4096 --width 256 --compressed 32 --prompts 640   # CPU

There is no language model: its table is random bfloat16 in clusters, with the spectrum that
`benchmarks/vocabulary.py` fitted and rows of norm 0.55; its prompts are Zipf tokens (the exponent
fits SQuAD: about 2,800 distinct ones in a batch of 11,500). Both paths use the project's training
loop with the same adapter, seed, schedule and batch size, after an untimed warm-up; fvu is exact,
over all training tokens, in float32. `times_per_prompt` and `fvu_difference` (relative) compare
with the per-prompt path at the same precision, `times_per_prompt_float32` with that path in
float32. Peak memory is the GPU's, or that of the process so far.
"""

import argparse
import math
from dataclasses import dataclass, replace

import common
import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch import nn
from vocabulary import Vocabulary, random_prompts, random_table

from stage1 import adapter as adapters
from stage1 import compress, store
from stage1.baselines import Adapter
from stage1.compress import Compression
from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded, token_counts
from stage1.loss_parts import (
    ExampleBatch,
    ObjectiveContext,
    Reconstruction,
    Term,
    Terms,
    TokenCounts,
    reconstruction,
)
from stage1.model.loading import choose_device
from stage1.model.token_batch import padded_batch
from stage1.scoring.tables import markdown_table
from stage1.training.loop import Progress, train

PRECISIONS = {"float32": "highest", "tf32": "high"}
COLUMNS = [
    "path", "precision", "steps", "tokens", "seconds", "times_per_prompt",
    "times_per_prompt_float32", "fvu", "fvu_difference", "peak_GB",
]  # fmt: skip
ROWS = 8_192  # of the table at a time, for fvu


def per_prompt(adapter: nn.Module, batch: ExampleBatch, context: ObjectiveContext) -> Terms:
    """Option 1 on padded prompts: embed, compress and rebuild every token; mask the padding."""
    no_answers = [[]] * len(batch)
    tokens = padded_batch(batch.prompts, no_answers, context.lm.pad_token, context.lm.device)
    original = context.lm.embed(tokens.ids).float()
    rebuilt = adapter((original - adapter.mean) @ adapter.components.T)
    error = (rebuilt - original).square().mean(-1)
    value = (error * tokens.is_prompt).sum() / tokens.is_prompt.sum()
    return {"reconstruction": Term(value / context.variance, sum(map(len, batch.prompts)))}


# `answer_ce` reads examples; its function is replaced by the one above.
PATHS = {
    "from counts": ("option1_reconstruction", None),
    "per prompt": ("answer_ce", per_prompt),
}


@dataclass(frozen=True)
class Problem:
    """What both paths share."""

    context: ObjectiveContext
    pca: Compression
    encoded: Encoded
    counts: Int64[np.ndarray, " V"]

    def new_adapter(self) -> Adapter:
        """Return an adapter that starts exactly at the PCA inverse."""
        table = self.context.lm.embedding_table
        return adapters.make(self.pca, table, torch.from_numpy(self.counts), self.context.config)

    @torch.no_grad()
    def fvu(self, adapter: nn.Module) -> float:
        counts = torch.from_numpy(self.counts).to(self.context.lm.device)
        error = 0.0
        for rows in counts.nonzero().squeeze(1).split(ROWS):
            part = Reconstruction(TokenCounts(rows, counts[rows]))
            term = reconstruction(part, adapter, self.context, "fvu")
            error += term.value.item() * term.tokens
        return error / int(counts.sum()) / self.context.variance


def prepare(given: argparse.Namespace, config: StudyConfig) -> tuple[Problem, dict]:
    """Return table and prompts on the device with their PCA, and the PCA's row of the results."""
    encoded = random_prompts(given.vocabulary, given.prompts)
    counts = token_counts(encoded.prompts, given.vocabulary)
    on_device = torch.from_numpy(counts).to(choose_device(given.device))
    table = random_table(on_device, given.width, given.compressed)
    arguments = table, on_device, given.compressed
    compress.fit_pca(*arguments)  # warm-up
    pca, measured = common.timed(table.device, compress.fit_pca, *arguments)
    spread = compress.variance(table, on_device)
    context = ObjectiveContext(Vocabulary(table), pca.compress(table), config, spread)
    problem = Problem(context, pca, encoded, counts)
    row = {"path": f"PCA, {table.device.type}", "precision": "float64", "tokens": counts.sum()}
    return problem, row | measured | {"fvu": problem.fvu(problem.new_adapter())}


def run(problem: Problem, path: str, precision: str) -> dict:
    """Time one training, after three warm-up steps of another adapter."""
    objective, function = PATHS[path]
    config, encoded = problem.context.config.replace(objective=objective), problem.encoded

    def fit(adapter: Adapter, config: StudyConfig, encoded: Encoded) -> Progress:
        context, selection = replace(problem.context, config=config), lambda adapter: {}
        return train(adapter, context, encoded, problem.counts, selection, objective=function)

    torch.set_float32_matmul_precision(PRECISIONS[precision])
    fit(problem.new_adapter(), config.replace(epochs=1), encoded.first(3 * config.batch_size))
    adapter, device = problem.new_adapter(), problem.context.lm.device
    progress, measured = common.timed(device, fit, adapter, config, encoded)
    torch.set_float32_matmul_precision("highest")
    return measured | {
        "path": path,
        "precision": precision,
        "steps": progress.step,
        "tokens": sum(row["reconstruction_tokens"] for row in progress.curve),
        "fvu": problem.fvu(adapter),
    }


def compare(rows: list[dict]) -> pd.DataFrame:
    table = pd.DataFrame(rows).astype({"steps": "Int64"})
    direct = table[table["path"] == "per prompt"].set_index("precision")
    table["times_per_prompt"] = table["precision"].map(direct["seconds"]) / table["seconds"]
    table["times_per_prompt_float32"] = direct["seconds"]["float32"] / table["seconds"]
    table.loc[table["steps"].isna(), "times_per_prompt_float32"] = math.nan  # PCA trains nothing
    table["fvu_difference"] = table["fvu"] / table["precision"].map(direct["fvu"]) - 1
    digits = {"seconds": 3, "fvu": 6, "fvu_difference": 6, "peak_GB": 2}
    digits |= {"times_per_prompt": 1, "times_per_prompt_float32": 1}
    return table[COLUMNS].round(digits)


def main() -> None:
    sizes = {"vocabulary": 128_256, "width": 4_096, "compressed": 512, "prompts": 10_000}
    training = {"epochs": 3, "learning_rate": 1.0e-3, "device": "auto"}
    given = common.parser(__doc__, "option1.csv", **sizes, **training).parse_args()
    config = StudyConfig(
        compressed_width=given.compressed,
        epochs=given.epochs,
        learning_rate=given.learning_rate,
        reconstruction_term="fvu",  # mse has gradients no larger than AdamW's epsilon here
        selection_every=0,
        checkpoint_every=0,
    )
    problem, row = prepare(given, config)
    gpu = problem.context.lm.device.type == "cuda"
    precisions = PRECISIONS if gpu else ["float32"]
    rows = [run(problem, path, precision) for precision in precisions for path in PATHS]
    table = compare([row, *rows])
    store.traced(table).to_csv(given.out, index=False)
    print(markdown_table(table))


if __name__ == "__main__":
    main()
