"""Why does `as_found` fail? Its labels on the padding and the gap that padding leaves before the answer, taken apart.

    python benchmarks/as_found_padding.py FOLDER       # on a GPU: two minutes on an H200
    python benchmarks/as_found_padding.py              # prints the committed table

The two terms of `as_found` in all four layouts, from the PCA inverse, calibrated, at the full budget: the learning
rate of each layout is chosen on the selection split (seed 100), then three seeds are tested. Writes
`benchmarks/results/as_found_padding.csv`; trials and records go to FOLDER.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from stage1 import objectives
from stage1.config import load_preset
from stage1.objectives import OBJECTIVES, ExampleBatch, ObjectiveContext, Terms
from stage1.pretrain.model_card import markdown_table
from stage1.report import results
from stage1.study import sweep

RESULTS = Path(__file__).parent / "results" / "as_found_padding.csv"
RATES = (3.0e-3, 1.0e-2, 3.0e-2)
LAYOUTS = {
    "no_labels_on_padding": (True, False),
    "no_gap": (False, True),
    "no_padding": (False, False),
}
"""Whether padding stands between prompt and answer, and whether it is labelled; `as_found` does both."""


def layout(
    adapter: nn.Module,
    batch: ExampleBatch,
    context: ObjectiveContext,
    gap: bool,
    labelled: bool,
    name: str,
) -> Terms:
    """The terms of `as_found` with the padding elsewhere: behind the answer, without labels, or both."""
    lm, config = context.lm, context.config
    if gap:
        rows, real = objectives.padded(batch, context)
    else:
        length = config.max_prompt_tokens + config.max_answer_tokens
        room = [length - len(p) - len(a) for p, a in zip(batch.prompts, batch.answers, strict=True)]
        answers = [
            answer + [lm.pad_token] * left for answer, left in zip(batch.answers, room, strict=True)
        ]
        rows = objectives.join(batch.prompts, answers, lm.pad_token, lm.device)
        real = (
            torch.arange(length, device=lm.device)
            < length - torch.tensor(room, device=lm.device)[:, None]
        )
    supervised = torch.ones_like(real) if labelled else real
    tokens = objectives.prompt_tokens(batch.prompts, lm.device)
    return {
        "reconstruction": objectives.mse(adapter, tokens, context, name),
        "cross_entropy": objectives.token_ce(adapter, rows, supervised, context, name, real),
    }


# At import, so that every process of a sweep knows them.
OBJECTIVES |= {
    n: partial(layout, gap=gap, labelled=labels, name=n) for n, (gap, labels) in LAYOUTS.items()
}


def measure(folder: Path) -> pd.DataFrame:
    """One row per run of the new layouts: the rate from trials on the selection split, then three seeds."""
    base = load_preset("full").replace(gradients_every=0, selection_every=0)
    trials = [
        base.replace(objective=n, learning_rate=rate, seed=100) for n in LAYOUTS for rate in RATES
    ]
    sweep.sweep("trials", trials, folder / "padding_trials.csv", os.cpu_count())
    tried = pd.read_csv(folder / "padding_trials.csv")
    best = tried.loc[tried.groupby("objective")["selection_f1"].idxmax()].set_index("objective")[
        "learning_rate"
    ]
    runs = [
        base.replace(objective=n, learning_rate=float(best[n]), seed=seed)
        for n in LAYOUTS
        for seed in range(3)
    ]
    sweep.sweep("runs", runs, folder / "padding_runs.csv", os.cpu_count())
    return pd.read_csv(folder / "padding_runs.csv")


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per layout, `as_found` from the committed runs: means over seeds, and the standard deviation of F1."""
    committed = results.committed("full", "runs_10000x3.csv").set_index(results.ADAPTER)
    found = committed.loc[("as_found", "pca_inverse", "calibrated")].assign(objective="as_found")
    rows = []
    for (gap, labels), name in [
        ((True, True), "as_found"),
        *((value, n) for n, value in LAYOUTS.items()),
    ]:
        group = pd.concat([found, runs]).query("objective == @name")
        row = {
            "objective": name,
            "padding before the answer": gap,
            "labels on padding": labels,
            "seeds": len(group),
        }
        row |= group[["learning_rate", "selection_f1", "f1"]].mean().to_dict()
        rows.append(
            row | {"f1_sd": group["f1"].std(), "em": group["em"].mean(), "fvu": group["fvu"].mean()}
        )
    return pd.DataFrame(rows).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", help="where trials and records of a new measurement go"
    )
    given = parser.parse_args()
    if given.folder:
        summary(measure(given.folder)).to_csv(RESULTS, index=False)
    print(markdown_table(pd.read_csv(RESULTS)))


if __name__ == "__main__":
    main()
