"""Random vocabulary tables with the spectrum of a real one, and prompts of their tokens.

    python benchmarks/vocabulary.py --english-data train-44-articles.json.xz

Fits a power law to the eigenvalues of the shipped readers' embedding tables, weighted by the tokens
of training prompts: eigenvalue i is proportional to i ** -exponent. Of the D eigenvalues the first
half is fitted; below it noise takes over. `spread` is the standard deviation of the logarithms
around the line. Random tables have the exponent of the English reader, whose line is straighter.
"""

from dataclasses import dataclass
from functools import cache

import common
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.functional import embedding

from stage1 import store
from stage1.compress import fit_pca
from stage1.config import StudyConfig, load_preset
from stage1.corpus import data
from stage1.corpus.prompts import Encoded, encode, token_counts
from stage1.model import loading
from stage1.scoring.tables import markdown_table

SPECTRUM = common.RESULTS / "spectrum.csv"
NORM = 0.55  # of a row of Llama-3.1-8B's table


@dataclass(frozen=True)
class Vocabulary:
    """What reconstruction reads of a language model."""

    embedding_table: Float[Tensor, "V D"]
    pad_token: int = 0

    @property
    def device(self) -> torch.device:
        return self.embedding_table.device

    @property
    def token_rows(self) -> int:
        return len(self.embedding_table)

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return embedding(ids, self.embedding_table)


def power_law(variances: Float64[Tensor, " D"]) -> dict[str, float]:
    """Fit a straight line to the logarithms of the first half of the descending eigenvalues."""
    values = variances[: len(variances) // 2].double().cpu().log().numpy()
    rank = np.log(np.arange(1, len(values) + 1))
    slope, start = np.polyfit(rank, values, 1)
    return {"exponent": -slope, "spread": float(np.std(values - slope * rank - start))}


@cache
def fitted_exponent() -> float:
    """Return the exponent of the English reader's token-weighted eigenvalues."""
    table = pd.read_csv(SPECTRUM).set_index(["language_model", "weighting"])
    return float(table["exponent"]["english", "token"])


def random_table(counts: Int[Tensor, " V"], width: int, compressed: int) -> Float[Tensor, "V D"]:
    """Draw bfloat16 rows in 4K clusters on the counts' device, their root mean square norm 0.55.

    A linear map to K dimensions cannot separate so many, so an adapter has something to learn. The
    rows are rotated and stretched until their token-weighted eigenvalues are the fitted power law.
    """
    device = counts.device
    options = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    centres = torch.randn(4 * compressed, width, **options)
    table = torch.randn(len(counts), width, **options).mul_(0.3**0.5)
    table.add_(centres[torch.randint(len(centres), (len(counts),), **options)], alpha=0.7**0.5)
    pca = fit_pca(table, counts, width)
    rank = torch.arange(1, width + 1, device=device, dtype=torch.float64)
    stretch = (rank ** -fitted_exponent() / pca.variances).sqrt().float()
    table = pca.compress(table).mul_(stretch)
    return table.mul_(NORM / table.square().sum(1).mean().sqrt()).bfloat16()


def random_prompts(vocabulary: int, prompts: int) -> Encoded:
    """Draw prompts of 100 to 256 Zipf tokens from a quarter of the vocabulary."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(vocabulary)[: vocabulary // 4]
    shares = 1 / (np.arange(1, len(ids) + 1) + 2.7) ** 1.2
    lengths = rng.integers(100, 257, prompts)
    tokens = rng.choice(ids, lengths.sum(), p=shares / shares.sum())
    rows = [part.tolist() for part in np.split(tokens, lengths.cumsum()[:-1])]
    names = [str(i) for i in range(prompts)]
    return Encoded(names, names, [[""]] * prompts, rows, [[0]] * prompts, shortened=0, dropped=0)


def measure(config: StudyConfig) -> list[dict]:
    """Return the power law of a reader's table under both weightings of PCA."""
    lm = loading.load(config)
    table, examples = lm.embedding_table, data.rows(config, "train")
    counts = token_counts(encode(examples, lm.tokenizer, config).prompts, len(table))
    width, rows = config.width(table.shape[1]), []
    for weighting in ("token", "vocabulary"):
        pca = fit_pca(table, torch.from_numpy(counts), width, weighting)
        about = {"language_model": config.language_model, "V": len(table), "D": table.shape[1]}
        about |= {"K": width, "weighting": weighting, "tokens": counts.sum()}
        rows.append(about | power_law(pca.variances) | {"fvu_of_pca": 1 - pca.kept})
    return rows


def main() -> None:
    options = {"english_data": "rajpurkar/squad", "examples": 5_000}
    given = common.parser(__doc__, SPECTRUM.name, **options).parse_args()
    english = load_preset("squad").replace(data=given.english_data)
    rows = []
    for config in (english, load_preset("full")):
        sizes = {"train_examples": given.examples, "selection_examples": 0, "device": "cpu"}
        rows += measure(config.replace(compressed_width="D/8", **sizes))
        table = pd.DataFrame(rows).round(4)
        store.traced(table).to_csv(given.out, index=False)
    print(markdown_table(table))


if __name__ == "__main__":
    main()
