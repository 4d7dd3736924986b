"""Why does `as_found` fail? Its labels on padding and the gap before the answer, one at a time.

    python benchmarks/as_found_padding.py FOLDER       # on a GPU: two minutes on an H200
    python benchmarks/as_found_padding.py              # prints the committed table

Trains `as_found` in its three other padding layouts, from the PCA inverse, calibrated, at the full
budget. The learning rate of each layout is chosen on the selection split (seed 100), then three
seeds are tested. Trials and records go to FOLDER. The row `as_found` is that of the committed runs.
"""

import os
from pathlib import Path

import common
import pandas as pd

from stage1.config import StudyConfig, load_preset
from stage1.report import results
from stage1.scoring.tables import markdown_table
from stage1.study import sweep

RATES = (3.0e-3, 1.0e-2, 3.0e-2)
LAYOUTS = {
    "as_found": (True, True),
    "no_labels_on_padding": (True, False),
    "no_gap": (False, True),
    "no_padding": (False, False),
}
"""Whether padding stands between prompt and answer, and whether it is labelled."""


def measure(folder: Path, preset: StudyConfig) -> pd.DataFrame:
    """Return one row per run: for each layout three seeds, at the best rate of its trials."""
    os.environ["STAGE1_RUNS"] = str(folder)
    base = preset.replace(objective="as_found", gradients_every=0, selection_every=0)
    layouts = [base.replace(padding_layout=name) for name in list(LAYOUTS)[1:]]
    trials = [one.replace(learning_rate=rate, seed=100) for one in layouts for rate in RATES]
    sweep.sweep("trials", trials, folder / "padding_trials.csv", os.cpu_count())
    tried = pd.read_csv(folder / "padding_trials.csv")
    best = tried.loc[tried.groupby("padding_layout")["selection_f1"].idxmax()]
    rates = best.set_index("padding_layout")["learning_rate"]
    runs = []
    for one in layouts:
        rate = float(rates[one.padding_layout])
        runs += [one.replace(learning_rate=rate, seed=seed) for seed in range(3)]
    sweep.sweep("runs", runs, folder / "padding_runs.csv", os.cpu_count())
    return pd.read_csv(folder / "padding_runs.csv")


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per layout: means over seeds, and the standard deviation of F1."""
    committed = results.committed("full", "runs_10000x3.csv").set_index(results.ADAPTER)
    as_found = committed.loc[("as_found", "pca_inverse", "calibrated")]
    runs = pd.concat([as_found.assign(padding_layout="as_found"), runs])
    rows = []
    for name, (gap, labels) in LAYOUTS.items():
        group = runs[runs["padding_layout"] == name]
        row = {"objective": name, "padding before the answer": gap, "labels on padding": labels}
        row |= {"seeds": len(group)}
        row |= group[["learning_rate", "selection_f1", "f1"]].mean().to_dict()
        row |= {"f1_sd": group["f1"].std()} | group[["em", "fvu"]].mean().to_dict()
        rows.append(row)
    return pd.DataFrame(rows).round(3)


def main() -> None:
    parser = common.parser(__doc__, "as_found_padding.csv", preset="full")
    parser.add_argument("folder", type=Path, nargs="?", help="measure anew, with records here")
    given = parser.parse_args()
    if given.folder:
        runs = measure(given.folder, load_preset(given.preset))
        summary(runs).to_csv(given.out, index=False)
    print(markdown_table(pd.read_csv(given.out)))


if __name__ == "__main__":
    main()
