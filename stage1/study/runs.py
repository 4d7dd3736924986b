"""Adapters of a study: trained, tested, written down, or taken from the committed records.

Notebooks and the commands of `sweep` call the same functions here and write the same records.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from stage1 import adapter as adapters
from stage1 import store
from stage1.adapter import Adapter
from stage1.config import StudyConfig
from stage1.corpus import data
from stage1.evaluation.conditions import evaluate, evaluate_floors
from stage1.evaluation.reconstruction import reconstruction
from stage1.machine import processes
from stage1.scoring import tables
from stage1.study.preparation import Study, new_adapter, objective_context, prepare
from stage1.training.loop import Progress, curve_table, train


def train_adapter(study: Study, resumable: bool = True) -> tuple[Adapter, Progress]:
    """A new adapter, trained by the study's config and evaluated on its selection split.

    Where `resumable`, it writes checkpoints to its folder and takes up the one it finds there.

    Raises FrozenError if the language model changed.
    """
    adapter = new_adapter(study)
    checkpoint = store.adapter_folder(study.config) / "checkpoint.pt" if resumable else None
    with study.lm.unchanged():
        progress = train(
            adapter,
            objective_context(study),
            study.encoded["train"],
            study.counts,
            lambda trained: selection_scores(study, trained),
            checkpoint,
        )
    return adapter, progress


def selection_scores(study: Study, adapter: Adapter) -> dict[str, float]:
    """Means on the selection split: F1 and EM of free-running answers, and the teacher-forced measures."""
    if not len(study.encoded["selection"]):
        return {}
    table = adapters.decode(adapter, study.codebook)
    scored = evaluate(
        study.lm, study.encoded["selection"], "selection", table, study.config, description=""
    )
    return {
        name: float(scored[name].mean()) for name in ("f1", "em", "ended", *tables.TEACHER_FORCED)
    }


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
    answers = [
        evaluate(lm, study.encoded["test"], name, table, config) for name, table in tables.items()
    ]
    answers.append(evaluate_floors(lm, data.rows(config, "test"), config))
    rebuilt = {
        n: reconstruction(lm.embedding_table, table, counts)
        for n, table in tables.items()
        if table is not None
    }
    return pd.concat(answers), rebuilt


def write_adapter(
    study: Study, adapter: Adapter, progress: Progress, scored: pd.DataFrame, rebuilt: dict
) -> Path:
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
        "tokens_supervised": {
            name.removesuffix("_tokens"): int(curve[name].sum()) for name in tokens
        },
        "seconds": float(curve["seconds"].sum()),
        "selection": progress.selection[-1],
        "test": tables.summary(scored, ["condition"]).to_dict("records")[0],
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
        path.unlink(
            missing_ok=True
        )  # of another version of the code: processes leave a finished run as it is
        processes.launch(config)
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
        processes.barrier()
    return path
