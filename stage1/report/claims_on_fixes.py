"""Rules for the analysis's claims f to o: its fixes, its target and its budget. See `claims`."""

import pandas as pd
from scipy import stats

from stage1.report.evidence import AS_FOUND, START, Evidence
from stage1.report.verdicts import Judgement, Verdict, adapter_name, agreed, claim, decided, signed


@claim("f", "Option 1: good reconstruction gives good generation", with_warmup=True)
def reconstruction_gives_generation(e: Evidence) -> Judgement:
    """Confirmed if F1 and fvu have a rank correlation below -0.8, in option 1 and in all runs."""
    runs = pd.concat([e.runs, e.sizes])
    alone = runs[runs["objective"] == "option1_reconstruction"]
    within, across = (
        stats.spearmanr(table["fvu"], table["f1"]).statistic for table in (alone, runs)
    )
    fvu, f1 = (e.select(e.runs).groupby("objective")[name].mean() for name in ("fvu", "f1"))
    closest, best = fvu.idxmin(), f1.idxmax()
    return Judgement(
        agreed(within < -0.8, across < -0.8),
        f"The rank correlation of F1 with fvu is {within:.2f} over {len(alone)} runs of "
        f"reconstruction alone and {across:.2f} over all {len(runs)}. The best reconstruction "
        f"(`{closest}`, fvu {fvu[closest]:.2f}) has F1 {f1[closest]:.1f}; the best F1 (`{best}`, "
        f"{f1[best]:.1f}) has fvu {fvu[best]:.2f}.",
        "whether runs of option 1 alone are compared or runs of all objectives",
    )


@claim("g", "Option 1 needs more training to converge")
def option1_needs_more(e: Evidence) -> Judgement:
    """Confirmed if a reconstruction warm-up before it gains more than the margin.

    That is option 1 with ten times the steps; both have a learning rate of their own.
    """
    name, three, w = "option1_reconstruction", "option3_teacher_forced", e.warmed
    gain, margin = e.warmup_gain(e.adapter, name), e.config.equivalence_margin
    behind = w.mean(name, adapter=e.adapter) - w.mean(three, adapter=e.adapter)
    return Judgement(
        decided(gain.low > margin, gain.high < margin),
        f"{w.runs['warmup_steps'].max():,.0f} more steps, as a warm-up on the whole vocabulary, "
        f"change its F1 by {signed(gain)} points to {w.mean(name, adapter=e.adapter):.1f}. Even so "
        f"it stays {-behind:.1f} points behind option 3 with the same warm-up.",
    )


@claim("h", "Option 2 as written directly optimises generation", with_warmup=True)
def prompt_ce_optimises_generation(e: Evidence) -> Judgement:
    """Confirmed if option 2 as written is not worse than option 3 by more than the margin."""
    gain = e.gain("option2_prompt_ce", "option3_teacher_forced")
    worse = gain.high <= -e.config.equivalence_margin
    return Judgement(
        decided(not worse, worse),
        "Its labels are the prompt's own tokens, not the answer's. It reaches F1 "
        f"{e.mean('option2_prompt_ce'):.1f}: {signed(gain)} points against option 3.",
    )


@claim("i", "Option 2 needs generation in training, is slow and harder to train", with_warmup=True)
def option2_is_slow_and_hard(e: Evidence) -> Judgement:
    """Confirmed if a step takes 1.5 times one of `distill` and F1 is worse by over the margin."""
    seconds = e.cost.set_index("objective")["seconds"]
    on_policy, as_written = (
        seconds[name] / seconds["distill"] for name in ("option2_on_policy", "option2_prompt_ce")
    )
    gain = e.gain("option2_on_policy", "distill")
    return Judgement(
        agreed(on_policy > 1.5, gain.high < -e.config.equivalence_margin),
        f"As written it needs no generation: a step takes {as_written:.1f} times one of `distill`. "
        f"On-policy it does: {on_policy:.1f} times, and F1 changes by {signed(gain)} points.",
        "which is meant: slow, or harder to train",
    )


@claim("j", "Option 3 is less rigorous but useful", with_warmup=True)
def option3_is_useful(e: Evidence) -> Judgement:
    """Confirmed if option 3 is useful and its teacher-forced reading is a poor guide to F1.

    Useful: the best on the test questions, or found within the margin of it. A poor guide: it
    ranks adapters as free-running F1 does with a rank correlation below 0.9.
    """
    name, best = "option3_teacher_forced", e.table.iloc[0]["objective"]
    useful = e.is_as_good(name, best)
    groups = e.runs.groupby(["objective", "initialisation", "output_scaling"])
    means = groups[["ce_first", "f1"]].mean()
    rank = -stats.spearmanr(means["ce_first"], means["f1"]).statistic
    fvu, ce, f1 = (e.mean(name, column) for column in ("fvu", "ce_first", "f1"))
    return Judgement(
        agreed(useful, rank < 0.9),
        f"Its three readings are fvu {fvu:.2f}, teacher-forced cross-entropy of the first token "
        f"{ce:.2f} nats, and F1 {f1:.1f}. Over {len(means)} objectives and adapters the second "
        f"ranks them as F1 does with a rank correlation of {rank:.2f}.",
        "which is meant: less rigorous, or useful",
    )


