"""What is said of real English, beside the almanac: tables and sentences made from records."""

from collections.abc import Sequence

import pandas as pd

from stage1.names import OBJECTIVES
from stage1.report.controls import TRAINING as ALMANAC
from stage1.report.english import (
    PCA_INVERSE,
    RECIPE,
    RECONSTRUCTION,
    STARTS,
    English,
    difference_of,
)
from stage1.report.evidence import AS_FOUND, Evidence
from stage1.report.verdicts import signed
from stage1.scoring import comparison, criteria
from stage1.scoring.comparison import Difference
from stage1.scoring.intervals import Interval

WORDS = {PCA_INVERSE: "the PCA inverse", AS_FOUND: "the adapter as found"}


def models(readers: Sequence[English], almanac: Evidence) -> pd.DataFrame:
    """Return one row per language model: its size, what it read, and what it scores."""
    other = ALMANAC["config"]
    rows = [
        {
            "language model": "English",
            "parameters": e.training["parameters"],
            "D": e.D,
            "V": e.training["shape"]["vocabulary"],
            "questions": "SQuAD",
            "ceiling": e.ceiling,
            "floor": e.floor,
        }
        for e in readers
    ]
    shape = other["width"], other["vocabulary"]
    own = ["almanac", ALMANAC["parameters"], *shape, "almanac", almanac.ceiling, almanac.floor]
    return pd.DataFrame([*rows, dict(zip(rows[0], own, strict=True))])


def beside(readers: Sequence[English], almanac: Evidence) -> pd.DataFrame:
    """Return what all language models were asked, one quantity a row."""
    w, other = almanac.warmed, almanac.untrained.set_index("condition")
    table = {f"English, D = {e.D}": column(e) for e in readers}
    shown = w.f1(RECIPE)
    table["almanac"] = {
        "PCA inverse, untrained: F1": f"{other.loc['pca_inverse', 'f1']:.1f}",
        "lookup, untrained: F1": f"{other.loc['codebook', 'f1']:.1f}",
        "variance that PCA keeps": f"{1 - other.loc['pca_inverse', 'fvu']:.2f}",
        "option 3, warmed up: F1": str(shown),
        "option 3, warmed up: retention": f"{Interval(*map(almanac.retention, shown))} %",
        "as found over PCA inverse, warmed up": signed(start_gain(almanac.warmed, RECIPE)),
        "as found over PCA inverse, no warm-up": signed(start_gain(almanac, RECIPE)),
        "warm-up over none, PCA inverse": signed(almanac.warmup_gain(PCA_INVERSE, RECIPE)),
        "warm-up over none, adapter as found": signed(almanac.warmup_gain(AS_FOUND, RECIPE)),
    }
    return pd.DataFrame(table).rename_axis("quantity").reset_index()


def column(e: English) -> dict[str, str]:
    """Return one English language model's quantities; a dash where a cell has no runs."""
    f1 = e.f1(RECIPE)
    return {
        "PCA inverse, untrained: F1": f"{e.untrained_f1('pca_inverse').mean:.1f}",
        "lookup, untrained: F1": f"{e.untrained_f1('codebook').mean:.1f}",
        "variance that PCA keeps": f"{1 - e.untrained_row('pca_inverse')['fvu']:.2f}",
        "option 3, warmed up: F1": str(f1),
        "option 3, warmed up: retention": f"{e.retention(f1)} %",
        "as found over PCA inverse, warmed up": gained(e, (AS_FOUND, True), (PCA_INVERSE, True)),
        "as found over PCA inverse, no warm-up": gained(e, (AS_FOUND, False), (PCA_INVERSE, False)),
        "warm-up over none, PCA inverse": gained(e, (PCA_INVERSE, True), (PCA_INVERSE, False)),
        "warm-up over none, adapter as found": gained(e, (AS_FOUND, True), (AS_FOUND, False)),
    }


def gained(e: English, one: tuple, other: tuple) -> str:
    """Return the F1 of one cell (start, warm-up) over another's, with the objective of both."""
    name = e.shared(one, other)
    if name is None:
        return "–"
    gain = signed(difference_of(e, (name, *one), (name, *other)))
    return gain if name == RECIPE else f"{gain} ({name})"


def summary(readers: Sequence[English], almanac: Evidence) -> str:
    """Say what to do, and what it keeps on every language model."""
    kept = [f"{e.retention(e.f1(RECIPE))} % at D = {e.D}" for e in readers]
    other = Interval(*map(almanac.retention, almanac.warmed.f1(RECIPE)))
    return (
        "**Warm the adapter up on reconstruction, then train it with "
        f"{OBJECTIVES[RECIPE].label}, at a learning rate searched for your model.** At 8x "
        f"compression this keeps {' and '.join(kept)} of what language models of real English can "
        f"do, and {other} % at D = {ALMANAC['config']['width']} for one of generated text: what "
        "8x costs depends on the model."
    )


