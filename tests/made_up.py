"""Made-up records of a budget, in which any objective can win and any claim can turn."""

from pathlib import Path

import numpy as np
import pandas as pd

from stage1.config import StudyConfig
from stage1.names import OBJECTIVES
from stage1.report.controls import BASELINES, FIELDS, FULL, RECIPE_START, Controls
from stage1.report.evidence import Evidence

INITIALISATIONS, SCALINGS = ("pca_inverse", "random"), ("calibrated", "unit_rms")
OPTION3 = "option3_teacher_forced"
F1 = {
    "as_found": 5.0,
    "option1_reconstruction": 50.0,
    "option2_prompt_ce": 30.0,
    "option2_on_policy": 70.0,
    OPTION3: 73.0,
    "answer_ce": 73.0,
    "distill": 73.0,
}
"""F1 on the best adapter; an objective that is missing here has 20."""
BASELINE_F1 = {"affine": 40.0, "projection": 98.0, "control": 98.9, "soft": 99.0}
"""F1 of what is trained in place of the adapter, in the order of `BASELINES`."""
WIDTHS = (96, 48, 12, 6)
RANDOM = 40.0
"""F1 points that a random start costs."""


def product(**factors) -> pd.DataFrame:
    """Return one row per combination of levels."""
    index = pd.MultiIndex.from_product(factors.values(), names=factors)
    return index.to_frame(index=False)


def runs(
    f1: dict[str, float], examples: int = 10_000, epochs: int = 3, random: float = RANDOM
) -> pd.DataFrame:
    """Return one row per objective, adapter and seed."""
    table = product(
        objective=OBJECTIVES, initialisation=INITIALISATIONS, output_scaling=SCALINGS, seed=range(3)
    )
    best = table["objective"].map(lambda name: f1.get(name, 20.0))
    reached = (best - random * (table["initialisation"] == "random")).clip(1.0) + 0.2 * table[
        "seed"
    ]
    fvu = 1.2 - reached / 100
    return table.assign(
        train_examples=examples,
        epochs=epochs,
        examples_seen=examples * epochs,
        f1=reached,
        em=reached - 5,
        selection_f1=reached + 10 - 0.1 * (table["output_scaling"] == "unit_rms"),
        fvu=fvu,
        mse=fvu / 50,
        ce_first=5 - reached / 20,
        right_first=reached / 100,
        right_later=0.6,
        tokens=3.0,
        language_model="shipped",
        compressed_width=24,
    )


def scores(table: pd.DataFrame, articles: int = 12, questions: int = 3) -> pd.DataFrame:
    """Return answers to the same questions for all runs, with each run's mean F1."""
    asked = product(article=range(articles), question=range(questions)).astype(str)
    noise = np.random.default_rng(0).normal(0, 3, len(asked))
    asked = pd.DataFrame(
        {
            "id": asked["article"] + "-" + asked["question"],
            "title": "article " + asked["article"],
            "noise": noise - noise.mean(),
        }
    )
    run = ["objective", "initialisation", "output_scaling", "seed", "f1", "em", *FIELDS]
    run = [name for name in run if name in table]
    answers = table[run].merge(asked, how="cross")
    return answers.assign(f1=answers["f1"] + answers["noise"]).drop(columns="noise")


def gradients(values: dict[str, float], share: float) -> pd.DataFrame:
    """Return constant readings of both two-term objectives; `share` is cross-entropy's."""
    table = product(
        objective=("as_found", OPTION3),
        initialisation=INITIALISATIONS,
        output_scaling=SCALINGS,
        seed=[0],
        step=(0, 10, 20),
        term=values,
    )
    own = table["term"].map(lambda term: share if term == "cross_entropy" else 1 - share)
    table = table.assign(value=table["term"].map(values), gradient_share=own, step_share=own)
    constants = {"weight": 1.0, "cosine": 0.1, "embedding_cosine": 0.1}
    return table.assign(**constants, gradient_norm=1.0, embedding_gradient_norm=1.0)


