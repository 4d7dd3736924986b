"""Reference values for the two kinds of loss: what makes a reconstruction error or a cross-entropy large or small."""

import math

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
from stage1.model.generation import by_length
from stage1.objectives import ExampleBatch, ObjectiveContext, answer_ce, as_found, option2_prompt_ce
from stage1.training.gradients import Lookup, lookup_context


def reconstruction_references(
    table: Float[Tensor, "V D"], counts: np.ndarray, compression: Compression, config: StudyConfig
) -> pd.DataFrame:
    """mse and fvu of what needs no training, over the tokens that `counts` stand for: the values that make another
    one large or small. The two random starts are those of the config's seed."""
    share = torch.from_numpy(counts / counts.sum()).to(table)
    starts = {
        f"random start, {scaling}": config.replace(initialisation="random", output_scaling=scaling)
        for scaling in ("unit_rms", "calibrated")
    }
    codebook, weights = compression.compress(table), torch.from_numpy(counts)
    rebuilt: dict[str, Tensor] = {
        name: adapters.decode(adapters.make(compression, table, weights, start), codebook)
        for name, start in starts.items()
    }
    rebuilt |= {"zero": torch.zeros_like(table), "constant mean": (share @ table).expand_as(table)}
    rebuilt["pca_inverse"] = compression.expand(codebook)
    rows = {name: reconstruction(table, guess, counts) for name, guess in rebuilt.items()}
    rows["original embeddings"] = {"mse": 0.0, "fvu": 0.0}
    return pd.DataFrame(rows, index=["mse", "fvu"]).T.rename_axis("predictor").reset_index()


@torch.no_grad()
def ce_references(encoded: Encoded, context: ObjectiveContext) -> pd.DataFrame:
    """Cross-entropy in nats per token, for each set of tokens that an objective supervises: of the frozen model reading
    the original embeddings, of the best constant distribution (their own frequencies), and of the uniform one."""
    reading = {
        "answer": answer_ce,
        "prompt": option2_prompt_ce,
        "prompt, padding, answer": as_found,
    }
    original, ids = Lookup(context.lm.embedding_table.float()), lookup_context(context)
    batches = [
        ExampleBatch([encoded.prompts[i] for i in batch], [encoded.answers[i] for i in batch])
        for batch in by_length(encoded.prompts, context.config.eval_batch_size)
    ]
    rows = []
    for tokens, objective in reading.items():
        terms = [objective(original, batch, ids)["cross_entropy"] for batch in batches]
        supervised = sum(term.tokens for term in terms)
        row = {
            "tokens": tokens,
            "original embeddings": sum(t.tokens * float(t.value) for t in terms) / supervised,
        }
        row |= {"own frequencies": entropy(frequencies(encoded, context, tokens))}
        rows.append(row | {"uniform": math.log(len(ids.codebook)), "supervised": supervised})
    return pd.DataFrame(rows)


def frequencies(encoded: Encoded, context: ObjectiveContext, tokens: str) -> np.ndarray:
    """How often each vocabulary entry is a label, [V], for the sets of tokens that `ce_references` names."""
    V, config = len(context.codebook), context.config
    # The first token of a prompt is nobody's label.
    prompts = np.bincount([i for ids in encoded.prompts for i in ids[1:]], minlength=V)
    answers = np.bincount([i for ids in encoded.answers for i in ids], minlength=V)
    whole = prompts + answers
    rows = config.max_prompt_tokens + config.max_answer_tokens - 1
    whole[context.lm.pad_token] += len(encoded) * rows - whole.sum()
    return {"answer": answers, "prompt": prompts, "prompt, padding, answer": whole}[tokens]


def entropy(counts: np.ndarray) -> float:
    """In nats, of the distribution that the counts stand for."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
