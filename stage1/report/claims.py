"""The claims of the analysis, one by one: a rule for each that turns the records into a verdict and the numbers for it.

Every function takes the `Evidence` and returns a `Finding`. What counts as confirmed is written in the rule, so other
records can turn any verdict that rests on a number.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from stage1.report.evidence import AS_FOUND, Evidence
from stage1.scoring import comparison, criteria
from stage1.scoring.intervals import Interval

Truth = bool | np.bool_
CE_LIKE = ("option3_teacher_forced", "answer_ce", "distill")
RECONSTRUCTION_RANGE, CE_RANGE = (0.1, 1.0), (2.0, 5.0)
"""What the analysis expects the two terms to be."""


class Finding(NamedTuple):
    """What the records say of a claim: confirmed, refuted, depends (on what is in the text) or open."""

    verdict: str
    text: str


def name_of(adapter: tuple[str, str]) -> str:
    return f"{adapter[0]}, {adapter[1]}"


def either(holds: Truth) -> str:
    return "confirmed" if holds else "refuted"


def both(first: Truth, second: Truth) -> str:
    """Confirmed or refuted where two readings agree."""
    return either(first) if first == second else "depends"


def cheating(e: Evidence) -> Finding:
    """It would show in later answer tokens, which are read with gold tokens before them, being right more often than
    the first, which is not; a tenth is the line."""
    gaps, parts = [], []
    for adapter in (e.adapter, AS_FOUND):
        runs = e.on(e.runs[e.runs["objective"].isin(CE_LIKE)], adapter=adapter)
        first, later, em = (runs[name].mean() for name in ("right_first", "right_later", "em"))
        gaps.append(later - first > 0.1)
        parts.append(
            f"{100 * first:.0f} % of first and {100 * later:.0f} % of later answer tokens are right, and {em:.0f} % of "
            f"free-running answers ({name_of(adapter)})"
        )
    return Finding(both(*gaps), "Trained by teacher forcing: " + "; ".join(parts) + ".")


def mismatch(e: Evidence) -> Finding:
    """Confirmed if training on generated answers is better by more than the margin, refuted if that is excluded."""
    found, margin = e.against("option2_on_policy", "distill"), e.config.equivalence_margin
    verdict = "confirmed" if found.low > margin else "refuted" if found.high < margin else "depends"
    padding = e.padding.set_index("objective")["f1"]
    return Finding(
        verdict,
        f"The same loss on generated instead of gold answers changes F1 by {found.mean:+.1f} [{found.low:+.1f}, "
        f"{found.high:+.1f}] points. The analysed objective with its padding taken apart: F1 {padding['as_found']:.1f} "
        f"as found, {padding['no_labels_on_padding']:.1f} without labels on it, {padding['no_gap']:.1f} without the "
        f"gap it leaves before the answer, {padding['no_padding']:.1f} without either.",
    )


def reconstruction_is_right(e: Evidence) -> Finding:
    """As an auxiliary term: confirmed if it adds F1 to cross-entropy, refuted if it costs more than the margin."""
    found = e.against("option3_teacher_forced", "answer_ce")
    verdict = (
        "confirmed"
        if found.low > 0
        else "refuted"
        if found.high < -e.config.equivalence_margin
        else "depends"
    )
    return Finding(
        verdict,
        "Computed as described, a sound measure. As an auxiliary term at weight 1 it changes F1 by "
        f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}] points against cross-entropy alone. Alone it reaches "
        f"F1 {e.mean('option1_reconstruction'):.1f}.",
    )


def spread(readings: pd.DataFrame, term: str) -> tuple[pd.Series, str]:
    values = readings.loc[readings["term"] == term, "value"]
    return values, f"{values.quantile(0.05):.2g} to {values.quantile(0.95):.2g}"


def magnitudes(e: Evidence) -> Finding:
    """Confirmed where nine tenths of the readings lie in the stated ranges, refuted where a tenth or fewer do."""
    inside, parts = [], []
    for objective, adapter in (("as_found", AS_FOUND), ("option3_teacher_forced", e.adapter)):
        readings = e.on(e.gradients, objective, adapter)
        for term, (low, high) in (
            ("reconstruction", RECONSTRUCTION_RANGE),
            ("cross_entropy", CE_RANGE),
        ):
            values, text = spread(readings, term)
            inside.append(float(values.between(low, high).mean()))
            parts.append(f"{term} {text} ({100 * inside[-1]:.0f} % within {low:g} to {high:g})")
    verdict = "confirmed" if min(inside) >= 0.9 else "refuted" if max(inside) <= 0.1 else "depends"
    start = "90 % of the readings over training: as found, on the adapter as found, "
    return Finding(
        verdict,
        f"{start}{parts[0]}, {parts[1]}; option 3 from {name_of(e.adapter)}, {parts[2]}, {parts[3]}.",
    )


def dominance(e: Evidence) -> Finding:
    """Two statements: cross-entropy makes up nine tenths of AdamW's steps or more, and reconstruction is of no use,
    no significant gain in F1. The first as found and on the best adapter with option 3, the second there."""
    settings = {("as_found", AS_FOUND): 0.0, ("option3_teacher_forced", e.adapter): 0.0}
    for objective, adapter in settings:
        readings = e.on(e.gradients, objective, adapter)
        settings[objective, adapter] = readings.loc[
            readings["term"] == "cross_entropy", "step_share"
        ].mean()
    typical = (
        e.on(e.gradients, "as_found", AS_FOUND)
        .groupby("term")[["gradient_norm", "cosine"]]
        .median()
    )
    found, without = (e.mean(name, "fvu") for name in ("option3_teacher_forced", "answer_ce"))
    gain = e.against("option3_teacher_forced", "answer_ce")
    parts = ", ".join(
        f"{100 * share:.0f} % (`{name}`, {name_of(adapter)})"
        for (name, adapter), share in settings.items()
    )
    grid = e.weight_table.query("initialisation == 'random' and reconstruction_term == 'mse'")
    top, one = (
        grid.loc[grid["f1"].idxmax()],
        grid.loc[grid["reconstruction_weight"] == 1, "f1"].max(),
    )
    return Finding(
        both(min(settings.values()) >= 0.9, gain.low <= 0),
        f"At equal weights cross-entropy makes up {parts} of AdamW's steps. As found the two gradients have median "
        f"norms {typical.loc['reconstruction', 'gradient_norm']:.2g} and "
        f"{typical.loc['cross_entropy', 'gradient_norm']:.2g} and cosine "
        f"{typical.loc['reconstruction', 'cosine']:.2f}. The reconstruction term brings fvu from "
        f"{without:.2f} to {found:.2f} and F1 {gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}] points. "
        f"It is a matter of the weight: from a random start, at a small budget, F1 is {one:.1f} at weight 1 and "
        f"{top['f1']:.1f} at {top['reconstruction_weight']:g}.",
    )


def reconstruction_gives_generation(e: Evidence) -> Finding:
    """Whether F1 follows fvu, by rank correlation: among runs of reconstruction alone, and among all of them."""
    every = pd.concat([e.runs, e.sizes])
    alone = every[every["objective"] == "option1_reconstruction"]
    within, across = (
        stats.spearmanr(table["fvu"], table["f1"]).statistic for table in (alone, every)
    )
    best = e.on(e.runs).groupby("objective")[["fvu", "f1"]].mean()
    low, high = best.loc[best["fvu"].idxmin()], best.loc[best["f1"].idxmax()]
    return Finding(
        both(within < -0.8, across < -0.8),
        f"Rank correlation of F1 with fvu: {within:.2f} over {len(alone)} runs of reconstruction alone, {across:.2f} "
        f"over all {len(every)}. The best reconstruction (`{best['fvu'].idxmin()}`, fvu {low['fvu']:.2f}) has F1 "
        f"{low['f1']:.1f}, the best F1 ({high['f1']:.1f}, `{best['f1'].idxmax()}`) fvu {high['fvu']:.2f}.",
    )


def gain_from_more(e: Evidence, objective: str) -> float:
    """F1 points between the budget and four times its examples, on the best adapter."""
    return e.with_more(objective) - e.mean(objective)


def option1_needs_more(e: Evidence) -> Finding:
    """Confirmed if four times the examples still bring it more than the margin, and more than option 3."""
    one, three = (
        gain_from_more(e, name) for name in ("option1_reconstruction", "option3_teacher_forced")
    )
    margin = e.config.equivalence_margin
    reached = e.mean("option1_reconstruction") + one
    return Finding(
        both(one > margin, one > three),
        f"Four times the examples change its F1 by {one:+.1f} points to {reached:.1f}, option 3's by {three:+.1f}. "
        f"It stays {e.mean('option3_teacher_forced') + three - reached:.1f} behind.",
    )


def prompt_ce_optimises_generation(e: Evidence) -> Finding:
    """Confirmed if option 2 as written is not worse than option 3 by more than the margin."""
    found = e.against("option2_prompt_ce", "option3_teacher_forced")
    return Finding(
        either(found.high > -e.config.equivalence_margin),
        f"Its labels are the prompt's own tokens, none of an answer. F1 {e.mean('option2_prompt_ce'):.1f}, "
        f"{-found.mean:.1f} [{-found.high:.1f}, {-found.low:.1f}] below option 3.",
    )


def option2_is_slow_and_hard(e: Evidence) -> Finding:
    """Slow: half as much again per step as distillation on gold answers. Hard: worse than that by more than the
    margin."""
    seconds = e.cost.set_index("objective")["seconds"]
    ratio, other = (
        seconds[n] / seconds["distill"] for n in ("option2_on_policy", "option2_prompt_ce")
    )
    found = e.against("option2_on_policy", "distill")
    return Finding(
        both(ratio > 1.5, found.high < -e.config.equivalence_margin),
        f"As written it needs no generation ({other:.1f} times the step of `distill`). On-policy it does: {ratio:.1f} "
        f"times the step, for F1 {found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}].",
    )


def option3_is_useful(e: Evidence) -> Finding:
    """Useful: on the selection split and the test questions not worse than the best by more than the margin. Less
    rigorous: its teacher-forced reading does not rank adapters as free-running F1 does (rank correlation below 0.9)."""
    best = e.table.iloc[0]["objective"]
    useful = (
        best == "option3_teacher_forced"
        or e.pair("option3_teacher_forced", best)["finding"] is not comparison.Finding.DIFFERENT
    )
    runs = e.runs.groupby(["objective", "initialisation", "output_scaling"])[
        ["ce_first", "f1"]
    ].mean()
    rank = -stats.spearmanr(runs["ce_first"], runs["f1"]).statistic
    three = [e.mean("option3_teacher_forced", name) for name in ("fvu", "ce_first", "f1")]
    return Finding(
        both(useful, rank < 0.9),
        f"Its three readings: fvu {three[0]:.2f}, teacher-forced cross-entropy of the first token {three[1]:.2f} nats, "
        f"F1 {three[2]:.1f}. Over {len(runs)} objectives and adapters the second ranks them as F1 does to {rank:.2f}.",
    )


def shadowing(e: Evidence) -> Finding:
    """Judged by reading: the analysed script is no part of this project."""
    return Finding(
        "confirmed",
        "By reading alone: the line assigns the tensor's own device. Nothing here measures it.",
    )


def threshold_too_high(e: Evidence) -> Finding:
    """Confirmed if nothing reaches the target, neither in points nor as a share of the ceiling."""
    top, share = e.table.iloc[0], criteria.thresholds(e.config, share=True)
    config, low = e.config, Interval(top["f1"], top["f1_low"], top["f1_high"])
    return Finding(
        both(top["f1"] < config.target_f1, top["retention"] < share["target"]),
        f"The best, `{top['objective']}`, has F1 {low}: {top['verdict']} at {config.target_f1:g} points. As a share of "
        f"the ceiling, {share['target']:.1f} % ({config.target_f1:g} of {config.baseline_f1:g}), it retains "
        f"{top['retention']:.1f} %: {top['verdict on retention']}.",
    )


def data_explains(e: Evidence) -> Finding:
    """Two readings: on the adapter and objective as found, and with the best adapter, does the small budget fail (below
    five) and the large one meet the target."""
    small = e.sizes[e.sizes["train_examples"] == e.sizes["train_examples"].min()]
    readings, parts = [], []
    for objective, adapter in (("as_found", AS_FOUND), (str(e.best["objective"]), e.adapter)):
        low, high = e.on(small, objective, adapter)["f1"].mean(), e.mean(objective, adapter=adapter)
        readings.append(bool(high >= e.config.target_f1))
        parts.append(f"`{objective}` ({name_of(adapter)}) goes from {low:.1f} to {high:.1f}")
    random = e.runs[e.runs["initialisation"] == "random"].groupby("objective")["f1"].mean()
    return Finding(
        both(*readings),
        f"From 640 x 2 to 10,000 x 3, {' and '.join(parts)}. From a random start no objective passes "
        f"{math.ceil(random.max())} on average at 10,000 x 3; four times the examples bring option 3 from there "
        f"({name_of(AS_FOUND)}) from {e.mean('option3_teacher_forced', adapter=AS_FOUND):.1f} to "
        f"{e.with_more('option3_teacher_forced', AS_FOUND):.1f}.",
    )


def failure_would_carry_over(e: Evidence) -> Finding:
    """Refuted if the lookup, which uses the compressed embeddings alone, is within the margin of the ceiling."""
    f1 = e.untrained.set_index("condition")["f1"]
    lossless = f1["codebook"] >= e.ceiling - e.config.equivalence_margin
    return Finding(
        either(not lossless),
        f"The nearest entry of the compressed vocabulary gives F1 {f1['codebook']:.1f} of {e.ceiling:.1f}, without any "
        "training: 8x fewer dimensions lose nothing here, so a failed adapter condemns its training, not the "
        "compression. It says as little about a learned encoder of whole prompts, which has no such table.",
    )


def batch_size(e: Evidence) -> Finding:
    """Read of the step as found and of this project's: whether 96 examples fit 90 % of the analysis's 85 GB."""
    largest = e.memory.set_index("step")["largest on 85 GB"]
    found, now = int(largest["as found"]), int(largest["packed, compiled"])
    return Finding(
        both(found >= 96, now >= 96),
        f"At the shape of Llama-3.1-8B, 90 % of 85 GB hold {found} examples of the step as found, and {now} where the "
        "language model is frozen, examples are packed without padding and logits taken at supervised tokens alone.",
    )


CLAIMS: dict[str, tuple[str, Callable[[Evidence], Finding]]] = {
    "a": ("Teacher forcing on answer tokens lets the model cheat", cheating),
    "b": ("Training and evaluation are mismatched, and that is why F1 is poor", mismatch),
    "c": ("The reconstruction loss is right", reconstruction_is_right),
    "d": ("Reconstruction loss is 0.1 to 1.0, cross-entropy 2 to 5", magnitudes),
    "e": ("Cross-entropy dominates and makes reconstruction nearly useless", dominance),
    "f": ("Option 1: good reconstruction gives good generation", reconstruction_gives_generation),
    "g": ("Option 1 needs more training to converge", option1_needs_more),
    "h": ("Option 2 as written directly optimises generation", prompt_ce_optimises_generation),
    "i": (
        "Option 2 needs generation in training, is slow and harder to train",
        option2_is_slow_and_hard,
    ),
    "j": ("Option 3 is less rigorous but useful", option3_is_useful),
    "k": ("The variable shadowing is harmless", shadowing),
    "l": ("The success threshold may be too high", threshold_too_high),
    "m": ("640 x 2 examples explain the earlier 1 % F1, and 10,000 x 3 suffice", data_explains),
    "n": (
        "If 8x with a simple adapter fails, the larger system will fail",
        failure_would_carry_over,
    ),
    "o": ("Batch 64 could go to 80 or 96", batch_size),
}


def table(evidence: Evidence) -> pd.DataFrame:
    """One row per claim: letter, claim, verdict, and the numbers that carry it."""
    found = [(letter, claim, *judge(evidence)) for letter, (claim, judge) in CLAIMS.items()]
    return pd.DataFrame(found, columns=["", "claim", "verdict", "evidence"])