def weights(table: pd.DataFrame) -> pd.DataFrame:
    """Return a small weight grid with both reconstruction terms, and the two terms alone."""
    grid = product(reconstruction_weight=(0.1, 1.0, 10.0), reconstruction_term=("mse", "fvu"))
    both = table[table["objective"] == OPTION3].merge(grid, how="cross")
    alone = table[table["objective"].isin(["answer_ce", "option1_reconstruction"])]
    alone = alone.assign(reconstruction_weight=1.0, reconstruction_term="mse")
    return pd.concat([both, alone], ignore_index=True)


def tables(
    f1: dict[str, float] | None = None,
    more: float = 1.0,
    codebook: float = 99.0,
    seconds: dict[str, float] | None = None,
    largest: tuple[int, int] = (25, 102),
    gain: float = 15.0,
    random: float = 1.0,
) -> dict[str, pd.DataFrame]:
    """Return every table that `evidence.load` reads, by file name, in the order of `Evidence`.

    `more` is the F1 gained with four times the examples, `gain` with a warm-up, and `random` what a
    random start then costs.
    """
    f1 = F1 | (f1 or {})
    full = runs(f1)
    warm = runs({name: value + gain for name, value in f1.items()}, random=random)
    warm["warmup_steps"] = 5_000
    grid = weights(full)
    readings = gradients({"reconstruction": 0.02, "cross_entropy": 0.5}, 0.95)
    option3 = readings[readings["objective"] == OPTION3]
    weighted = grid[["reconstruction_weight", "reconstruction_term"]].drop_duplicates()
    rules = pd.DataFrame({"balancing": ["equal_gradient_norms", "uncertainty"]})
    untrained = {"text": 99.0, "embeddings": 99.0, "codebook": codebook, "pca_inverse": 2.0}
    untrained |= {"question_only": 3.0, "shuffled_context": 2.0}
    padding = dict.fromkeys(("no_labels_on_padding", "no_gap", "no_padding"), 60.0)
    padding = {"as_found": f1["as_found"]} | padding
    cost = dict.fromkeys(OBJECTIVES, 0.1) | {"option1_reconstruction": 0.01}
    cost |= {"option2_on_policy": 0.3} | (seconds or {})
    return {
        "runs_10000x3.csv": full,
        "runs_10000x3.parquet": scores(full),
        "untrained.csv": by_name(
            "condition", f1=untrained, f1_low=untrained, f1_high=untrained
        ).assign(right_first=0.05, right_later=0.4),
        "runs_640x2.csv": runs(dict.fromkeys(f1, 3.0), 640, 2),
        "runs_2500x3.csv": runs({name: value / 2 for name, value in f1.items()}, 2_500),
        "runs_40000x3.csv": runs({name: value + more for name, value in f1.items()}, 40_000),
        "weights.csv": grid,
        "balancing.csv": full[full["objective"] == OPTION3].merge(rules, how="cross"),
        "runs_10000x3.gradients.parquet": readings,
        "weights.gradients.parquet": option3.merge(weighted, how="cross"),
        "as_found_padding.csv": by_name("objective", f1=padding).assign(
            learning_rate=0.01, fvu=0.7, seeds=3
        ),
        "objective_cost.csv": by_name("objective", seconds=cost).assign(
            **{"q25": 0.1, "q75": 0.1, "times answer_ce": 1.0}
        ),
        "train_step_largest.csv": pd.DataFrame(
            {"step": ["as found", "packed, compiled"], "largest on 85 GB": largest}
        ),
        "runs_warmup.csv": warm,
        "runs_warmup.parquet": scores(warm),
    }


def control_tables(changes: dict) -> dict[str, pd.DataFrame]:
    """Return every table that `controls.load` reads, by file name, in the order of `Controls`."""
    files = tables(**changes)
    warm, untrained = files["runs_warmup.csv"], files["untrained.csv"]
    other = warm.assign(language_model="other", f1=warm["f1"] - 5)
    return {
        "runs_warmup_471.csv": warm.assign(warmup_steps=471, f1=warm["f1"] - 1),
        "runs_models.csv": other,
        "runs_models.parquet": scores(other),
        "untrained_models.csv": untrained.assign(language_model="other"),
        "trials.csv": trials(),
        "runs_ratios.parquet": ratio_scores(warm),
        "untrained_ratios.csv": pd.concat(untrained.assign(compressed_width=K) for K in WIDTHS),
        "runs_baselines.parquet": baseline_scores(warm),
        "untrained.parquet": untrained_scores(),
    }


