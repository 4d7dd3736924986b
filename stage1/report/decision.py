"""The answer and the recommendation, in words that follow from the records.

No winner is named in advance.
"""

from stage1.names import FIXES, OBJECTIVES
from stage1.report.claims import adapter_name, signed
from stage1.report.evidence import AS_FOUND, START, Evidence
from stage1.scoring import criteria
from stage1.scoring.comparison import Difference, Finding

PADDING = {
    "no_padding": "Put no label on padding and leave no gap before the answer.",
    "no_labels_on_padding": "Put no label on padding.",
    "no_gap": "Leave no gap of padding before the answer.",
}
"""What to do where a layout of the padding is the best."""


def compare_factors(start: Difference, answers: Difference) -> str:
    """Say which matters more: where the adapter starts, or the answers it is trained on."""
    gains = f"the PCA inverse instead of a random start gains {start} points, gold instead of "
    gains += f"generated answers {answers}"
    if start.low > abs(answers.mean):
        return f"At this budget the adapter's start matters more than the training answers: {gains}"
    return f"The training answers matter as much as the adapter's start: {gains}"


def answer(e: Evidence) -> list[str]:
    """Return the answer in three parts: which fix, what matters at this budget, what is tested."""
    chosen, target = e.f1(e.recommended), e.config.target_f1
    verdict = criteria.verdict(chosen.mean, criteria.thresholds(e.config))
    share = criteria.thresholds(e.config, share=True)["target"]
    start = e.factor("initialisation", "pca_inverse", "random")
    answers = e.factor("objective", "distill", "option2_on_policy")
    best, as_found = (
        e.mean_with_more("option3_teacher_forced", adapter) for adapter in (e.adapter, AS_FOUND)
    )
    lookup = e.untrained.set_index("condition").loc["codebook", "f1"]
    return [
        f"Prefer {OBJECTIVES[e.recommended].label}. With the adapter {adapter_name(e.adapter)} the "
        f"model reaches F1 {chosen}, against {e.ceiling:.1f} from the original embeddings: "
        f"{verdict} at {target:g} points. That is {e.retention(chosen.mean):.0f} % of the way from "
        f"floor to ceiling; the target is {share:.0f} % of the baseline it was set against.",
        f"{compare_factors(start, answers)}. With four times the examples option 3 reaches "
        f"{best:.1f} on the best adapter and {as_found:.1f} on the adapter as found.",
        f"Nearest-codebook lookup, without any training, reaches F1 {lookup:.1f}: the test "
        "measures how an adapter is trained, not what 8x compression loses.",
    ]


def compare_with(e: Evidence, other: str) -> str:
    """Compare another fix with the recommended one: F1, the difference, and the cost of a step."""
    pair, seconds = e.pair(e.recommended, other), e.cost.set_index("objective")["seconds"]
    sign = 1 if pair["first"] == e.recommended else -1
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    gain = signed((sign * pair["mean"], low, high))
    ratio = seconds[other] / seconds[e.recommended]
    return (
        f"{OBJECTIVES[other].label} reaches F1 {e.f1(other)} at {ratio:.2g} times the seconds per "
        f"step, so the recommended objective gains {gain} points ({pair['finding']})"
    )


def recommendation(e: Evidence) -> list[str]:
    """Return what to do, one entry per decision, with the numbers for it."""
    label, recommended = OBJECTIVES[e.recommended].label, e.f1(e.recommended).mean
    others = [compare_with(e, name) for name in FIXES if name != e.recommended]
    runs = e.runs[e.runs["objective"] == e.recommended].groupby(START)["f1"].mean()
    term = e.pair("option3_teacher_forced", "answer_ce")
    decides = term["finding"] is Finding.DIFFERENT
    padding = e.padding.set_index("objective")
    f1 = padding["f1"]
    best = f1.drop("as_found").idxmax()
    config = e.config
    return [
        f"**Train with {label}.** Against it: {'; '.join(others)}.",
        f"**Use the adapter {adapter_name(e.adapter)}.** With the recommended objective it reaches "
        f"F1 {runs[e.adapter]:.1f}, the adapter as found ({adapter_name(AS_FOUND)}) "
        f"{runs[AS_FOUND]:.1f}.",
        f"**The reconstruction term** of option 3 {'matters' if decides else 'is optional'}: F1 "
        f"with and without it differs by {term['mean']:.1f} [{term['low']:.1f}, "
        f"{term['high']:.1f}] points in favour of `{term['first']}` ({term['finding']}).",
        f"**{PADDING[best]}** The analysed objective has F1 {f1['as_found']:.1f}; `{best}` alone "
        f"brings it to {f1[best]:.1f} ({padding.loc[best, 'seeds']:.0f} seeds), "
        f"{f1[best] - recommended:+.1f} points against the recommended objective (not tested).",
        "**State the target as a share of the ceiling**, measured in the same run. F1 points mean "
        f"something else on every model: {config.target_f1:g} of {config.baseline_f1:g} there is "
        f"{config.target_f1 / config.baseline_f1 * e.ceiling:.1f} here.",
    ]