def answer(readers: Sequence[English], almanac: Evidence) -> list[str]:
    """Say in short what to do, and what the warm-up and the start are worth."""
    return [summary(readers, almanac), f"{warmup(readers, almanac)} {starts(readers, almanac)}"]


def details(readers: Sequence[English], almanac: Evidence) -> list[str]:
    """Say what the recipe reaches on every English model, and what reconstruction alone does."""
    return [*(of_reader(e, almanac) for e in readers), alone(readers)]


def of_reader(e: English, almanac: Evidence) -> str:
    found = [e.f1(RECIPE, start) for start in STARTS]
    kept = [e.retention(f1) for f1 in found]
    limits = criteria.retention_thresholds(almanac.config, e.floor)
    seeds, rates = len(e.select(e.runs, RECIPE)), rates_of(e, RECIPE)
    return (
        f"On real English at D = {e.D}: a language model of {e.training['parameters'] / 1e6:.1f}M "
        f"parameters, trained here from scratch, answers SQuAD at F1 "
        f"{e.untrained_f1('embeddings')}, and at {e.floor:.1f} without the passage. After a "
        f"warm-up, {OBJECTIVES[RECIPE].label} reaches F1 {found[0]} from the PCA inverse and "
        f"{found[1]} from the adapter as found ({seeds} seeds, {rates}). That is {kept[0]} % and "
        f"{kept[1]} % of the way from floor to ceiling; at {limits['target']:.0f} %: "
        f"{criteria.verdict_over(kept[0], limits)}."
    )


def rates_of(e: English, name: str) -> str:
    """Return the learning rates from both starts, and how well they were searched."""
    rates = list(dict.fromkeys(e.rate(name, start) for start in STARTS))
    return f"learning rate{'s' if len(rates) > 1 else ''} {' and '.join(rates)}"


def each(readers: Sequence[English], one: tuple, other: tuple, almanac: str) -> str:
    """List the gain of one cell over another at every width where both have runs."""
    shown = {f"at D = {e.D}": gained(e, one, other) for e in readers}
    known = [f"{gain} {where}" for where, gain in shown.items() if gain != "–"]
    return ", ".join([*known, f"{almanac} on the almanac"])


def warmup(readers: Sequence[English], almanac: Evidence) -> str:
    """Say what the warm-up adds from each start, on all."""
    said = []
    for start in STARTS:
        other = signed(almanac.warmup_gain(start, RECIPE))
        gains = each(readers, (start, True), (start, False), other)
        said.append(f"To {WORDS[start]} the warm-up adds, in points: {gains}.")
    return f"{' '.join(said)} {searched(readers)}"


def searched(readers: Sequence[English]) -> str:
    """Say that the rates were searched, and how many of the best lie at the edge of their grid."""
    rates = pd.concat([e.on_selection()["learning rate"] for e in readers])
    edges = rates.str.endswith("edge").sum()
    return (
        "Learning rates were searched with it and without; on English "
        f"{edges} of {len(rates)} best ones lie at the edge of their grid."
    )


def starts(readers: Sequence[English], almanac: Evidence) -> str:
    """Say what the start is worth with a warm-up and without, on all."""
    said = []
    for is_warm, e in ((True, almanac.warmed), (False, almanac)):
        other = signed(start_gain(e, RECIPE))
        said.append(each(readers, (AS_FOUND, is_warm), (PCA_INVERSE, is_warm), other))
    return (
        f"The adapter as found instead of the PCA inverse gains after a warm-up: {said[0]}; and "
        f"without: {said[1]}."
    )


def start_gain(e: Evidence, objective: str) -> Difference:
    """Return the F1 of the adapter as found minus that of the PCA inverse."""
    one, other = (e.select(e.scores, objective, start) for start in (AS_FOUND, PCA_INVERSE))
    return comparison.difference(one, other, margin=e.config.equivalence_margin)


def alone(readers: Sequence[English]) -> str:
    """Compare reconstruction alone with the recipe on the selection split, rates searched."""
    parts = []
    for e in readers:
        table = e.on_selection()
        best = table[table["warm-up steps"] > 0].groupby("objective")["selection F1"].max()
        parts.append(f"{best[RECONSTRUCTION]:.1f} against {best[RECIPE]:.1f} at D = {e.D}")
    return (
        "On the selection split, reconstruction alone ends after the same warm-up at F1 "
        f"{' and '.join(parts)}."
    )
