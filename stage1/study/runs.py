"""The adapters of a study: trained, tested, recorded, or taken from the committed records.

Notebooks and sweeps call the same functions and write the same records.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from stage1 import adapter as adapters
from stage1 import store
from stage1.baselines import Adapter
from stage1.config import StudyConfig
from stage1.corpus import data
from stage1.evaluation.conditions import evaluate, evaluate_floors
from stage1.evaluation.reconstruction import reconstruction
from stage1.faults import carries_faults
from stage1.machine import processes
from stage1.scoring import tables
from stage1.study.preparation import Study, new_adapter, objective_context, prepare
from stage1.training.loop import Progress, curve_table, train
from stage1.training.warmup import warm_up


@carries_faults
def train_adapter(study: Study, resumable: bool = True) -> tuple[Adapter, Progress]:
    """Warm up and train a new adapter by the study's config, evaluated on the selection split.

    With `resumable`, checkpoints go to the adapter's folder and an existing one is resumed. Raises
    FrozenError if the language model changed.
    """
    adapter, context = new_adapter(study), objective_context(study)
    folder = store.adapter_folder(study.config)
    checkpoint = folder / "checkpoint.pt" if resumable else None
    is_started = checkpoint is not None and checkpoint.exists()
    with study.lm.unchanged():
        warmup: list[dict] = []
        if not is_started:
            saved = folder / "warmup.pt" if resumable and processes.rank() == 0 else None
            (warmup,) = warm_up([adapter], context, study.counts, checkpoint=saved)
            processes.broadcast(list(adapter.parameters()))
        progress = train(
            adapter,
            context,
            study.encoded["train"],
            study.counts,
            lambda trained: selection_scores(study, trained),
            checkpoint,
            warmup=warmup,
        )
    return adapter, progress


@carries_faults
def selection_scores(study: Study, adapter: Adapter) -> dict[str, float]:
    """Return means on the selection split: F1, EM and teacher-forced measures."""
    encoded = study.encoded["selection"]
    if not len(encoded):
        return {}
    table = adapters.decode(adapter, study.codebook)
    scored = evaluate(study.lm, encoded, "selection", table, study.config, description="")
    measures = ("f1", "em", "ended", *tables.TEACHER_FORCED)
    return {name: float(scored[name].mean()) for name in measures}


@carries_faults
def test_adapter(study: Study, adapter: Adapter) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return the adapter's scored answers to the test questions and its reconstruction of them."""
    table = adapters.decode(adapter, study.codebook)
    scored = evaluate(study.lm, study.encoded["test"], study.config.objective, table, study.config)
    return scored, reconstruction(study.lm.embedding_table, table, study.test_counts())


@carries_faults
def test_untrained(study: Study) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """Return the scored test answers of every condition that needs no training, floors included.

    The second result is the reconstruction of the prompt tokens, where a condition rebuilds them.
    """
    lm, config, counts = study.lm, study.config, study.test_counts()
    answers, rebuilt = [], {}
    for name, table in study.untrained().items():
        answers.append(evaluate(lm, study.encoded["test"], name, table, config))
        if table is not None:
            rebuilt[name] = reconstruction(lm.embedding_table, table, counts)
    answers.append(evaluate_floors(lm, data.rows(config, "test"), config))
    return pd.concat(answers), rebuilt


@carries_faults
def write_adapter(
    study: Study, adapter: Adapter, progress: Progress, scored: pd.DataFrame, rebuilt: dict
) -> Path:
    """Save adapter, curves and answers, then the record, and return the record's path.

    The record comes last: a run that has one is complete.
    """
    folder, config = store.adapter_folder(study.config), study.config
    curve = curve_table(progress)
    adapters.save(adapter, folder, config, study.lm)
    store.write_table(folder / "curve.parquet", curve)
    store.write_table(folder / "selection.parquet", pd.DataFrame(progress.selection))
    store.write_table(folder / "answers.parquet", scored)
    if progress.warmup:
        store.write_table(folder / "warmup.parquet", pd.DataFrame(progress.warmup))
    if progress.gradients:
        store.write_table(folder / "gradients.parquet", pd.DataFrame(progress.gradients))
    tokens = [name for name in curve.columns if name.endswith("_tokens")]
    results = {
        "parameters": adapters.parameter_count(adapter),
        "learning_rate": float(curve["learning_rate"].max()),
        "steps": progress.step,
        "examples_seen": int(curve["examples"].sum()),
        "tokens_supervised": {n.removesuffix("_tokens"): int(curve[n].sum()) for n in tokens},
        "seconds": float(curve["seconds"].sum()),
        "selection": progress.selection[-1],
        "test": tables.summary(scored, ["condition"]).to_dict("records")[0],
        "reconstruction": rebuilt,
    }
    if progress.warmup:
        results["warmup_fvu"] = progress.warmup[-1]["fvu"]
    path = store.write_record(folder / "record.json", config, results)
    for name in ("checkpoint.pt", "warmup.pt"):
        (folder / name).unlink(missing_ok=True)
    return path


def obtain(study: Study) -> Path:
    """Return the record of the study's adapter in its run folder.

    A committed adapter of the same run is copied, so that one trained on a GPU is shown on any
    machine. Otherwise the adapter is trained and tested now, in `config.processes` processes.
    """
    committed, config = store.committed_adapter(study.config), study.config
    path = store.adapter_folder(config) / "record.json"
    if committed is not None:
        shutil.copytree(committed, path.parent, dirs_exist_ok=True)
    elif config.processes > 1:
        path.unlink(missing_ok=True)  # the processes would keep it, even from older code
        processes.launch(config)
    else:
        adapter, progress = train_adapter(study)
        write_adapter(study, adapter, progress, *test_adapter(study, adapter))
    return path


def run(config: StudyConfig, study: Study | None = None) -> Path:
    """Train and test one adapter and return its record; a run with a record is left as it is.

    An interrupted run resumes from its checkpoint. A given study is used with this config.
    """
    path = store.adapter_folder(config) / "record.json"
    if not path.exists():
        study = replace(study, config=config) if study else prepare(config)
        adapter, progress = train_adapter(study)
        tested = test_adapter(study, adapter)
        if processes.rank() == 0:
            write_adapter(study, adapter, progress, *tested)
        processes.barrier()
    return path
