"""What the processes of `several_gpus.py` compute; the first of them appends rows to a file.

    python -m torch.distributed.run --standalone --nproc-per-node=2 \\
        benchmarks/several_gpus_worker.py JOB OPTIONS

`several_gpus.py` starts this and gives the options.
"""

import statistics
from unittest import mock

import common
import pandas as pd
import torch
from accelerate.utils import gather_object
from several_gpus_jobs import SMALL, Job, relative, run_job
from train_step import Bench, batch_of, timed

from stage1.config import StudyConfig, load_preset
from stage1.corpus.data import rows as data_rows
from stage1.corpus.prompts import encode
from stage1.machine import processes
from stage1.model import engine, loading, sharding
from stage1.model.greedy import greedy_ids
from stage1.study import preparation
from stage1.training.batches import examples_at
from stage1.training.gradients import flat, vector_sum
from stage1.training.loop import Loop, set_up, train
from stage1.training.microbatches import gradients_at_parameters

UNEVEN = 13  # examples of a last batch, which two processes cannot halve


def of_step(preset: str, device: str) -> StudyConfig:
    """Return the config of `train_step.py`'s "packed, compiled", as far as the preset compiles."""
    return load_preset(preset).replace(
        shape_only=preset == "llama31_8b",
        objective="option3_teacher_forced",
        learning_rate=1.0e-4,
        gradients_every=0,
        packed=True,
        device=device,
    )


def worst(row: dict) -> dict:
    """Return the readings of the slowest process and of the one with the highest peak."""
    rows = gather_object([row]) if processes.world_size() > 1 else [row]
    table = pd.DataFrame(rows)
    lowest = table[["examples_per_s", "tokens_per_s"]].min().to_dict()
    return table[["seconds", "slowest", "peak_GB"]].max().to_dict() | lowest


def all_reduce_seconds(loop: Loop, terms: int) -> float:
    """Return the time in which the gradients of one step are summed over the processes."""
    size = sum(parameter.numel() for parameter in loop.adapter.parameters())
    gradient = torch.zeros(size, device=loop.context.lm.device)
    device = gradient.device
    times = [common.seconds(device, processes.all_reduce, gradient) for _ in range(12)]
    return terms * statistics.median(times[2:])


def measured(job: Job, bench: Bench, config: StudyConfig, batch: int) -> dict:
    """Return a step's readings, with several processes also without their communication."""
    processes.barrier()
    row = worst(timed(bench.step(config), bench.pool, batch, job.steps))
    if processes.world_size() > 1:
        row["all_reduce_s"] = all_reduce_seconds(bench.loop, terms=2)
        with mock.patch.object(processes, "all_reduce", lambda tensor: tensor):
            row["seconds_alone"] = timed(bench.step(config), bench.pool, batch, job.steps)[
                "seconds"
            ]
        row["seconds_alone"] = worst(row | {"seconds": row["seconds_alone"]})["seconds"]
    return row


def reading(loop: Loop, batch) -> dict[str, torch.Tensor]:
    """Return the loss of a batch and its gradient at the adapter, over all processes."""
    terms, gradients = gradients_at_parameters(loop, batch)
    weighted = [terms[name].weight * gradient for name, gradient in gradients.items()]
    loss = sum(float(term.weight * term.value) for term in terms.values())
    return {"loss": torch.tensor([loss]), "gradient": vector_sum(weighted)}


def training_step(job: Job) -> None:
    """Measure the step at each global batch; save loss and gradient of two, one of them uneven."""
    config = of_step(job.preset, job.device)
    processes.initialise(cpu=config.device == "cpu")
    bench = Bench(config)
    engine.configure(bench.lm.model, config)
    for batch in job.batches:
        row = measured(job, bench, config, batch)
        job.emit(case="training step", gpus=processes.world_size(), batch=batch, **row)
    bench.step(config)
    for size in (job.batches[0], UNEVEN):
        batch = batch_of(bench.pool, size, 0)
        job.save(f"batch of {size}.pt", reading(bench.loop, batch))
    check_codebook(job, bench.codebook, job.preset)


