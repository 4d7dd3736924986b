"""One study: data, language model and compression, prepared once; then adapters trained and evaluated in it.

Notebooks and the plain commands of `sweep` call the same functions here and write the same records.
"""

import json
import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from jaxtyping import Float, Int64
from torch import Tensor

from stage1 import adapter as adapters
from stage1 import data, language_model, memory, objectives, processes, scoring, store
from stage1.adapter import Adapter
from stage1.compress import Compression, fit_pca, random_projection, variance
from stage1.config import StudyConfig, require
from stage1.evaluate import evaluate, evaluate_floors, reconstruction, untrained_conditions
from stage1.language_model import FrozenLM
from stage1.objectives import Setting
from stage1.prompts import Encoded, encode, token_counts
from stage1.train import Progress, curve_table, train

LEARNING_RATES = Path(__file__).parent / "assets" / "learning_rates.csv"
FALLBACK_RATE = 1.0e-3


@dataclass(frozen=True)
class Study:
    """What all adapters of a config share."""

    config: StudyConfig
    lm: FrozenLM
    encoded: dict[str, Encoded]
    """The splits `train`, `selection` and `test`."""
    counts: Int64[np.ndarray, " V"]
    """How often each token occurs in the training prompts."""
    compression: Compression

    @cached_property
    def codebook(self) -> Float[Tensor, "V K"]:
        return self.compression.compress(self.lm.embedding_table)

    @cached_property
    def settled(self) -> StudyConfig:
        """The config with what it leaves open decided: a batch size of `auto`, and the learning rate."""
        config = self.config if self.config.batch_size != "auto" else self.config.replace(batch_size=batch_size(self))
        return config.replace(learning_rate=learning_rate(config))

    def test_counts(self) -> Int64[np.ndarray, " V"]:
        return token_counts(self.encoded["test"].prompts, len(self.counts))

    def untrained(self) -> dict[str, Tensor | None]:
        """Tables of the conditions that need no training."""
        table, counts, config = self.lm.embedding_table, torch.from_numpy(self.counts), self.config
        control = random_projection(table, counts, config.compressed_width, config.data_seed)
        return untrained_conditions(self.lm, self.compression, control)


def prepare(config: StudyConfig) -> Study:
    """Load and encode everything that the config names; the objective is looked up first, for its error comes cheap."""
    objectives.find(config.objective)
    if config.batch_size == "auto" and language_model.choose_device(config.device).type == "cpu":
        raise ValueError("batch_size='auto': expected a number where there is no GPU whose memory could be measured")
    lm = language_model.load(config)
    encoded = {
        split: encode(data.rows(config, split), lm.tokenizer, config, training=split == "train")
        for split in data.SPLITS
    }
    allowed = "at least one whose answer is not cut"
    require(len(encoded["train"]) > 0, "train_examples", config.train_examples, allowed)
    counts = token_counts(encoded["train"].prompts, len(lm.embedding_table))
    compression = fit_pca(lm.embedding_table, torch.from_numpy(counts), config.compressed_width, config.weighting)
    return Study(config, lm, encoded, counts, compression)


def learning_rate(config: StudyConfig) -> float:
    """The config's own, or the one with the highest F1 on the selection split among those that were tried.

    Trials are looked up for the same language model, objective, adapter and width: those of the config's preset,
    whatever budget it has been given since, or else those of the budget nearest in optimizer steps. Where nothing like
    it was tried, 0.001.
    """
    if config.learning_rate is not None:
        return config.learning_rate
    same = ["language_model", "objective", "initialisation", "output_scaling", "compressed_width"]
    trials = pd.read_csv(LEARNING_RATES)
    trials = trials[(trials[same] == [getattr(config, name) for name in same]).all(axis=1)]
    if (trials["preset"] == config.preset).any():
        trials = trials[trials["preset"] == config.preset]
    if trials.empty:
        return FALLBACK_RATE
    steps = config.epochs * config.train_examples / config.batch_size
    distance = (np.log(trials["epochs"] * trials["train_examples"] / trials["batch_size"]) - np.log(steps)).abs()
    nearest = trials[distance == distance.min()]
    return float(nearest.groupby("learning_rate")["selection_f1"].mean().idxmax())


def batch_size(study: Study) -> int:
    """What `batch_size: auto` comes to: the one measured before for this adapter, or else the largest that fits now."""
    path = store.adapter_folder(study.config) / "batch_size.json"
    if not path.exists():
        probe = study.config.replace(batch_size=memory.GRAIN, learning_rate=FALLBACK_RATE)
        found = memory.largest_batch(lambda: new_adapter(study), setting(study, probe), study.encoded["train"])
        if processes.rank() == 0:
            store.write_json(path, {"batch_size": found})
        processes.wait()
    return store.read_json(path)["batch_size"]


def setting(study: Study, config: StudyConfig | None = None) -> Setting:
    """What the objectives are given in this study, besides adapter and batch; by its own config, unless by another."""
    spread = variance(study.lm.embedding_table, torch.from_numpy(study.counts))
    return Setting(study.lm, study.codebook, config or study.settled, spread)


def new_adapter(study: Study) -> Adapter:
    """The study's adapter before its first step."""
    return adapters.make(study.compression, study.lm.embedding_table, torch.from_numpy(study.counts), study.config)


