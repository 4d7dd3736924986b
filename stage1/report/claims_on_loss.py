"""Rules for the analysis's claims a to e: what its loss does. See `claims`."""

import pandas as pd

from stage1.report.evidence import AS_FOUND, Evidence
from stage1.report.verdicts import Judgement, Verdict, adapter_name, agreed, claim, decided, signed

ON_GOLD_ANSWERS = ("option3_teacher_forced", "answer_ce", "distill")
EXPECTED = {"reconstruction": (0.1, 1.0), "cross_entropy": (2.0, 5.0)}
"""The values that the analysis expects of the two terms."""
LONG_ANSWER = 10
"""Mean length of answers (tokens) from which they can show an exposure bias."""


def with_both_terms(e: Evidence) -> dict[str, pd.DataFrame]:
    """Return the gradient readings of the analysed code and of option 3 on the best adapter."""
    settings = (("as_found", AS_FOUND), ("option3_teacher_forced", e.adapter))
    return {
        f"`{name}` ({adapter_name(adapter)})": e.select(e.gradients, name, adapter)
        for name, adapter in settings
    }


@claim("a", "Teacher forcing on answer tokens lets the model cheat")
def cheating(e: Evidence) -> Judgement:
    """Confirmed if gold answer tokens replace the context, on the best adapter and as found.

    They do if later answer tokens, read after gold ones, are right 10 points more often than
    without any context, while first tokens are not.
    """
    cheats, parts = [], []
    alone = e.untrained.set_index("condition").loc["question_only"]
    for adapter in (e.adapter, AS_FOUND):
        runs = e.select(e.runs[e.runs["objective"].isin(ON_GOLD_ANSWERS)], adapter=adapter)
        first, later, em = (runs[name].mean() for name in ("right_first", "right_later", "em"))
        cheats.append(later - alone["right_later"] > 0.1 >= first - alone["right_first"])
        parts.append(
            f"{100 * first:.0f} % of first and {100 * later:.0f} % of later answer tokens are "
            f"right, and {em:.0f} % of free-running answers ({adapter_name(adapter)})"
        )
    return Judgement(
        agreed(*cheats),
        f"After training on gold answers: {'; '.join(parts)}. Without any context the model gets "
        f"{100 * alone['right_first']:.0f} % of first and {100 * alone['right_later']:.0f} % of "
        "later tokens right after gold ones.",
        "the adapter",
    )


@claim("b", "Training and evaluation are mismatched, and that is why F1 is poor", with_warmup=True)
def mismatch(e: Evidence) -> Judgement:
    """Confirmed if generated answers gain more than the margin, refuted if that is excluded.

    Short answers cannot refute it: few tokens follow an error of the model's own.
    """
    gain, margin = e.gain("option2_on_policy", "distill"), e.config.equivalence_margin
    f1 = e.padding.set_index("objective")["f1"]
    tokens = e.mean("distill", "tokens")
    verdict = decided(gain.low > margin, gain.high < margin)
    if verdict is Verdict.REFUTED and tokens < LONG_ANSWER:
        verdict = Verdict.DEPENDS
    return Judgement(
        verdict,
        f"Training on generated instead of gold answers, with the same loss, changes F1 by "
        f"{signed(gain)} points. The answers have {tokens:.1f} tokens on average, too few to test "
        f"exposure bias. The analysed objective reaches F1 {f1['as_found']:.1f} as found, "
        f"{f1['no_labels_on_padding']:.1f} without labels on padding, {f1['no_gap']:.1f} without "
        f"the gap of padding before the answer, and {f1['no_padding']:.1f} without either.",
        "the length of the answers: not so for short ones",
    )


@claim("c", "The reconstruction loss is right", with_warmup=True)
def reconstruction_is_right(e: Evidence) -> Judgement:
    """Confirmed if it adds F1 to cross-entropy, refuted if it costs more than the margin."""
    gain = e.gain("option3_teacher_forced", "answer_ce")
    return Judgement(
        decided(gain.low > 0, gain.high < -e.config.equivalence_margin),
        "Computed as described, it is a sound measure. As an auxiliary term at weight 1 it changes "
        f"F1 by {signed(gain)} points against cross-entropy alone. Alone it reaches F1 "
        f"{e.mean('option1_reconstruction'):.1f}.",
    )


@claim("d", "Reconstruction loss is 0.1 to 1.0, cross-entropy 2 to 5")
def magnitudes(e: Evidence) -> Judgement:
    """Confirmed if nine tenths of the readings are in range, refuted if at most a tenth are."""
    inside, text = [], "90 % of the readings over training:"
    for setting, readings in with_both_terms(e).items():
        text += f" {setting}"
        for term, (low, high) in EXPECTED.items():
            values = readings.loc[readings["term"] == term, "value"]
            inside.append(float(values.between(low, high).mean()))
            text += f", {term} {values.quantile(0.05):.2g} to {values.quantile(0.95):.2g}"
            text += f" ({100 * inside[-1]:.0f} % within {low:g} to {high:g})"
        text += ";"
    verdict = decided(min(inside) >= 0.9, max(inside) <= 0.1)
    verdict = Verdict.DEPENDS if verdict is Verdict.OPEN else verdict
    return Judgement(verdict, text[:-1] + ".", "the term and the setting")


@claim("e", "Cross-entropy dominates and makes reconstruction nearly useless")
def dominance(e: Evidence) -> Judgement:
    """Confirmed if both statements hold, refuted if neither does.

    Cross-entropy makes up nine tenths of AdamW's steps or more, as found and with option 3 on the
    best adapter; there the reconstruction term brings no significant gain in F1.
    """
    shares, parts = [], []
    for setting, readings in with_both_terms(e).items():
        shares.append(readings.loc[readings["term"] == "cross_entropy", "step_share"].mean())
        parts.append(f"{100 * shares[-1]:.0f} % in {setting}")
    as_found = e.select(e.gradients, "as_found", AS_FOUND).groupby("term")
    typical = as_found[["gradient_norm", "cosine"]].median()
    norm = typical["gradient_norm"]
    gain = e.gain("option3_teacher_forced", "answer_ce")
    grid = e.weight_table.query("initialisation == 'random' and reconstruction_term == 'mse'")
    best = grid.loc[grid["f1"].idxmax()]
    one = grid.loc[grid["reconstruction_weight"] == 1, "f1"].max()
    return Judgement(
        agreed(min(shares) >= 0.9, gain.low <= 0),
        f"Of AdamW's steps at equal weights, cross-entropy makes up {' and '.join(parts)}. As "
        f"found, the gradients of the two terms have median norms {norm['reconstruction']:.2g} and "
        f"{norm['cross_entropy']:.2g} and median cosine "
        f"{typical.loc['reconstruction', 'cosine']:.2f}. With option 3 the reconstruction term "
        f"changes fvu from {e.mean('answer_ce', 'fvu'):.2f} to "
        f"{e.mean('option3_teacher_forced', 'fvu'):.2f} and F1 by {signed(gain)} points. The "
        f"weight matters: from a random start, at a small budget, F1 is {one:.1f} at weight 1 and "
        f"{best['f1']:.1f} at {best['reconstruction_weight']:g}.",
        "which of its two statements is meant",
    )
