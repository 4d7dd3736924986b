"""Why does `as_found` fail? The same two terms without any padding, beside the committed runs.

    python benchmarks/as_found_padding.py            # one adapter at the analysis's budget: 12 minutes of one CPU core

Trains one adapter (seed 0, from the PCA inverse, calibrated) on reconstruction + cross-entropy of the real prompt and
answer tokens, each with weight 1, the answer right after the prompt, and writes
`benchmarks/results/as_found_padding.csv`. The learning rate is not chosen for it; it is the one that suits most
objectives.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from stage1 import objectives, results, study
from stage1.config import load_preset
from stage1.model_card import markdown_table

RESULTS = Path(__file__).parent / "results" / "as_found_padding.csv"


def without_padding(adapter: nn.Module, batch: objectives.Examples, setting: objectives.Setting) -> objectives.Terms:
    """`as_found` without padding: neither labels on it nor a gap of it between prompt and answer."""
    lm, name = setting.lm, "without_padding"
    rows = objectives.join(batch.prompts, batch.answers, lm.pad_token, lm.device)
    tokens = objectives.prompt_tokens(batch.prompts, lm.device)
    return {
        "reconstruction": objectives.mse(adapter, tokens, setting, name),
        "cross_entropy": objectives.token_ce(adapter, rows, rows.prompt | rows.answer, setting, name),
    }


def measure(learning_rate: float, questions: int) -> dict:
    objectives.OBJECTIVES["without_padding"] = without_padding
    config = load_preset("full").replace(
        objective="without_padding", learning_rate=learning_rate, test_examples=questions, selection_every=0
    )
    prepared = study.prepare(config)
    adapter, progress = study.train_adapter(prepared, resumable=False)
    scored, rebuilt = study.test_adapter(prepared, adapter)
    row = {"objective": "without_padding", "seeds": 1, "questions": len(scored), "learning_rate": learning_rate}
    row |= {"selection_f1": progress.selection[-1]["f1"], "f1": scored["f1"].mean(), "em": scored["em"].mean()}
    return row | {"fvu": rebuilt["fvu"]}


def committed() -> dict:
    """The faithful objective from the same start, from the records of the GPU."""
    runs = results.committed("full", "runs_10000x3.csv").set_index(results.ADAPTER)
    runs = runs.loc[("as_found", "pca_inverse", "calibrated")]
    row = {"objective": "as_found", "seeds": len(runs)}
    names = ["questions", "learning_rate", "selection_f1", "f1", "em", "fvu"]
    return row | runs[names].mean().to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learning-rate", type=float, default=1.0e-2)
    parser.add_argument("--questions", type=int, default=500, help="test questions")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = pd.DataFrame([committed(), measure(given.learning_rate, given.questions)]).round(3)
    table["questions"] = table["questions"].astype(int)
    table.to_csv(RESULTS, index=False)
    print(markdown_table(table))


if __name__ == "__main__":
    main()
