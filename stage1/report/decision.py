"""The answer and the recommendation, in words that follow from the records: nothing here names a winner in advance."""

from stage1.names import FIXES, OBJECTIVES
from stage1.report.claims import name_of
from stage1.report.evidence import AS_FOUND, Evidence
from stage1.scoring import criteria
from stage1.scoring.comparison import Difference, Finding
from stage1.scoring.intervals import Interval

PADDING = {
    "no_padding": "Put no label on padding and leave no gap before the answer.",
    "no_labels_on_padding": "Put no label on padding.",
    "no_gap": "Leave no gap of padding before the answer.",
}
"""What to do where a layout of the padding is the best."""


def f1_of(e: Evidence, objective: str) -> Interval:
    """Mean F1 of an objective on the best adapter, with its interval."""
    row = e.table.set_index("objective").loc[objective]
    return Interval(row["f1"], row["f1_low"], row["f1_high"])


def compare_factors(start: Difference, answers: Difference) -> str:
    """Which matters more, the start of the adapter or the answers it is trained on."""
    worth = f"the PCA inverse instead of a random start is worth {start} points, gold instead of generated answers "
    worth += str(answers)
    if start.low > abs(answers.mean):
        return f"At this budget the start of the adapter decides more than the answers it is trained on: {worth}"
    return f"The answers it is trained on matter as much as where the adapter starts: {worth}"


def answer(e: Evidence) -> list[str]:
    """The answer in three sentences: which fix and does it work; what decides at this budget; what the test tests."""
    chosen = f1_of(e, e.recommended)
    share = criteria.thresholds(e.config, share=True)["target"]
    verdict = criteria.verdict(chosen.mean, criteria.thresholds(e.config))
    start = e.factor("initialisation", "pca_inverse", "random")
    other = e.factor("objective", "distill", "option2_on_policy")
    late = [e.with_more("option3_teacher_forced", adapter) for adapter in (e.adapter, AS_FOUND)]
    lookup = e.untrained.set_index("condition").loc["codebook", "f1"]
    return [
        f"Prefer {OBJECTIVES[e.recommended].label}: with the adapter started at {name_of(e.adapter)} the model answers with F1 "
        f"{chosen} where the original embeddings give {e.ceiling:.1f} ({verdict} at {e.config.target_f1:g} points; it "
        f"is {e.retention(chosen.mean):.0f} % of the way from floor to ceiling, of which that target asks "
        f"{share:.0f} %).",
        compare_factors(start, other)
        + f"; with four times the examples option 3 reaches {late[0]:.1f} from there and {late[1]:.1f} from the "
        "adapter as found.",
        f"Looking up the nearest compressed vocabulary entry, without any training, gives {lookup:.1f}: the test "
        "measures how an adapter is trained, not what 8x compression loses.",
    ]


def why(e: Evidence, other: str) -> str:
    """How another fix compares with the recommended one: F1, what is known of the difference, and cost per step."""
    pair, seconds = e.pair(e.recommended, other), e.cost.set_index("objective")["seconds"]
    sign = 1 if pair["first"] == e.recommended else -1
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    ratio = seconds[other] / seconds[e.recommended]
    return (
        f"{OBJECTIVES[other].label}: F1 {f1_of(e, other)}, so the recommended one gains {sign * pair['mean']:+.1f} "
        f"[{low:+.1f}, {high:+.1f}] points ({pair['finding']}); {ratio:.2g} times its seconds per step"
    )


def recommendation(e: Evidence) -> list[str]:
    """What to do, one sentence each, with the numbers for it."""
    others = [name for name in FIXES if name != e.recommended]
    term = e.pair("option3_teacher_forced", "answer_ce")
    runs = (
        e.runs[e.runs["objective"] == e.recommended]
        .groupby(["initialisation", "output_scaling"])["f1"]
        .mean()
    )
    padding = e.padding.set_index("objective")["f1"]
    best = padding.drop("as_found").idxmax()
    seeds = int(e.padding.set_index("objective").loc[best, "seeds"])
    return [
        f"**Train with {OBJECTIVES[e.recommended].label}.** Against it "
        + "; ".join(why(e, other) for other in others)
        + ".",
        f"**Start the adapter at {name_of(e.adapter)}.** With the recommended objective F1 is "
        f"{runs[e.adapter]:.1f}, from the adapter as found ({name_of(AS_FOUND)}) {runs[AS_FOUND]:.1f}.",
        "**The reconstruction term** of option 3 is "
        + (
            "worth keeping or dropping on other grounds"
            if term["finding"] is not Finding.DIFFERENT
            else "no free choice"
        )
        + f": with and without it F1 differs by {term['mean']:.1f} [{term['low']:.1f}, {term['high']:.1f}] points, the "
        f"better being `{term['first']}` ({term['finding']}).",
        f"**{PADDING[best]}** The analysed objective has F1 {padding['as_found']:.1f}; `{best}` alone brings it to "
        f"{padding[best]:.1f} ({seeds} seeds), {padding[best] - f1_of(e, e.recommended).mean:+.1f} against the "
        "recommended objective, not tested.",
        "**State the target as a share of the ceiling**, measured in the same run: F1 points mean something else on "
        f"every model ({e.config.target_f1:g} of {e.config.baseline_f1:g} there is "
        f"{e.config.target_f1 / e.config.baseline_f1 * e.ceiling:.1f} here).",
    ]