@claim("k", "The variable shadowing is harmless")
def shadowing(e: Evidence) -> Judgement:
    """Judged by reading: the analysed script is not part of this project."""
    text = "By reading alone: the line assigns the tensor's own device. Nothing here measures it."
    return Judgement(Verdict.CONFIRMED, text)


@claim("l", "The success threshold may be too high", with_warmup=True)
def threshold_too_high(e: Evidence) -> Judgement:
    """Confirmed if nothing reaches the target, neither in points nor as a share of the ceiling."""
    config, top = e.config, e.table.iloc[0]
    share = e.retention_thresholds["target"]
    return Judgement(
        agreed(top["f1"] < config.target_f1, top["retention"] < share),
        f"The best, `{top['objective']}`, reaches F1 {e.f1(top['objective'])} and retention "
        f"{top['retention']:.1f} %. The target is {config.target_f1:g} points, or {share:.1f} % of "
        f"the way from this floor to the baseline of {config.baseline_f1:g}. Verdict: "
        f"{top['verdict']}.",
        "whether F1 points or retention is compared",
    )


@claim("m", "640 x 2 examples explain the earlier 1 % F1, and 10,000 x 3 suffice")
def data_explains(e: Evidence) -> Judgement:
    """Confirmed if the large budget meets the target, both as found and with the best."""
    small = e.sizes[e.sizes["train_examples"] == e.sizes["train_examples"].min()]
    met, parts = [], []
    for objective, adapter in (("as_found", AS_FOUND), (str(e.best["objective"]), e.adapter)):
        low = e.select(small, objective, adapter)["f1"].mean()
        high = e.mean(objective, adapter=adapter)
        met.append(bool(high >= e.config.target_f1))
        parts.append(f"`{objective}` ({adapter_name(adapter)}) from {low:.1f} to {high:.1f}")
    random = e.runs[e.runs["initialisation"] == "random"]
    best = random.groupby([*START, "objective"])["f1"].mean().groupby(START).max()
    reached = [f"{adapter_name(adapter)} {f1:.1f}" for adapter, f1 in best.items()]
    option3 = e.mean("option3_teacher_forced", adapter=AS_FOUND)
    more = e.mean_with_more("option3_teacher_forced", AS_FOUND)
    return Judgement(
        agreed(*met),
        f"Going from 640 x 2 to 10,000 x 3 takes F1 of {' and of '.join(parts)}. The best "
        f"objective on a random start reaches: {'; '.join(reached)}. Four times the examples take "
        f"option 3 on the adapter as found from {option3:.1f} to {more:.1f}.",
        "objective and adapter",
    )


@claim("n", "If 8x with a simple adapter fails, the larger system will fail")
def failure_would_carry_over(e: Evidence) -> Judgement:
    """Refuted if lookup in the compressed vocabulary is within the margin of the ceiling."""
    f1 = e.untrained.set_index("condition")["f1"]["codebook"]
    lossless = f1 >= e.ceiling - e.config.equivalence_margin
    meaning = (
        "8x fewer dimensions lose nothing here, so a failed adapter condemns its training, not the "
        "compression"
        if lossless
        else "the compression itself loses answers here"
    )
    return Judgement(
        decided(not lossless, lossless),
        f"Nearest-codebook lookup, without any training, reaches F1 {f1:.1f} of {e.ceiling:.1f}: "
        f"{meaning}. This says nothing about a learned encoder of whole prompts, which has no such "
        "table.",
    )


@claim("o", "Batch 64 could go to 80 or 96")
def batch_size(e: Evidence) -> Judgement:
    """Confirmed if 96 examples fit 90 % of the analysis's 85 GB, both as found and here."""
    largest = e.memory.set_index("step")["largest on 85 GB"]
    as_found, now = int(largest["as found"]), int(largest["packed, compiled"])
    return Judgement(
        agreed(as_found >= 96, now >= 96),
        f"At the shape of Llama-3.1-8B, 90 % of 85 GB hold {as_found} examples of the step as "
        f"found, and {now} of a step that freezes the language model, packs examples without "
        "padding and computes logits at supervised tokens only. The analysed run spread its batch "
        "of 64 over four GPUs (docs/original.md).",
        "the step: as found, or this project's, on one GPU",
    )
