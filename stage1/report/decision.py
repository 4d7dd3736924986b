"""The answer and the recommendation, in words that follow from the records.

No winner is named in advance.
"""

import pandas as pd

from stage1.names import FIXES, FLOORS, OBJECTIVES
from stage1.report import controls
from stage1.report.controls import FULL, TRAINING, Controls
from stage1.report.evidence import AS_FOUND, Evidence
from stage1.report.verdicts import adapter_name, signed
from stage1.scoring import comparison, criteria
from stage1.scoring.comparison import Difference, Finding
from stage1.scoring.intervals import Interval

PADDING = {
    "no_padding": "Put no label on padding and leave no gap before the answer.",
    "no_labels_on_padding": "Put no label on padding.",
    "no_gap": "Leave no gap of padding before the answer.",
}
"""What to do where a layout of the padding is the best."""


def answer(e: Evidence) -> list[str]:
    """Return the answer in three parts: what to do, what matters most, what is tested."""
    w, target = e.warmed, e.config.target_f1
    chosen, lookup = w.f1(w.recommended), e.untrained.set_index("condition").loc["codebook", "f1"]
    verdict = criteria.verdict(chosen.mean, criteria.thresholds(e.config))
    share = e.retention_thresholds["target"]
    steps = int(w.runs["warmup_steps"].max())
    return [
        f"On {language_model()}: warm the adapter up on reconstruction, then train with "
        f"{OBJECTIVES[w.recommended].label}. After {steps:,} steps on the vocabulary table, which "
        "need no language model, and the analysis's budget, the model reaches F1 "
        f"{chosen}, against {e.ceiling:.1f} from the "
        f"original embeddings: {verdict} at {target:g} points. That is "
        f"{e.retention(chosen.mean):.0f} % of the way from floor to ceiling; the target is "
        f"{share:.0f} % of the way from this floor to the baseline it was set against.",
        compare_factors(e),
        f"Nearest-codebook lookup, without any training, reaches F1 {lookup:.1f}: the test "
        "measures how an adapter is trained, not what 8x compression loses.",
    ]


def language_model() -> str:
    """Say what the committed records hold for: the language model, the corpus, the questions."""
    return (
        f"the almanac's language model, which has {TRAINING['parameters'] / 1e6:.1f}M parameters "
        "and reads generated text, asked about names that no training passage contains"
    )


def beyond(c: Controls) -> list[str]:
    """Return what the comparisons around the headline add to the answer."""
    models = c.language_models()
    others = models[
        (models["language model"] != FULL.language_model)
        & (models["start"] != adapter_name(AS_FOUND))
    ]
    kept = " and ".join(f"{row['retention']} %" for _, row in others.iterrows())
    return [
        f"Two more language models of the same recipe keep {kept} of the way from floor to "
        f"ceiling, with {others['seeds'].iloc[0]} seeds each.",
        lost_by_pca(c),
        taught(c),
        by_ratio(c),
    ]


def recipe_name(c: Controls) -> str:
    """Name what `Controls.recipe` is: the recommendation, unless the records recommend another."""
    w = c.evidence.warmed
    if (w.recommended, w.adapter) == (FULL.objective, controls.RECIPE_START):
        return "the recipe"
    start = adapter_name(controls.RECIPE_START)
    return f"{OBJECTIVES[FULL.objective].label} after the warm-up ({start})"


def lost_by_pca(c: Controls) -> str:
    """Say how much of what is missing a projection restores that is trained with the adapter."""
    trained = c.baseline(controls.PROJECTION)
    gain = c.gain(trained, c.recipe())
    reached = (
        f"a projection that is trained with the adapter reaches F1 {comparison.interval(trained)}, "
        f"{gain} more than {recipe_name(c)}"
    )
    if c.beyond_half().low > 0:
        return f"Most of what is missing is lost by PCA: {reached}."
    if gain.low > 0:
        return f"A part of what is missing is lost by PCA: {reached}."
    return f"That PCA loses what is missing is not shown: {reached}."


def taught(c: Controls) -> str:
    """Say what the objective adds where nothing is compressed."""
    control = c.baseline(controls.CONTROL)
    gain, room = c.gain(control, c.ceiling(control)), 100 - c.evidence.ceiling
    if gain.high < room / 2:
        teaches = "the objective restores, it hardly teaches the task"
    elif gain.low > 0:
        teaches = "the objective also teaches the task"
    else:
        teaches = "whether the objective also teaches the task is open"
    return (
        f"Where nothing is compressed, training gains {gain} of the {room:.1f} points that are "
        f"left above the original embeddings: {teaches}."
    )


def by_ratio(c: Controls) -> str:
    """Say what F1 the recipe reaches at every compression ratio."""
    table = c.ratios()
    own = table[table["condition"] == FULL.objective]
    reached = ", ".join(
        f"{Interval(*f1)} at {ratio}x"
        for ratio, *f1 in own[["ratio", "f1", "f1_low", "f1_high"]].itertuples(index=False)
    )
    return f"By compression ratio, {recipe_name(c)} reaches F1 {reached}. {open_rates(c)}".strip()


def open_rates(c: Controls) -> str:
    """Say at which ratios other learning rates may let the recipe reach more, if at any."""
    ratios = ", ".join(f"{ratio}x" for ratio in c.open_ratios())
    return f"At {ratios} the best learning rate is at the edge of its grid." if ratios else ""


