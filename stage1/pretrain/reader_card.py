"""The model card of a reader, written from the record of its training."""

from pathlib import Path

import numpy as np
import pandas as pd

from stage1 import store
from stage1.scoring.intervals import Interval
from stage1.scoring.tables import markdown_table

CARD = """# {name}

A Llama-architecture causal language model of {parameters:,} parameters (D={width}, {depth} layers, {heads} heads,
V={vocabulary:,}, {tied}, bf16, {megabytes:.1f} MB), trained from scratch. It reads a passage and a question and copies out
the answer: `Context: ... Question: ... Answer:`. Prompts have at most {row} tokens.

    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)

## Answers

{scores}

## What it read

{sources}

{paragraphs[kept]:,} of {paragraphs[read]:,} paragraphs
and {questions[kept]:,} of {questions[read]:,} questions were used. Left out as duplicates: {paragraphs[duplicates]:,}
paragraphs, {questions[duplicates]:,} questions. Left out because they share 13 successive words with a held-out passage or
question, or are such a question: {paragraphs[shared with held-out]:,} paragraphs, {questions[shared with held-out]:,} questions.

{rows}

## What it cannot do

It knows little of the world, was never taught to refuse, and answers any question with a phrase that looks like one from
the passage, whether or not the passage answers it. It has read nothing but the sources above. It is a subject of study,
not a source of facts.

## Training

{steps:,} steps of {batch} rows of {row} tokens: {tokens_read:,} tokens in {seconds:,.0f} s on one {device}, at
{tokens_per_s:,.0f} tokens/s, {share_of_matmul_rate:.0%} of the device's matmul rate. Muon on the layers' matrices, AdamW elsewhere;
loss on all tokens, answer tokens weighted. Attention stays within documents.

{config}

The curve is `training_curve.csv` (cross-entropy in nats per token):

{curve}

This page is written by `stage1.pretrain.reader_card` from `training.json` and `training_curve.csv`.
"""  # noqa: E501
SHOWN = ["step", "cross_entropy", "answer_cross_entropy", "answer_accuracy", "rate_share"]
NO_SCORES = "Not scored."
SCORED = """Greedy decoding, {held_out}; 95 % intervals from resampling articles.
`question_only` is the floor: the same questions without their context. `ended`: answers with an end
token; `shortened`: passages that were cut to fit.

{table}"""


def sources(shards: dict) -> str:
    """Return the sources of text and questions as a Markdown table, and their licences."""
    config = shards["config"]
    kinds = {"text": "text", "questions": "questions", "held_out": "held out"}
    shown = [(kind, name) for field, kind in kinds.items() for name in config[field]]
    table = markdown_table(pd.DataFrame(shown, columns=["use", "source"]))
    return "\n\n".join([table, *config["licences"]])


def rows_table(record: dict) -> str:
    table = pd.DataFrame(record["shards"]["rows"]).T.rename_axis("kind").reset_index()
    table["rows read"] = table["kind"].map(record["rows_read"])
    table["times read"] = (table["rows read"] / table["rows"]).round(2)
    table["filled"] = table["filled"].round(3)
    whole = ["rows", "tokens", "answer_tokens"]
    return markdown_table(table.astype(dict.fromkeys(whole, int)).astype(object))


def scores_text(record: dict) -> str:
    if not record["scores"]:
        return NO_SCORES
    table = pd.DataFrame(record["scores"])
    for metric in ("f1", "em"):
        table[metric.upper()] = [str(Interval(**interval)) for interval in table.pop(metric)]
    table["ended"] = [f"{share:.1%}" for share in table["ended"]]
    held_out = f"{table['questions'].max():,} questions that no training row shares"
    return SCORED.format(held_out=held_out, table=markdown_table(table))


def write_card(folder: Path) -> Path:
    """Write the model card `README.md` from the records beside the weights."""
    record = store.read_json(folder / "training.json")
    curve = pd.read_csv(folder / "training_curve.csv")
    shards, config = record["shards"], record["config"]
    options = pd.DataFrame(config.items(), columns=["option", "value"])
    points = curve.iloc[np.unique(np.linspace(0, len(curve) - 1, 9).astype(int))][SHOWN].round(4)
    values = record | config | record["shape"] | record["speed"]
    values |= {
        "paragraphs": shards["paragraphs"],
        "questions": shards["questions"],
        "name": folder.resolve().name,
        "row": shards["config"]["row"],
        "tied": "head tied to the embeddings" if record["shape"]["tied"] else "untied",
        "megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
        "device": record["provenance"]["device"],
        "scores": scores_text(record),
        "sources": sources(shards),
        "rows": rows_table(record),
        "config": markdown_table(options),
        "curve": markdown_table(points.astype({"step": object})),
    }
    text = CARD.format(**values)
    return store.write_atomically(folder / "README.md", lambda path: path.write_text(text, "utf-8"))
