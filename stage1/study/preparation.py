"""Data, language model and compression, prepared once for all adapters of a study."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stage1 import adapter as adapters
from stage1 import objectives, store
from stage1.baselines import Adapter
from stage1.compress import Compression, fit_pca, random_projection, variance
from stage1.config import StudyConfig
from stage1.corpus import data
from stage1.corpus.prompts import Encoded, encode, token_counts
from stage1.evaluation.conditions import untrained_conditions
from stage1.faults import carries_faults
from stage1.fields import require
from stage1.loss_parts import ObjectiveContext
from stage1.machine import processes
from stage1.model import loading
from stage1.model.language_model import FrozenLM
from stage1.study.rates import FALLBACK_RATE, learning_rate
from stage1.training import memory


@dataclass(frozen=True)
class Study:
    """What all adapters of a config share."""

    config: StudyConfig
    lm: FrozenLM
    encoded: dict[str, Encoded]
    """The splits `train`, `selection` and `test`."""
    counts: Int64[np.ndarray, " V"]
    """Occurrences of each token in the training prompts."""
    compression: Compression

    @cached_property
    def codebook(self) -> Float[Tensor, "V _"]:
        """What an adapter sees of every token; see `ObjectiveContext.codebook`."""
        if self.config.projection == "trained":
            return self.lm.embedding_table.float() - self.compression.mean
        return self.compression.compress(self.lm.embedding_table)

    @cached_property
    def resolved(self) -> StudyConfig:
        """The config with its open choices made: K, the batch size `auto`, the learning rate."""
        config = self.config.replace(compressed_width=self.compression.width)
        if config.batch_size == "auto":
            config = config.replace(batch_size=batch_size(self))
        return config.replace(learning_rate=learning_rate(config))

    def test_counts(self) -> Int64[np.ndarray, " V"]:
        return token_counts(self.encoded["test"].prompts, len(self.counts))

    def untrained(self) -> dict[str, Tensor | None]:
        """Return the tables of the conditions that need no training."""
        table, counts, config = self.lm.embedding_table, torch.from_numpy(self.counts), self.config
        control = random_projection(table, counts, self.compression.width, config.data_seed)
        return untrained_conditions(self.lm, self.compression, control)


@carries_faults
def prepare(config: StudyConfig, lm: FrozenLM | None = None) -> Study:
    """Load the language model, unless it is given, encode the data and fit the compression.

    Raises ValueError for an unknown objective, for batch size `auto` on a CPU (both before anything
    is loaded), and where no training example is left.
    """
    objectives.find(config.objective)
    measurable = loading.choose_device(config.device).type != "cpu"
    allowed = "a number where there is no GPU whose memory could be measured"
    require(config.batch_size != "auto" or measurable, "batch_size", config.batch_size, allowed)
    lm = lm or loading.load(config)
    encoded = {
        split: encode(data.rows(config, split), lm.tokenizer, config, training=split == "train")
        for split in data.SPLITS
    }
    allowed = "at least one whose answer is not cut"
    require(len(encoded["train"]) > 0, "train_examples", config.train_examples, allowed)
    table = lm.embedding_table
    counts = token_counts(encoded["train"].prompts, len(table))
    width, weighting = config.width(table.shape[1]), config.weighting
    used = slice(lm.token_rows)
    compression = fit_pca(table[used], torch.from_numpy(counts[used]), width, weighting)
    return Study(config, lm, encoded, counts, compression)


def batch_size(study: Study) -> int:
    """Return the largest batch that fits this adapter's training, measured once and recorded."""
    path = store.adapter_folder(study.config) / "batch_size.json"
    if not path.exists():
        probe = study.config.replace(batch_size=memory.GRAIN, learning_rate=FALLBACK_RATE)
        largest = memory.largest_batch(
            lambda: new_adapter(study), objective_context(study, probe), study.encoded["train"]
        )
        if processes.rank() == 0:
            store.write_json(path, {"batch_size": largest})
        processes.barrier()
    return store.read_json(path)["batch_size"]


def objective_context(study: Study, config: StudyConfig | None = None) -> ObjectiveContext:
    """Return what the objectives are given besides adapter and batch (default: `resolved`)."""
    spread = variance(study.lm.embedding_table, torch.from_numpy(study.counts))
    return ObjectiveContext(study.lm, study.codebook, config or study.resolved, spread)


@carries_faults
def new_adapter(study: Study) -> Adapter:
    """Return the study's untrained adapter."""
    table, counts = study.lm.embedding_table, torch.from_numpy(study.counts)
    return adapters.make(study.compression, table, counts, study.config)
