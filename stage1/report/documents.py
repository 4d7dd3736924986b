"""Blocks of README and docs that are written from the committed records.

    python -m stage1.report.documents     # rewrites every block between its two markers

A block stands between `<!-- records: NAME -->` and `<!-- end -->`. Prose around it is free.
"""

import re
from collections.abc import Callable

import pandas as pd

from stage1 import store
from stage1.config import load_preset
from stage1.report import (
    at_shape,
    claims,
    controls,
    decision,
    english_blocks,
    evidence,
    fault_results,
    fault_takeaways,
    results,
    several_gpus,
)
from stage1.report.controls import Controls
from stage1.scoring.intervals import Interval
from stage1.scoring.tables import markdown_table, paragraphs

PAGES = (
    "README.md", "docs/analysis.md", "docs/original.md", "docs/clusters.md", "docs/llama.md",
    "docs/benchmarks.md",
)  # fmt: skip
BLOCK = re.compile(r"(<!-- records: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
BLOCKS: dict[str, Callable[[Controls], str]] = dict(english_blocks.BLOCKS)
"""What every block holds, by name."""


def block(function: Callable[[Controls], str]) -> Callable[[Controls], str]:
    BLOCKS[function.__name__] = function
    return function


@block
def answer(c: Controls) -> str:
    what_to_do, _, what_is_tested = decision.answer(c.evidence)
    return paragraphs([what_to_do, what_is_tested])


@block
def factors(c: Controls) -> str:
    _, what_matters, _ = decision.answer(c.evidence)
    return paragraphs([what_matters])


@block
def beyond(c: Controls) -> str:
    return paragraphs(decision.beyond(c))


@block
def headline(c: Controls) -> str:
    return markdown_table(c.evidence.warmed.headline)


@block
def verdicts(c: Controls) -> str:
    return markdown_table(claims.table(c.evidence).drop(columns="evidence"))


@block
def with_warmup(c: Controls) -> str:
    w = c.evidence.warmed
    table = results.headline(results.budget_table(w.runs, w.untrained))
    return f"{markdown_table(table)}\n\n{paragraphs([effects(w)])}"


@block
def without_warmup(c: Controls) -> str:
    e = c.evidence
    table = results.headline(results.budget_table(e.runs, e.untrained))
    f1 = e.untrained.set_index("condition")["f1"]
    untrained = (
        f"Without any training, F1 is {f1['embeddings']:.1f} from the original embeddings, "
        f"{f1['codebook']:.1f} by lookup, {f1['pca_inverse']:.1f} by the PCA inverse and "
        f"{f1['question_only']:.1f} from the question without its context "
        "(`records/full/untrained.csv`, computed on a CPU)."
    )
    return f"{markdown_table(table)}\n\n{paragraphs([untrained, effects(e)])}"


def effects(e: evidence.Evidence) -> str:
    """Say what three factors are worth."""
    start = e.factor("initialisation", "pca_inverse", "random")
    scaling = e.factor("output_scaling", "calibrated", "unit_rms")
    answers = e.factor("objective", "distill", "option2_on_policy")
    return (
        "Effects in F1 points, over the two objectives that differ only in their training answers "
        f"(`distill` and `option2_on_policy`): PCA inverse instead of a random start {start}, "
        f"calibrated instead of unit RMS output {scaling}, gold instead of generated answers "
        f"{answers}."
    )


@block
def lengths(c: Controls) -> str:
    return markdown_table(c.lengths())


@block
def schedules(_: Controls) -> str:
    """The best of the learning rates tried, by schedule of the warm-up."""
    table = results.committed("full", "warmup_schedules.csv")
    table = table[table["objective"] == "answer_ce"]
    by = ["warmup_uniform", "warmup_rate", "warmup_steps"]
    best = table.groupby(by)["selection_f1"].max().round(1).reset_index().astype(object)
    best["warmup_steps"] = best["warmup_steps"].map("{:,}".format)
    return markdown_table(
        best.set_axis(["uniform share m", "rate", "steps", "selection F1"], axis=1)
    )


@block
def edges(c: Controls) -> str:
    """The cells of the search whose best learning rate is the smallest or the largest tried."""
    found = []
    for (steps, *cell), rows in c.search().groupby(["warmup_steps", *results.ADAPTER]):
        if (rate := controls.edge(rows)) is not None:
            found.append((f"{steps:,}", ", ".join(cell), f"{rate:g}"))
    head = ["warm-up steps", "cell whose best rate is at the edge", "rate"]
    return markdown_table(pd.DataFrame(found, columns=head))


@block
def language_models(c: Controls) -> str:
    return markdown_table(c.language_models().round({"ceiling": 1}))


@block
def ratios(c: Controls) -> str:
    """F1 with its interval in words: ratios in rows, conditions in columns."""
    table = c.ratios()
    bounds = table[["f1", "f1_low", "f1_high"]].itertuples(index=False)
    table["words"] = [str(Interval(*f1)) for f1 in bounds]
    by = ["ratio", "K"]
    wide = table.pivot(index=by, columns="condition", values="words")
    wide = wide[table["condition"].unique()]
    wide["seeds"] = table.groupby(by)["seeds"].max()
    return f"{markdown_table(wide.reset_index())}\n\n{paragraphs([decision.open_rates(c)])}".strip()


@block
def baselines(c: Controls) -> str:
    return markdown_table(c.baselines())


@block
def padding(c: Controls) -> str:
    return markdown_table(c.evidence.padding)


@block
def small_budget(c: Controls) -> str:
    sizes: pd.DataFrame = c.evidence.sizes
    small = sizes[sizes["train_examples"] == sizes["train_examples"].min()]
    highest = small.groupby(results.ADAPTER)["f1"].mean().max()
    return paragraphs(
        [
            "With 640 questions x 2 epochs and learning rates of its own, no objective exceeds F1 "
            f"{highest:.1f} on average, neither on the best adapter nor on the adapter as found "
            "(`records/full/runs_640x2.csv`, without a warm-up)."
        ]
    )


@block
def faults(_: Controls) -> str:
    """What alone explains the zero of the original, what hides, what flatters."""
    return paragraphs(fault_takeaways.sentences())


def or_command(make: Callable[[], str]) -> str:
    """Return what `make` returns, or the command that makes a missing table."""
    try:
        return make()
    except store.RecordError as error:
        return paragraphs([f"Not measured yet: {error}."])


@block
def several_gpus_summary(_: Controls) -> str:
    return paragraphs(several_gpus.summary())


@block
def several_gpus_tables(_: Controls) -> str:
    try:
        table, made = several_gpus.load()
    except store.RecordError:
        return "Not measured yet."
    tables = map(markdown_table, (several_gpus.rates(table), several_gpus.checks(table)))
    return "\n\n".join([paragraphs([several_gpus.machine(made)]), *tables])


@block
def ladder(_: Controls) -> str:
    return or_command(lambda: markdown_table(fault_results.ladder_table()))


@block
def cost_of_experiment(_: Controls) -> str:
    return or_command(at_shape.cost)


@block
def cost_of_stages(_: Controls) -> str:
    return or_command(at_shape.stage_table)


@block
def warmup_at_shape(_: Controls) -> str:
    return or_command(at_shape.warmup)


@block
def peers(_: Controls) -> str:
    return or_command(at_shape.peers)


def written(text: str, c: Controls) -> str:
    """Return a page's text with every block written anew. Raises KeyError for an unknown block."""
    return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]](c)}\n{match[3]}", text)


def load() -> Controls:
    return controls.load(evidence.load(load_preset("full")))


def main() -> None:
    c = load()
    for name in PAGES:
        page = store.ROOT / name
        text = written(page.read_text("utf-8"), c)
        store.write_text(page, text)


if __name__ == "__main__":
    main()