def check_codebook(job: Job, codebook: torch.Tensor, name: str) -> None:
    """Every process fits the compression by itself, so equal inputs must give equal bits."""
    if processes.world_size() > 1:
        first = codebook.clone()
        processes.broadcast([first])
        differs = max(gather_object([float((codebook - first).abs().max())]))
        job.emit(case=f"codebook of {name} in every process", difference=differs, tolerance=0.0)


def small_training(job: Job) -> None:
    """Train on the shipped model in float32, with an uneven last batch; save what comes out."""
    config = SMALL.replace(device=job.device, train_examples=16 * 2 + UNEVEN, epochs=2)
    processes.initialise(cpu=config.device == "cpu")
    study = preparation.prepare(config)
    check_codebook(job, study.codebook, "almanac-lm")
    adapter, context = preparation.new_adapter(study), preparation.objective_context(study)
    encoded = study.encoded["train"]
    last = examples_at(config, encoded, 2)
    job.save(f"batch of {len(last)}.pt", reading(set_up(adapter, context, 6, None), last))
    progress = train(adapter, context, encoded, study.counts, lambda _: {})
    curve = pd.DataFrame(progress.curve)
    counted = ["examples", *(name for name in curve.columns if name.endswith("_tokens"))]
    tensors = {name: torch.tensor(curve[name].to_numpy()) for name in ("loss", *counted)}
    tensors["parameters"] = flat(list(adapter.parameters()))
    job.save(f"{len(curve)} steps.pt", tensors)


def sharded(job: Job) -> None:
    """Train with the model spread over all GPUs; on the shipped model, compare with one GPU."""
    if not torch.cuda.is_available():  # a rehearsal
        loading.choose_device = lambda _: torch.device("cpu")
        sharding.devices = lambda: [torch.device("cpu")] * job.gpus
    compare_answers(job)
    config, batch = of_step(job.preset, "sharded"), job.batches[0]
    bench = Bench(config)
    eager = config.replace(compiled=False)
    sharded_step(job, bench, eager, batch)
    bench.step(eager)
    for size in (batch, UNEVEN):
        job.save(f"batch of {size}.pt", reading(bench.loop, batch_of(bench.pool, size, 0)))
    if config.compiled:
        engine.configure(bench.lm.model, config)
        sharded_step(job, bench, config, batch)


def sharded_step(job: Job, bench: Bench, config: StudyConfig, batch: int) -> None:
    row = timed(bench.step(config), bench.pool, batch, job.steps)
    if torch.cuda.is_available():
        cards = range(torch.cuda.device_count())
        row["peak_GB"] = max(torch.cuda.max_memory_allocated(card) for card in cards) / 1e9
    case = "training step, model sharded" + (", compiled" if config.compiled else ", not compiled")
    job.emit(case=case, gpus=job.gpus, batch=batch, **row)


def compare_answers(job: Job) -> None:
    """Emit how hidden states and answers of the shipped model differ from those on one GPU."""
    config = SMALL.replace(device="sharded", test_examples=64)
    lms = [loading.load(config.replace(device=name)) for name in (job.device, "sharded")]
    encoded = encode(data_rows(config, "test"), lms[0].tokenizer, config, training=False)
    prompts = encoded.prompts
    answers = [greedy_ids(lm, prompts, lm.embed, config.max_new_tokens) for lm in lms]
    differ = sum(a != b for a, b in zip(*answers, strict=True)) / len(prompts)
    ids = torch.tensor([prompts[0]])
    marked = torch.ones(ids.shape, dtype=torch.bool, device=lms[0].device)
    tables = [lm.embedding_table.detach().cpu() for lm in lms]
    hidden = [lm.hidden(lm.embed(ids), marked).detach().cpu() for lm in lms]
    of = "almanac-lm sharded:"
    job.emit(case=f"{of} embeddings", difference=relative(*tables), tolerance=0.0)
    job.emit(case=f"{of} hidden states", difference=relative(*hidden), tolerance=1e-4)
    job.emit(case=f"{of} answers that differ", difference=differ, tolerance=0.0)


def main() -> None:
    run_job([training_step, small_training, sharded])


if __name__ == "__main__":
    main()