def usual() -> dict:
    return {name: getattr(FULL, name) for name in FIELDS}


def recipe(table: pd.DataFrame, *objectives: str) -> pd.DataFrame:
    """Return the runs of these objectives on the adapter of the recipe."""
    own = (table[["initialisation", "output_scaling"]] == list(RECIPE_START)).all(axis=1)
    return table[own & table["objective"].isin(objectives)].assign(**usual())


def trials() -> pd.DataFrame:
    """Return three learning rates of the recipe at every width; at K = 12 the highest is best."""
    rates = pd.DataFrame({"learning_rate": [1.0e-4, 1.0e-3, 1.0e-2], "selection_f1": [1, 3, 2]})
    start = {"initialisation": RECIPE_START[0], "output_scaling": RECIPE_START[1]}
    one = rates.assign(objective=OPTION3, **usual() | start)
    table = pd.concat(one.assign(compressed_width=K) for K in (*WIDTHS, FULL.compressed_width))
    best = (table["compressed_width"] == 12) & (table["learning_rate"] == 1.0e-2)
    return table.assign(selection_f1=table["selection_f1"] + 2 * best)


def ratio_scores(warm: pd.DataFrame) -> pd.DataFrame:
    """Return answers of option 3 and option 1 at other widths K: F1 is K, less 3 for option 1."""
    runs = recipe(warm, OPTION3, "option1_reconstruction")
    worse = 3.0 * (runs["objective"] != OPTION3)
    widths = [runs.assign(compressed_width=K, f1=K - worse + 0.2 * runs["seed"]) for K in WIDTHS]
    return scores(pd.concat(widths))


def baseline_scores(warm: pd.DataFrame, **f1: float) -> pd.DataFrame:
    """Return answers of two objectives on every baseline, with `BASELINE_F1` or the F1 given."""
    runs, parts = recipe(warm, OPTION3, "answer_ce"), []
    for fields, reached in zip(BASELINES.values(), (BASELINE_F1 | f1).values(), strict=True):
        parts.append(runs.assign(**fields, f1=reached + 0.2 * runs["seed"]))
    return scores(pd.concat(parts))


def untrained_scores() -> pd.DataFrame:
    """Return answers from the original embeddings to the questions of `scores`."""
    one = scores(pd.DataFrame([{"f1": 99.0, "em": 99.0}]))
    return one.assign(condition="embeddings")


def by_name(label: str, **columns: dict[str, float]) -> pd.DataFrame:
    """Return dicts as columns, with their keys in a column `label`."""
    return pd.DataFrame(columns).rename_axis(label).reset_index()


def evidence(config: StudyConfig | None = None, **changes) -> Evidence:
    """Return the tables as `evidence.load` would read them from files."""
    files = tables(**changes)
    sizes = [files.pop(f"runs_{budget}.csv") for budget in ("640x2", "2500x3", "40000x3")]
    runs, answers, untrained, *others = files.values()
    sizes = pd.concat(sizes, ignore_index=True)
    return Evidence(config or StudyConfig(), runs, answers, untrained, sizes, *others)


def controls(**changes) -> Controls:
    """Return the tables around the headline as `controls.load` would read them from files."""
    return Controls(evidence(**changes), *control_tables(changes).values())


def write(folder: Path, **changes) -> Path:
    """Write the tables as files in `<folder>/full`."""
    (folder / "full").mkdir(parents=True, exist_ok=True)
    for name, table in (tables(**changes) | control_tables(changes)).items():
        path = folder / "full" / name
        if path.suffix == ".csv":
            table.to_csv(path, index=False)
        else:
            table.to_parquet(path, index=False)
    return folder
