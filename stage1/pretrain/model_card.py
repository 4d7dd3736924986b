"""The model card of the shipped language model, written from the records of its training."""

from pathlib import Path

import numpy as np
import pandas as pd

from stage1 import store
from stage1.scoring.intervals import Interval
from stage1.scoring.tables import markdown_table

CARD = """# almanac-lm

A Llama-architecture causal language model of {parameters:,} parameters (D={width}, {depth} layers, V={vocabulary:,},
untied, bf16), trained from scratch on the almanac, the generated corpus of the `stage1` package. It reads a passage and
a question and copies out the answer. It knows nothing of the world and writes nothing but almanac text.

    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)

## Answers from original embeddings

Greedy decoding, fresh test articles that are in no training split; 95 % intervals from resampling articles.

{scores}

`unseen` names stand in no training passage.

## Training

`python -m stage1.pretrain FOLDER`, with every option at the value below. Loss on all tokens, answer tokens weighted.
Corpus: split `pretrain` of almanac seed {seed}, {rows:,} rows of {tokens_per_row:.0f} tokens on average.
Cost on one {device}: {prepare:.0f} s for tokenizer and corpus, {train:.0f} s of training, {all:.0f} s in all.

{config}

The curve, every hundred steps, is `training_curve.csv` (cross-entropy in nats per token):

{curve}

This page is written by `stage1.pretrain.model_card` from `training.json` and `training_curve.csv`.
"""  # noqa: E501


def score_table(record: dict) -> str:
    """Return the F1 and EM of a training record as a Markdown table."""
    scores = pd.DataFrame(record["scores"])
    for metric in ("f1", "em"):
        scores[metric] = [str(Interval(**interval)) for interval in scores[metric]]
    return markdown_table(scores)


def write_card(folder: Path) -> Path:
    """Write the model card `README.md` from the records beside the weights."""
    record = store.read_json(folder / "training.json")
    curve = pd.read_csv(folder / "training_curve.csv")
    config = pd.DataFrame(record["config"].items(), columns=["option", "value"])
    points = curve.iloc[np.unique(np.linspace(0, len(curve) - 1, 9).astype(int))].round(5)
    values = record | record["config"] | record["seconds"]
    values |= {
        "device": record["provenance"]["device"],
        "scores": score_table(record),
        "config": markdown_table(config),
        "curve": markdown_table(points.astype({"step": object})),
    }
    text = CARD.format(**values)
    return store.write_atomically(folder / "README.md", lambda path: path.write_text(text, "utf-8"))
