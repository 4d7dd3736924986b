"""Made-up records of the sweeps over the gallery, in which every setting has a given F1."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from stage1.report import fault_records

EMPTY = ("slice_of_generated_ids", "original")
"""Settings whose answers are empty."""
SEEDS, ARTICLES, QUESTIONS = 3, 8, 3


def write(
    folder: Path, table: str, f1: dict[str, float], default: float, diverged: Iterable[str] = ()
) -> None:
    """Write `faults/<table>.csv` and `.parquet`: every setting has its F1, or the default one.

    Its runs err a little by question, article and seed, and no F1 is below 0 or above 100. The
    first run of a setting in `diverged` has no scores.
    """
    rows, answers = [], []
    for row in fault_records.settings(table).to_dict("records"):
        setting = row.pop("setting")
        for seed in range(SEEDS):
            key = row | {"learning_rate": float(row["learning_rate"]), "seed": seed}
            if setting in diverged and seed == 0:
                rows.append(key | {"diverged": "step 3: cross_entropy=nan"})
                continue
            scored = answers_of(f1.get(setting, default), seed).assign(**key)
            answers.append(scored)
            shown = itertools.chain(*fault_records.GIVEN_AWAY_BY.values())
            columns = [*fault_records.SYMPTOMS, *shown]
            symptoms = dict.fromkeys(columns, 0.5) | {"empty": float(setting in EMPTY)}
            rows.append(key | symptoms | {"f1": scored["f1"].mean(), "em": 1.0})
    (folder / "faults").mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / f"faults/{table}.csv", index=False)
    scores = pd.concat(answers, ignore_index=True).astype({"faults": "category"})
    scores.to_parquet(folder / f"faults/{table}.parquet", index=False)


def answers_of(f1: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    places = np.arange(ARTICLES * QUESTIONS)
    noise = rng.normal(0, 0.5, len(places)) + 0.2 * (seed - 1)
    scores = np.clip(f1 + noise, 0, 100) if f1 else 0.0 * noise
    return pd.DataFrame(
        {"id": places.astype(str), "title": (places // QUESTIONS).astype(str), "f1": scores}
    )


def write_all(folder: Path) -> None:
    """Write all five tables: a story with one zero, three failures, two that hide, one flatterer.

    `labels_on_padding` does more harm where the end token pads.
    """
    alone = {
        "slice_of_generated_ids": 0.0, "labels_on_padding": 40.0, "gap_before_answer": 30.0,
        "mask_of_ones": 20.0, "bfloat16_weights": 70.0, "no_end_token": 60.0, "f1_on_sets": 95.0,
    }  # fmt: skip
    write(folder, "added", alone, default=90.0, diverged=["xavier_start"])
    pads = {**alone, "labels_on_padding": 5.0}
    write(folder, "added_pad_is_end", pads, default=90.0)
    write(folder, "removed", {"slice_of_generated_ids": 2.0}, default=0.0)
    rest = {"labels_on_padding": 12.0, "gap_before_answer": 9.0, "f1_on_sets": 1.0}
    write(folder, "unsliced", rest, default=4.0)
    names = fault_records.settings("ladder")["setting"]
    write(folder, "ladder", {name: 90.0 * i / len(names) for i, name in enumerate(names)}, 0.0)
