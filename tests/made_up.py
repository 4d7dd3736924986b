"""Made-up records of a budget: any objective can win, any claim can turn."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from stage1.objectives import OBJECTIVES

ADAPTERS = list(itertools.product(("pca_inverse", "random"), ("calibrated", "unit_rms")))
F1 = {
    "as_found": 5.0,
    "option1_reconstruction": 50.0,
    "option2_prompt_ce": 30.0,
    "option2_on_policy": 70.0,
    "option3_teacher_forced": 73.0,
    "answer_ce": 73.0,
    "distill": 73.0,
}
RANDOM = 40.0
"""What a random start costs, in F1 points."""


def runs(
    f1: dict[str, float], examples: int = 10_000, epochs: int = 3, seeds: int = 3
) -> pd.DataFrame:
    """One row per objective, adapter and seed."""
    rows = []
    for objective, (start, scaling), seed in itertools.product(OBJECTIVES, ADAPTERS, range(seeds)):
        reached = max(1.0, f1[objective] - RANDOM * (start == "random")) + 0.2 * seed
        row = {
            "objective": objective,
            "initialisation": start,
            "output_scaling": scaling,
            "seed": seed,
        }
        row |= {"train_examples": examples, "epochs": epochs, "examples_seen": examples * epochs}
        row |= {
            "f1": reached,
            "em": reached - 5,
            "selection_f1": reached + 10 - 0.1 * (scaling == "unit_rms"),
        }
        row |= {
            "fvu": 1.2 - reached / 100,
            "mse": (1.2 - reached / 100) / 50,
            "ce_first": 5 - reached / 20,
        }
        rows.append(row | {"right_first": reached / 100, "right_later": 0.6})
    return pd.DataFrame(rows)


def scores(table: pd.DataFrame, articles: int = 12, questions: int = 3) -> pd.DataFrame:
    """Answers whose mean F1 is the run's, on the same questions for all runs."""
    places = list(itertools.product(range(articles), range(questions)))
    noise = np.random.default_rng(0).normal(0, 3, len(places))
    asked = pd.DataFrame(
        {"id": [f"{a}-{q}" for a, q in places], "title": [f"article {a}" for a, _ in places]}
    )
    asked["noise"] = noise - noise.mean()
    whole = table[["objective", "initialisation", "output_scaling", "seed", "f1", "em"]].merge(
        asked, how="cross"
    )
    return whole.assign(f1=whole["f1"] + whole["noise"]).drop(columns="noise")


def gradients(values: dict[str, float], share: float) -> pd.DataFrame:
    """Readings of both two-term objectives on every adapter, constant over training."""
    rows = []
    for objective in ("as_found", "option3_teacher_forced"):
        for (start, scaling), step, (term, value) in itertools.product(
            ADAPTERS, (0, 10, 20), values.items()
        ):
            own = share if term == "cross_entropy" else 1 - share
            row = {
                "objective": objective,
                "initialisation": start,
                "output_scaling": scaling,
                "seed": 0,
                "step": step,
            }
            row |= {
                "term": term,
                "value": value,
                "weight": 1.0,
                "cosine": 0.1,
                "embedding_cosine": 0.1,
            }
            row |= {
                "gradient_norm": 1.0,
                "embedding_gradient_norm": 1.0,
                "gradient_share": own,
                "step_share": own,
            }
            rows.append(row)
    return pd.DataFrame(rows)


def weights(table: pd.DataFrame) -> pd.DataFrame:
    """A small weight grid with both terms, and the two terms alone."""
    base = table[table["objective"] == "option3_teacher_forced"]
    fixed = [
        base.assign(reconstruction_weight=weight, reconstruction_term=term)
        for weight in (0.1, 1.0, 10.0)
        for term in ("mse", "fvu")
    ]
    alone = table[table["objective"].isin(["answer_ce", "option1_reconstruction"])]
    return pd.concat(
        [*fixed, alone.assign(reconstruction_weight=1.0, reconstruction_term="mse")],
        ignore_index=True,
    )


def balancing(table: pd.DataFrame) -> pd.DataFrame:
    """Both balancing rules on every adapter."""
    base = table[table["objective"] == "option3_teacher_forced"]
    return pd.concat(
        [base.assign(balancing=rule) for rule in ("equal_gradient_norms", "uncertainty")]
    )


def tables(
    f1: dict[str, float] | None = None,
    more: float = 1.0,
    codebook: float = 99.0,
    seconds=None,
    largest=None,
) -> dict:
    """Every table that `evidence.load` reads, by its file name. `more` is gained with four times the examples."""
    f1 = F1 | (f1 or {})
    full, grid = runs(f1), weights(runs(f1))
    shares = gradients({"reconstruction": 0.02, "cross_entropy": 0.5}, 0.95)
    one = shares[shares["objective"] == "option3_teacher_forced"]
    weighed = ["reconstruction_weight", "reconstruction_term"]
    untrained = {
        "text": 99.0,
        "embeddings": 99.0,
        "codebook": codebook,
        "pca_inverse": 2.0,
        "question_only": 3.0,
    }
    names = ("no_labels_on_padding", "no_gap", "no_padding")
    padding = {"as_found": f1["as_found"]} | dict.fromkeys(names, 60.0)
    cost = (
        dict.fromkeys(OBJECTIVES, 0.1)
        | {"option1_reconstruction": 0.01, "option2_on_policy": 0.3}
        | (seconds or {})
    )
    return {
        "runs_10000x3.csv": full,
        "runs_10000x3.parquet": scores(full),
        "untrained.csv": pd.DataFrame(
            {"condition": [*untrained, "shuffled_context"], "f1": [*untrained.values(), 2.0]}
        ),
        "runs_640x2.csv": runs(dict.fromkeys(f1, 3.0), 640, 2),
        "runs_2500x3.csv": runs({name: value / 2 for name, value in f1.items()}, 2_500),
        "runs_40000x3.csv": runs({name: value + more for name, value in f1.items()}, 40_000),
        "weights.csv": grid,
        "balancing.csv": balancing(full),
        "runs_10000x3.gradients.parquet": shares,
        "weights.gradients.parquet": one.merge(grid[weighed].drop_duplicates(), how="cross"),
        "as_found_padding.csv": pd.DataFrame(
            {"objective": padding.keys(), "f1": padding.values()}
        ).assign(learning_rate=0.01, fvu=0.7, seeds=3),
        "objective_cost.csv": pd.DataFrame(
            {"objective": cost.keys(), "seconds": cost.values()}
        ).assign(**{"q25": 0.1, "q75": 0.1, "times answer_ce": 1.0}),
        "train_step_largest.csv": pd.DataFrame(
            {"step": ["as found", "packed, compiled"], "largest on 85 GB": largest or (25, 102)}
        ),
    }


def write(folder: Path, **changes) -> Path:
    """The tables as files in `<folder>/full`."""
    (folder / "full").mkdir(parents=True, exist_ok=True)
    for name, table in tables(**changes).items():
        path = folder / "full" / name
        table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_parquet(
            path, index=False
        )
    return folder
