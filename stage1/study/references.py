"""Reference values that show whether a reconstruction error or cross-entropy is large or small."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from stage1 import adapter as adapters
from stage1.compress import Compression
from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded
from stage1.evaluation.reconstruction import reconstruction
from stage1.loss_parts import ExampleBatch, ObjectiveContext
from stage1.model.generation import by_length
from stage1.objectives import answer_ce, as_found, option2_prompt_ce
from stage1.training.gradients import Lookup, lookup_context


def reconstruction_references(
    table: Float[Tensor, "V D"], counts: np.ndarray, compression: Compression, config: StudyConfig
) -> pd.DataFrame:
    """Return mse and fvu of predictors that need no training, over the counted tokens.

    The two random starts are those of the adapter under study with the config's seed.
    """
    share = torch.from_numpy(counts / counts.sum()).to(table)
    codebook, weights = compression.compress(table), torch.from_numpy(counts)
    rebuilt = {}
    for scaling in ("unit_rms", "calibrated"):
        start = config.replace(
            architecture="film",
            projection="pca",
            initialisation="random",
            output_scaling=scaling,
        )
        untrained = adapters.make(compression, table, weights, start)
        rebuilt[f"random start, {scaling}"] = adapters.decode(untrained, codebook)
    rebuilt |= {"zero": torch.zeros_like(table), "constant mean": (share @ table).expand_as(table)}
    rebuilt["pca_inverse"] = compression.expand(codebook)
    rows = {name: reconstruction(table, guess, counts) for name, guess in rebuilt.items()}
    rows["original embeddings"] = {"mse": 0.0, "fvu": 0.0}
    return pd.DataFrame(rows, index=["mse", "fvu"]).T.rename_axis("predictor").reset_index()


@torch.no_grad()
def ce_references(encoded: Encoded, context: ObjectiveContext) -> pd.DataFrame:
    """Return cross-entropies in nats per token, one row per set of supervised tokens.

    Predictors: the frozen model that reads the original embeddings, the best constant distribution
    (the tokens' own frequencies), and the uniform distribution.
    """
    objectives = {
        "answer": answer_ce,
        "prompt": option2_prompt_ce,
        "prompt, padding, answer": as_found,
    }
    config = context.config.replace(padding_layout="as_found")
    ids = lookup_context(replace(context, config=config))
    original = Lookup(context.lm.embedding_table.float())
    examples = ExampleBatch(encoded.prompts, encoded.answers)
    indices = by_length(encoded.prompts, config.eval_batch_size)
    batches = [examples.select(batch) for batch in indices]
    rows = []
    for tokens, objective in objectives.items():
        terms = [objective(original, batch, ids)["cross_entropy"] for batch in batches]
        supervised = sum(term.tokens for term in terms)
        ce = sum(term.tokens * float(term.value) for term in terms) / supervised
        own = entropy(label_counts(encoded, context, tokens))
        uniform = math.log(len(ids.codebook))
        rows.append((tokens, ce, own, uniform, supervised))
    columns = ["tokens", "original embeddings", "own frequencies", "uniform", "supervised"]
    return pd.DataFrame(rows, columns=columns)


def label_counts(encoded: Encoded, context: ObjectiveContext, tokens: str) -> np.ndarray:
    """Return how often each token is a label, [V], in a set of tokens of `ce_references`."""
    V, config = len(context.codebook), context.config
    # The first token of a prompt is nobody's label.
    prompts = np.bincount([i for ids in encoded.prompts for i in ids[1:]], minlength=V)
    answers = np.bincount([i for ids in encoded.answers for i in ids], minlength=V)
    whole = prompts + answers
    length = config.max_prompt_tokens + config.max_answer_tokens - 1
    whole[context.lm.pad_token] += len(encoded) * length - whole.sum()
    return {"answer": answers, "prompt": prompts, "prompt, padding, answer": whole}[tokens]


def entropy(counts: np.ndarray) -> float:
    """Return the entropy in nats of the distribution that the counts stand for."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
