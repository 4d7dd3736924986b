"""What is said of real English, beside the almanac: tables and sentences made from records."""

import pandas as pd

from stage1.names import OBJECTIVES
from stage1.report.controls import TRAINING as ALMANAC
from stage1.report.english import PCA_INVERSE, STARTS, English, difference_of
from stage1.report.evidence import AS_FOUND, Evidence
from stage1.report.verdicts import signed
from stage1.scoring import comparison, criteria
from stage1.scoring.comparison import Difference
from stage1.scoring.intervals import Interval

RECONSTRUCTION = "option1_reconstruction"


def models(english: English, almanac: Evidence) -> pd.DataFrame:
    """Return one row per language model: its size, what it read, and what it scores."""
    own, other = english.training, ALMANAC["config"]
    shape = own["shape"]
    rows = [
        ("english", own["parameters"], shape["width"], shape["vocabulary"], "SQuAD"),
        ("shipped", ALMANAC["parameters"], other["width"], other["vocabulary"], "almanac"),
    ]
    table = pd.DataFrame(rows, columns=["language model", "parameters", "D", "V", "questions"])
    return table.assign(
        ceiling=[english.ceiling, almanac.ceiling], floor=[english.floor, almanac.floor]
    )


def beside(english: English, almanac: Evidence) -> pd.DataFrame:
    """Return what both language models were asked, one quantity a row."""
    w, name = almanac.warmed, english.objective(almanac)
    other = almanac.untrained.set_index("condition")
    shown, kept = w.f1(name), english.retention(english.f1(name))
    shares = kept, Interval(*map(almanac.retention, shown))
    gains = [signed(start_gain(e, name)) for e in (english, almanac.warmed)]

    def pair(condition: str, column: str = "f1") -> list[float]:
        return [english.untrained_row(condition)[column], other.loc[condition, column]]

    rows = {
        "PCA inverse, untrained: F1": [f"{f1:.1f}" for f1 in pair("pca_inverse")],
        "lookup, untrained: F1": [f"{f1:.1f}" for f1 in pair("codebook")],
        "variance that PCA keeps": [f"{1 - fvu:.2f}" for fvu in pair("pca_inverse", "fvu")],
        f"{name}: F1": [str(english.f1(name)), str(shown)],
        f"{name}: retention": [f"{share} %" for share in shares],
        "adapter as found instead of PCA inverse: F1 gained": gains,
        **warmup_rows(english, almanac, name),
    }
    table = pd.DataFrame(rows, index=["English", "almanac"]).T
    return table.rename_axis("after the warm-up unless untrained").reset_index()


def warmup_rows(english: English, almanac: Evidence, name: str) -> dict[str, list[str]]:
    """Return what the warm-up adds from each start, on both."""
    words = {PCA_INVERSE: "PCA inverse", AS_FOUND: "adapter as found"}
    return {
        f"warm-up instead of none, {words[start]}: F1 gained": [
            signed(difference_of(english, (name, start, True), (name, start, False))),
            signed(almanac.warmup_gain(start, name)),
        ]
        for start in STARTS
    }


def summary(english: English, almanac: Evidence) -> str:
    """Say what to do, and what it keeps on both language models."""
    w, name = almanac.warmed, english.objective(almanac)
    kept = english.retention(english.f1(name)), Interval(*map(almanac.retention, w.f1(name)))
    agree = kept[0].high >= kept[1].low and kept[1].high >= kept[0].low
    return (
        "**Warm the adapter up on reconstruction, then train it with "
        f"{OBJECTIVES[name].label}.** At 8x compression this keeps {kept[0]} % of what a language "
        f"model of real English can do, and {kept[1]} % for one of generated text: the two "
        f"{'agree' if agree else 'disagree on what 8x costs'}."
    )


def answer(english: English, almanac: Evidence) -> list[str]:
    """Say what the recipe does on real English, and where the almanac says something else."""
    w, name = almanac.warmed, english.objective(almanac)
    found = [english.f1(name, start) for start in STARTS]
    kept = [english.retention(f1) for f1 in found]
    limits = criteria.retention_thresholds(almanac.config, english.floor)
    seeds, rates = len(english.select(english.runs, name)), rates_of(english, name)
    return [
        "On real English: a language model of "
        f"{english.training['parameters'] / 1e6:.1f}M parameters, trained here from scratch, "
        f"answers SQuAD at F1 {english.untrained_f1('embeddings')}, and at {english.floor:.1f} "
        f"without the passage. After a warm-up, {OBJECTIVES[name].label} reaches F1 {found[0]} "
        f"from the PCA inverse and {found[1]} from the adapter as found ({seeds} seeds, {rates}). "
        f"That is {kept[0]} % and {kept[1]} % of the way from floor to ceiling; at "
        f"{limits['target']:.0f} %: {criteria.verdict_over(kept[0], limits)}. "
        f"{cost_beside(kept[0], w, name)}",
        f"{warmup_and_start(english, almanac, name)} {reconstruction_alone(english, name)}",
    ]


def rates_of(english: English, name: str) -> str:
    """Return the learning rates from both starts, and how well they were searched."""
    rates = list(dict.fromkeys(english.rate(name, start) for start in STARTS))
    return f"learning rate{'s' if len(rates) > 1 else ''} {' and '.join(rates)}"


def cost_beside(kept: Interval, w: Evidence, name: str) -> str:
    """Compare what the English model keeps with what the almanac's keeps, in percent."""
    other = w.retention(w.f1(name).mean)
    costs = "as much, within the interval"
    if not kept.low <= other <= kept.high:
        costs = "more" if kept.high < other else "less"
    return f"The almanac's model keeps {other:.0f} %: on real English, 8x costs {costs}."


def warmup_and_start(english: English, almanac: Evidence, name: str) -> str:
    """Say what the warm-up adds from each start, and what the start is worth after it, on both."""
    own = [
        signed(difference_of(english, (name, start, True), (name, start, False)))
        for start in STARTS
    ]
    other = [signed(almanac.warmup_gain(start, name)) for start in STARTS]
    gains = [signed(start_gain(e, name)) for e in (english, almanac.warmed)]
    return (
        f"There the warm-up adds {own[0]} points to the PCA inverse and {own[1]} to the adapter as "
        f"found; on the almanac {other[0]} and {other[1]}. After it, the adapter as found instead "
        f"of the PCA inverse gains {gains[0]} points, and {gains[1]} on the almanac."
    )


def start_gain(e: English | Evidence, objective: str) -> Difference:
    """Return the F1 of the adapter as found minus that of the PCA inverse."""
    one, other = (e.select(e.scores, objective, start) for start in (AS_FOUND, PCA_INVERSE))
    return comparison.difference(one, other, margin=e.config.equivalence_margin)


def reconstruction_alone(english: English, name: str) -> str:
    """Compare reconstruction alone with the objective, after the same warm-up."""
    alone = english.f1(RECONSTRUCTION)
    gain = difference_of(english, (name, PCA_INVERSE, True), (RECONSTRUCTION, PCA_INVERSE, True))
    return (
        f"Reconstruction alone ends at F1 {alone} after the same warm-up; the language model's "
        f"own gradient adds {signed(gain)}."
    )
