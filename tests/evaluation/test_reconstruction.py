"""The error of reconstructed embeddings, against worked examples."""

import math
import sys

import numpy as np
import pytest
import torch

from stage1.compress import fit_pca
from stage1.evaluation import reconstruction

COUNTS = np.arange(20) % 5
TABLE = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) + 1
NOISY = TABLE + torch.randn(20, 6, generator=torch.Generator().manual_seed(1))


def test_the_original_embeddings_have_no_error():
    perfect = {"mse": 0, "fvu": 0, "cosine": 1, "norm_ratio": 1, "nearest_right": 1}
    assert reconstruction(TABLE, TABLE.clone(), COUNTS) == pytest.approx(perfect, abs=1e-12)


def test_the_mean_embedding_leaves_all_variance_unexplained():
    table = TABLE.double()
    mean = torch.from_numpy(COUNTS / COUNTS.sum()) @ table
    measured = reconstruction(table, mean.expand(20, 6).contiguous(), COUNTS)
    variance = np.average((table - mean).square().mean(1), weights=COUNTS)
    assert measured["fvu"] == pytest.approx(1, abs=1e-9)
    assert measured["mse"] == pytest.approx(variance)
    assert measured["nearest_right"] <= 1 / 4


def test_embeddings_of_twice_the_length_keep_their_direction():
    measured = reconstruction(TABLE, 2 * TABLE, COUNTS)
    assert measured["norm_ratio"] == pytest.approx(2) and measured["cosine"] == pytest.approx(1)
    mse = np.average(TABLE.double().square().mean(1), weights=COUNTS)
    assert measured["mse"] == pytest.approx(mse)


def test_a_hand_worked_reconstruction():
    # Token 0 occurs once, token 1 three times, token 2 never.
    table = torch.tensor([[4.0, 0.0], [0.0, 3.0], [9.0, 9.0]])
    rebuilt = torch.tensor([[4.0, 0.0], [4.0, 3.0], [-50.0, 0.0]])
    measured = reconstruction(table, rebuilt, np.array([1, 3, 0]))
    assert measured["mse"] == pytest.approx(3 / 4 * 16 / 2)
    # Means 1 and 9/4; squared distances 9 + 81/16 once and 1 + 9/16 three times; two dimensions.
    variance = (1 / 4 * (9 + 81 / 16) + 3 / 4 * (1 + 9 / 16)) / 2
    assert measured["fvu"] == pytest.approx(6 / variance)
    assert measured["cosine"] == pytest.approx(1 / 4 * 1 + 3 / 4 * 3 / 5)
    assert measured["norm_ratio"] == pytest.approx(1 / 4 * 1 + 3 / 4 * 5 / 3)
    # (4, 3) is nearer to (4, 0), 3 away, than to (0, 3), 4 away.
    assert measured["nearest_right"] == 1 / 4


def test_tokens_that_do_not_occur_do_not_count():
    spoiled = NOISY.clone()
    spoiled[COUNTS == 0] = math.nan
    assert reconstruction(TABLE, spoiled, COUNTS) == reconstruction(TABLE, NOISY, COUNTS)


@pytest.mark.parametrize("chunk", [1, 7])
def test_the_chunk_size_does_not_matter(monkeypatch, chunk):
    whole = reconstruction(TABLE, NOISY, COUNTS)
    module = sys.modules[
        "stage1.evaluation.reconstruction"
    ]  # the package has a function of that name
    monkeypatch.setattr(module, "CHUNK", chunk)
    assert reconstruction(TABLE, NOISY, COUNTS) == pytest.approx(whole, rel=1e-12)
    assert 0 < whole["nearest_right"] < 1


def test_counts_weigh_by_their_shares():
    weighted = reconstruction(TABLE, NOISY, COUNTS)
    assert weighted == pytest.approx(reconstruction(TABLE, NOISY, 7 * COUNTS))
    uniform = reconstruction(TABLE, NOISY, np.ones(20, dtype=np.int64))
    assert weighted["mse"] != pytest.approx(uniform["mse"])


def test_the_variance_that_pca_keeps_is_the_variance_explained(lm):
    counts = np.arange(len(lm.embedding_table)) % 7
    pca = fit_pca(lm.embedding_table, torch.from_numpy(counts), 24)
    rebuilt = pca.expand(pca.compress(lm.embedding_table))
    fvu = reconstruction(lm.embedding_table, rebuilt, counts)["fvu"]
    assert fvu == pytest.approx(1 - pca.kept, rel=1e-4)
