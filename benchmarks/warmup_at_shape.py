"""How long does the reconstruction warm-up take at the shape of Llama-3.1-8B, and where is it flat?

    python benchmarks/warmup_at_shape.py                 # on a GPU; 100 s in all
    python benchmarks/warmup_at_shape.py --vocabulary 4096 --width 128 --compressed 16 \
        --prompts 640 --steps 60 --out /tmp/w.csv        # does it run?

One random table with a real spectrum and the preset's adapter. Learning rates are tried first, each
on a short schedule; the best is used from there on, whatever `Setting` varies. Rows with fewer
steps `taken` than their schedule has measure speed alone.

`fvu` is the weighted error of the entries of the first and the last step taken. After the last step
of a schedule, `table_fvu` is that of the whole table and `token_fvu` that of all training tokens.
`flat_seconds` is the time of the first reading within 2 % of the last one; all readings are in
`..._curve.csv`. `times_per_prompt` compares seconds per decoded row with the same objective prompt
by prompt in float32, `times_at_same_precision` at the row's own precision; `times_per_step`
compares seconds per optimizer step, in float32.
"""

import argparse
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import common
import option1
import pandas as pd
import torch
from option1 import Problem
from torch import Tensor, nn
from vocabulary import power_law

from stage1.adapter import CHUNK
from stage1.config import StudyConfig, load_preset
from stage1.model import engine
from stage1.pretrain.optimizer import muon_update
from stage1.scoring.tables import markdown_table
from stage1.training.stacked import StackedAdapters
from stage1.training.warmup import entry_weights, step_functions

RATES = [3.0e-2, 1.0e-2, 3.0e-3, 1.0e-3]
MODES = ["captured", "eager", "compiled"]
FLAT = 1.02
CAPTURED_AFTER = 5  # steps; the first ones allocate, compile and capture
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Setting:
    """One row: what is varied."""

    batch: int
    """Vocabulary entries per step; 0 takes the whole table."""
    steps: int
    """Length of the schedule."""
    rate: float
    precision: str = "tf32"
    """`bfloat16` is autocast, with float32 weights."""
    mode: str = "captured"
    """`captured` in a CUDA graph, `eager`, or `compiled` and captured."""
    optimizer: str = "AdamW"
    """Or `Muon` for the matrices."""
    taken: int = 0
    """Steps taken; 0 takes all."""


def bfloat16(device: torch.device) -> torch.autocast:
    """Return autocast without its cache, which would hand old weights to a captured step."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


class MuonForMatrices:
    """An optimizer's step with Muon for the stacked matrices, and the given one for the rest."""

    def __init__(self, stack: StackedAdapters):
        self.rest, self.decay = stack.optimizer, stack.optimizer.param_groups[0]["weight_decay"]
        self.matrices = [one for one in stack.parameters if one.dim() == 3]
        self.averages = [torch.zeros_like(one) for one in self.matrices]

    @torch.no_grad()
    def step(self) -> None:
        rate = self.rest.param_groups[0]["lr"]
        for matrix, average in zip(self.matrices, self.averages, strict=True):
            muon_update(matrix, matrix.grad, average, rate, 0.95, self.decay)
            matrix.grad = None
        self.rest.step()

    def zero_grad(self) -> None:
        self.rest.zero_grad()


def make_step(
    problem: Problem, setting: Setting
) -> tuple[StackedAdapters, nn.Module, Callable[[int], None], Callable[[], Tensor]]:
    """Return a new adapter in a stack, the adapter, and what prepares and takes a step."""
    context, device = problem.context, problem.context.lm.device
    config = context.config.replace(warmup_batch=setting.batch, warmup_rate=setting.rate)
    config, adapter = config.replace(warmup_steps=setting.steps), problem.new_adapter()
    capturable, rates = device.type == "cuda", [setting.rate]
    stack = StackedAdapters([adapter], [config], rates, setting.steps, capturable)
    if setting.optimizer == "Muon":
        stack.optimizer = MuonForMatrices(stack)  # type: ignore[assignment]
    if setting.precision == "bfloat16":
        stack.decode = bfloat16(device)(stack.decode)  # type: ignore[method-assign]
    if setting.mode == "compiled":
        stack.decode = torch.compile(stack.decode, dynamic=False)  # type: ignore[method-assign]
    weights = entry_weights(problem.counts, config.warmup_uniform, len(problem.counts))
    prepare, captured = step_functions(stack, replace(context, config=config), weights)
    take = captured.function if setting.mode == "eager" else captured
    return stack, adapter, prepare, take