def train_adapter(study: Study, resumable: bool = True) -> tuple[Adapter, Progress]:
    """A new adapter, trained by the study's config and watched on its selection split.

    Where `resumable`, it writes checkpoints to its folder and takes up the one it finds there.

    Raises FrozenError if the language model changed.
    """
    adapter = new_adapter(study)
    checkpoint = store.adapter_folder(study.config) / "checkpoint.pt" if resumable else None
    with study.lm.unchanged():
        progress = train(
            adapter,
            setting(study),
            study.encoded["train"],
            study.counts,
            lambda trained: watch(study, trained),
            checkpoint,
        )
    return adapter, progress


def watch(study: Study, adapter: Adapter) -> dict[str, float]:
    """Means on the selection split: F1 and EM of free-running answers, and the teacher-forced measures."""
    if not len(study.encoded["selection"]):
        return {}
    table = adapters.decode(adapter, study.codebook)
    scored = evaluate(study.lm, study.encoded["selection"], "selection", table, study.config, description="")
    return {name: float(scored[name].mean()) for name in ("f1", "em", "ended", *scoring.TEACHER_FORCED)}


def test_adapter(study: Study, adapter: Adapter) -> tuple[pd.DataFrame, dict[str, float]]:
    """The adapter's answers to the test questions, one row per example, and its reconstruction of their tokens."""
    table = adapters.decode(adapter, study.codebook)
    scored = evaluate(study.lm, study.encoded["test"], study.config.objective, table, study.config)
    return scored, reconstruction(study.lm.embedding_table, table, study.test_counts())


def test_untrained(study: Study) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """Answers to the test questions under every condition that needs no training, the floors among them, and the
    reconstruction of the prompt's tokens where a condition rebuilds them."""
    lm, config, counts = study.lm, study.config, study.test_counts()
    tables = study.untrained()
    answers = [evaluate(lm, study.encoded["test"], name, table, config) for name, table in tables.items()]
    answers.append(evaluate_floors(lm, data.rows(config, "test"), config))
    rebuilt = {n: reconstruction(lm.embedding_table, table, counts) for n, table in tables.items() if table is not None}
    return pd.concat(answers), rebuilt


def write_adapter(study: Study, adapter: Adapter, progress: Progress, scored: pd.DataFrame, rebuilt: dict) -> Path:
    """Save adapter, curves, answers and, last of all, the record that tells the run is done; returns its path."""
    folder, config = store.adapter_folder(study.config), study.config
    curve = curve_table(progress)
    adapters.save(adapter, folder, config, study.lm)
    store.write_table(folder / "curve.parquet", curve)
    store.write_table(folder / "selection.parquet", pd.DataFrame(progress.selection))
    store.write_table(folder / "answers.parquet", scored)
    if progress.gradients:
        store.write_table(folder / "gradients.parquet", pd.DataFrame(progress.gradients))
    tokens = [name for name in curve.columns if name.endswith("_tokens")]
    results = {
        "parameters": adapters.parameter_count(adapter),
        "learning_rate": float(curve["learning_rate"].max()),
        "steps": progress.step,
        "examples_seen": int(curve["examples"].sum()),
        "tokens_supervised": {name.removesuffix("_tokens"): int(curve[name].sum()) for name in tokens},
        "seconds": float(curve["seconds"].sum()),
        "selection": progress.selection[-1],
        "test": scoring.summary(scored, ["condition"]).to_dict("records")[0],
        "reconstruction": rebuilt,
    }
    path = store.write_record(folder / "record.json", config, results)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return path


def obtain(study: Study) -> Path:
    """The record of the study's adapter, in its folder: the committed one where it is of this very run, and otherwise
    made now, training and test, in as many processes as the config asks for. An adapter that took a GPU is shown on any
    machine."""
    committed, config = store.committed_adapter(study.config), study.config
    path = store.adapter_folder(config) / "record.json"
    if committed is not None:
        shutil.copytree(committed, path.parent, dirs_exist_ok=True)
    elif config.processes > 1:
        path.unlink(missing_ok=True)  # of another version of the code: processes leave a finished run as it is
        processes.start(config)
    else:
        adapter, progress = train_adapter(study)
        write_adapter(study, adapter, progress, *test_adapter(study, adapter))
    return path


def run(config: StudyConfig, study: Study | None = None) -> Path:
    """Train and test one adapter, start to record; what has a record already is left as it is. Resumes a checkpoint."""
    path = store.adapter_folder(config) / "record.json"
    if not path.exists():
        study = replace(study, config=config) if study else prepare(config)
        adapter, progress = train_adapter(study)
        tested = test_adapter(study, adapter)
        if processes.rank() == 0:
            write_adapter(study, adapter, progress, *tested)
        processes.wait()
    return path


def main() -> None:
    """One of the processes that `processes.start` starts. A second training of the same adapter waits for the first."""
    config = StudyConfig(**json.loads(sys.argv[1]))
    processes.end_with_parents()
    folder = store.adapter_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "training.lock") if processes.rank() == 0 else nullcontext():
        processes.join(cpu=config.device == "cpu")
        run(config)
        processes.wait()


if __name__ == "__main__":
    main()
