"""Faults of the compression: what PCA is fitted on, and what is said of it."""

from dataclasses import replace

import numpy as np
import torch

from stage1 import compress
from stage1.corpus.prompts import token_counts
from stage1.faults.switch import replaces

FIT = "stage1.compress:fit_pca"
TOKENS_PER_DIMENSION = 10_000 / 4_096
"""Tokens that the analysed code fitted PCA on, by embedding dimension."""


@replaces("pca_on_few_tokens", FIT)
def of_few_tokens(original):
    def fit_pca(table, counts, width, weighting="token") -> compress.Compression:
        tokens = max(width + 1, round(TOKENS_PER_DIMENSION * table.shape[1]))
        shares = counts.double().cpu().numpy() / int(counts.sum())
        drawn = np.random.default_rng(0).multinomial(tokens, shares)
        return original(table, torch.from_numpy(drawn), width, weighting)

    return fit_pca


@replaces("no_mean_subtracted", "stage1.compress:moments")
def around_zero(original):
    def moments(table, counts) -> tuple[torch.Tensor, torch.Tensor]:
        mean, covariance = original(table, counts)
        return torch.zeros_like(mean), covariance + torch.outer(mean, mean)

    return moments


@replaces("pca_on_test", "stage1.study.preparation:Study")
def of_the_test_prompts(original):
    def study(config, lm, encoded, counts, compression):
        test = torch.from_numpy(token_counts(encoded["test"].prompts, len(counts)))
        width, weighting = compression.width, config.weighting
        fitted = compress.fit_pca(lm.embedding_table, test, width, weighting)
        return original(config, lm, encoded, counts, fitted)

    return study


@replaces("explained_over_kept", FIT)
def over_the_kept_spectrum(original):
    def fit_pca(table, counts, width, weighting="token") -> compress.Compression:
        fitted = original(table, counts, width, weighting)
        kept = torch.arange(len(fitted.variances), device=fitted.variances.device) < width
        return replace(fitted, variances=fitted.variances * kept, kept=1.0)

    return fit_pca