class Curves:
    """The readings of all rows in one table, written with each row."""

    def __init__(self, out: Path):
        self.path, self.rows = out.with_name(f"{out.stem}_curve.csv"), []

    def add(self, setting: Setting, curve: list[dict]) -> None:
        self.rows += [asdict(setting) | reading for reading in curve]
        pd.DataFrame(self.rows).to_csv(self.path, index=False, float_format="%.5g")


def measure(problem: Problem, setting: Setting, curves: Curves, limit: float) -> dict:
    """Take the setting's steps, `limit` seconds at most, and return its row."""
    device, curve = problem.context.lm.device, []
    common.reset_peak(device)
    stack, adapter, prepare, take = make_step(problem, setting)
    taken, begin = setting.taken or setting.steps, common.clock(device)
    first = min(CAPTURED_AFTER, taken - 1)
    for step in range(taken):
        if step == first:
            begin_steady = common.clock(device)
        prepare(step)
        with engine.tf32(setting.precision != "float32"):
            fvu = take()
        stack.schedule.step()
        if step % max(1, taken // 50) == 0 or step + 1 == taken:
            value, seconds = fvu.item(), common.clock(device) - begin
            curve.append({"step": step, "seconds": seconds, "fvu": value})
            if step > first and seconds > limit:
                break
    done = common.clock(device)
    curves.add(setting, curve)
    row = {"done": step + 1, "seconds": done - begin, "peak_GB": common.peak(device) / 1e9}
    row |= {"ms_per_step": 1000 * (done - begin_steady) / (step + 1 - first)}
    if step + 1 == setting.steps:
        stack.write_back()
        row |= flattening(curve) | {"token_fvu": problem.fvu(adapter)}
        row |= {"table_fvu": table_fvu(problem, adapter)}
    return row | {"first_fvu": curve[0]["fvu"], "fvu": curve[-1]["fvu"]}


@torch.no_grad()
def table_fvu(problem: Problem, adapter: nn.Module) -> float:
    """Return the warm-up's own error: fvu over the whole table by the weights of its entries."""
    context, table, error = problem.context, problem.context.lm.embedding_table, 0.0
    weights = entry_weights(problem.counts, context.config.warmup_uniform, len(table))
    parts = [one.split(CHUNK) for one in (context.codebook, table, weights.to(table.device))]
    for compressed, rows, share in zip(*parts, strict=True):
        squares = (adapter(compressed) - rows.float()).square().mean(1)
        error += float(squares.double() @ share)
    return error / context.variance


def flattening(curve: list[dict]) -> dict:
    """Return step and seconds of the first reading within 2 % of the last."""
    flat = next(row for row in curve if row["fvu"] <= FLAT * curve[-1]["fvu"])
    return {"flat_step": flat["step"], "flat_seconds": flat["seconds"]}


def per_prompt(problem: Problem, precision: str) -> dict:
    """Time a few steps of the same objective over padded prompts, three more untimed."""
    size, device = problem.context.config.batch_size, problem.context.lm.device
    few = replace(problem, encoded=problem.encoded.first(8 * size))
    with bfloat16(device) if precision == "bfloat16" else nullcontext():
        run = option1.run(few, "per prompt", "float32" if precision == "float32" else "tf32")
    about = {"path": "per prompt", "precision": precision, "batch": size, "done": run["steps"]}
    about |= {"seconds": run["seconds"], "peak_GB": run["peak_GB"]}
    per_step = {"ms_per_step": 1000 * run["seconds"] / run["steps"]}
    return about | per_step | {"rows_per_step": run["tokens"] / run["steps"]}


def settings_to_try(given: argparse.Namespace, batch: int) -> list[Setting]:
    """Return short schedules of the learning rates."""
    return [Setting(batch, max(1, given.steps // 20), rate) for rate in given.rates]


def settings(given: argparse.Namespace, batch: int, best: float) -> list[Setting]:
    """Return the other rows, the most telling first; speed alone is measured on few steps."""
    few, tenth = min(30, given.steps), max(1, given.steps // 10)
    preset = Setting(batch, given.steps, best)
    speeds = [("float32", "eager"), ("float32", "captured"), ("tf32", "eager")]
    return [
        *(replace(preset, precision=p, mode=mode, taken=few) for p, mode in speeds),
        preset,
        replace(preset, steps=tenth),
        replace(preset, steps=tenth, precision="bfloat16"),
        replace(preset, steps=tenth, optimizer="Muon"),
        replace(preset, steps=max(1, given.steps // 100), batch=0),
        replace(preset, batch=batch // 4),
        replace(preset, precision="bfloat16", mode="compiled", taken=few),
        replace(preset, steps=tenth, batch=4 * batch),
        replace(preset, precision="bfloat16"),
    ]


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Add the ratios to the rows prompt by prompt, where these were measured."""
    if "ms_per_step" not in table:
        return table
    per_row = table["ms_per_step"] / table["rows_per_step"]
    prompts = table["path"] == "per prompt"
    direct = per_row[prompts].set_axis(table["precision"][prompts])
    plain = prompts & (table["precision"] == "float32")
    table["times_per_prompt"] = direct.get("float32", float("nan")) / per_row
    table["times_at_same_precision"] = table["precision"].map(direct) / per_row
    table["times_per_step"] = table["ms_per_step"][plain].sum() / table["ms_per_step"]
    if "steps" in table:
        table["seconds_of_schedule"] = table["ms_per_step"] * table["steps"] / 1000
    return table.round({"times_per_prompt": 1, "times_at_same_precision": 1, "times_per_step": 1})


def prepare(given: argparse.Namespace, preset: StudyConfig) -> tuple[Problem, dict]:
    """Return table, prompts and PCA, and the row that says how close its spectrum came."""
    config = preset.replace(
        compressed_width=given.compressed, epochs=1, learning_rate=1.0e-3, selection_every=0,
        checkpoint_every=0, packed=False, compiled=False,
    )  # fmt: skip
    problem, pca = option1.prepare(given, config)
    law, seconds = power_law(problem.pca.variances), pca["seconds"]
    about = {"path": "PCA", "precision": "float64", "seconds": seconds, "peak_GB": pca["peak_GB"]}
    return problem, about | {"token_fvu": pca["fvu"]} | law


def main() -> None:
    sizes = {"vocabulary": 128_256, "width": 4_096, "compressed": 512, "prompts": 10_000}
    rows = {"steps": 0, "batch": 0, "rates": RATES, "modes": MODES, "budget": 80.0}
    options = {"preset": "llama31_8b", "device": "auto"}
    given = common.parser(__doc__, "warmup_at_shape.csv", **sizes, **rows, **options).parse_args()
    preset = load_preset(given.preset)
    given.steps = given.steps or preset.warmup_steps
    batch = given.batch or min(preset.warmup_batch, given.vocabulary // 4)
    table, curves = common.Rows(given.out, given.budget, compared), Curves(given.out)
    problem, pca = prepare(given, preset)
    table.add(pca, dict)
    for precision in PRECISIONS:
        about = {"path": "per prompt", "precision": precision}
        table.add(about, partial(per_prompt, problem, precision))

    def run(setting: Setting) -> dict:
        about = {"path": "table", "rows_per_step": setting.batch or given.vocabulary}
        call = partial(measure, problem, setting, curves, table.left)
        return table.add(about | asdict(setting), call)

    tried = [run(one) for one in settings_to_try(given, batch)]
    best = min(tried, key=error_after)["rate"]
    for setting in settings(given, batch, best):
        if setting.mode in given.modes:
            run(setting)
    print(markdown_table(table.table.round(4)))


def error_after(row: dict) -> float:
    """Return the error after a row's last step; infinite where there is none."""
    error = row.get("table_fvu", math.inf)
    return error if math.isfinite(error) else math.inf


if __name__ == "__main__":
    main()