def compare_factors(e: Evidence) -> str:
    """Say what the warm-up adds, and what the start and the training answers matter with it."""
    w = e.warmed
    start, without = (each.factor("initialisation", "pca_inverse", "random") for each in (w, e))
    answers = w.factor("objective", "distill", "option2_on_policy")
    gains = (
        f"The warm-up adds {e.warmup_gain()} points to the best adapter and "
        f"{e.warmup_gain(AS_FOUND)} to the adapter as found."
    )
    starts = (
        f"the PCA inverse instead of a random start gains {start} points, without a warm-up "
        f"{without}; gold instead of generated answers gain {answers}"
    )
    if start.high < e.config.equivalence_margin:
        return f"{gains} With it the start hardly matters: {starts}."
    return f"{gains} With it the start still matters: {starts}."


def recommended_over(e: Evidence, other: str) -> str:
    """Say what the recommended objective gains over another fix, and what a step of it costs."""
    pair, seconds = e.pair(e.recommended, other), e.cost.set_index("objective")["seconds"]
    sign = 1 if pair["first"] == e.recommended else -1
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    gain, ratio = signed((sign * pair["mean"], low, high)), seconds[e.recommended] / seconds[other]
    return f"{gain} over {OBJECTIVES[other].label} ({pair['finding']}; {ratio:.2g} x its time)"


def recommendation(evidence: Evidence) -> pd.DataFrame:
    """Return what to do, one row per decision, with the F1 points that it gains."""
    e = evidence.warmed
    config, name = e.config, e.recommended
    warmup, runs = evidence.warmup_gain(), e.select(e.runs, name)
    own, found = (e.select(e.scores, name, adapter) for adapter in (e.adapter, AS_FOUND))
    start = comparison.difference(own, found, margin=config.equivalence_margin)
    others = [recommended_over(e, other) for other in FIXES if other != name]
    steps = f"{int(e.runs['warmup_steps'].max()):,} steps of reconstruction"
    rows = [
        ("warm-up", steps, f"{signed(warmup)} over none ({finding(warmup)})"),
        ("objective", OBJECTIVES[name].label, "; ".join(others)),
        (
            "adapter",
            adapter_name(e.adapter),
            f"{signed(start)} over {adapter_name(AS_FOUND)}, as found ({finding(start)})",
        ),
    ]
    columns = ["decision", "choose", "F1 points gained [95 % interval]"]
    return pd.DataFrame(rows, columns=columns).assign(seeds=len(runs))


def finding(gain: Difference) -> Finding:
    return Finding.of(gain.p, gain.p_margin)


def besides(evidence: Evidence) -> list[str]:
    """Return what else follows: the reconstruction term, the padding, the target."""
    e = evidence.warmed
    term = e.pair("option3_teacher_forced", "answer_ce")
    decides = term["finding"] is Finding.DIFFERENT
    padding = e.padding.set_index("objective")
    f1 = padding["f1"]
    best = f1.drop("as_found").idxmax()
    config, recommended = e.config, e.f1(e.recommended).mean
    return [
        f"**The reconstruction term** of option 3 {'matters' if decides else 'is optional'}: F1 "
        f"with and without it differs by {term['mean']:.1f} [{term['low']:.1f}, "
        f"{term['high']:.1f}] points in favour of `{term['first']}` ({term['finding']}).",
        f"**{PADDING[best]}** The analysed objective has F1 {f1['as_found']:.1f}; `{best}` alone "
        f"brings it to {f1[best]:.1f} ({padding.loc[best, 'seeds']:.0f} seeds), "
        f"{f1[best] - recommended:+.1f} points against the recommended objective (not tested).",
        "**State the target as a share of the ceiling**, measured in the same run. F1 points mean "
        f"something else on every model: {config.target_f1:g} of {config.baseline_f1:g} there is "
        f"{e.target_here:.1f} here.",
    ]


def of_run(record: dict) -> str:
    """Say which objective of a run is the best, or that it names none.

    `record` has the run's `table` of conditions, `leaders`, `seeds` and `verdict`.
    """
    f1 = {row["condition"]: row["f1"] for row in record["table"]}
    top, *others = record["leaders"]
    floor = max(f1[name] for name in FLOORS)
    if f1["embeddings"] - floor < criteria.LEAST_GAIN:
        return (
            "This run names no winner: from the original embeddings the model reaches F1 "
            f"{f1['embeddings']:.1f}, and {floor:.1f} without the passage. That orders nothing."
        )
    if f1[top] <= floor:
        return (
            f"This run names no winner: no objective rises above F1 {floor:.1f}, which the model "
            "reaches without the passage. Such a budget orders nothing."
        )
    if not others:
        return f"The best objective of this run is `{top}`, F1 {f1[top]:.1f}: {record['verdict']}."
    if record["seeds"] == 1:
        tied = [f"`{name}`" for name in record["leaders"] if f"{f1[name]:.1f}" == f"{f1[top]:.1f}"]
        return (
            "This run names no winner: it has one seed, so a difference between objectives may be "
            f"one between seeds. The highest F1, {f1[top]:.1f}, is that of {' and '.join(tied)}."
        )
    named = ", ".join(f"`{name}` ({f1[name]:.1f})" for name in others)
    return (
        f"This run names no winner: with {record['seeds']} seeds, `{top}` (F1 {f1[top]:.1f}) is "
        f"not found different from {named}."
    )
