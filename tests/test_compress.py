"""PCA from counts against scikit-learn on one row per token, the control, and lookup decoding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from stage1.compress import Kind, fit_pca, nearest_codebook, random_projection, variance

V, D = 60, 16


def table_and_counts(seed=0):
    """Return a table with a decaying spectrum and a mean, and Zipf-like counts with gaps."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(V, D, generator=generator) * 0.9 ** torch.arange(D) + 3
    counts = (200 / torch.arange(1, V + 1)).long()
    counts[5], counts[17] = 0, 0
    return table, counts


@given(seed=st.integers(0, 1_000))
def test_pca_from_counts_equals_scikit_learns_pca_of_every_token(seed):
    table, counts = table_and_counts(seed)
    ours = fit_pca(table, counts, 4)
    theirs = PCA().fit(table.double().repeat_interleave(counts, 0).numpy())
    np.testing.assert_allclose(ours.variances, theirs.explained_variance_, rtol=1e-8)
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_.cumsum(), rtol=1e-8)
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-6)
    for mine, other in zip(ours.components.numpy(), theirs.components_, strict=False):
        assert min(abs(mine - other).max(), abs(mine + other).max()) < 1e-5  # float32 components


def test_vocabulary_uniform_pca_counts_every_entry_once_and_says_so():
    table, counts = table_and_counts()
    uniform = fit_pca(table, counts, 4, "vocabulary")
    ones = fit_pca(table, torch.ones_like(counts), 4)
    assert torch.equal(uniform.components, ones.components)
    assert (uniform.kind, ones.kind) == (Kind.PCA_VOCABULARY, Kind.PCA_TOKEN)
    assert not torch.allclose(uniform.variances, fit_pca(table, counts, 4).variances)


def test_the_chunk_size_does_not_change_the_spectrum(monkeypatch):
    table, counts = table_and_counts()
    whole = fit_pca(table, counts, 4)
    monkeypatch.setattr("stage1.compress.CHUNK", 7)
    chunked = fit_pca(table, counts, 4)
    torch.testing.assert_close(chunked.variances, whole.variances, rtol=1e-12, atol=0)


def test_compressing_to_all_dimensions_loses_nothing():
    table, counts = table_and_counts()
    pca = fit_pca(table, counts, D)
    assert pca.kept == pytest.approx(1)
    torch.testing.assert_close(pca.expand(pca.compress(table)), table, rtol=0, atol=1e-5)


def test_the_inverse_loses_exactly_the_variance_that_is_not_kept():
    table, counts = table_and_counts()
    pca = fit_pca(table, counts, 5)
    tokens = table.repeat_interleave(counts, 0).double()
    lost = (pca.expand(pca.compress(tokens.float())).double() - tokens).square().sum()
    assert lost / (tokens - tokens.mean(0)).square().sum() == pytest.approx(1 - pca.kept, rel=1e-4)


def test_narrowed_is_the_pca_fitted_at_that_width():
    table, counts = table_and_counts()
    narrow, fitted = fit_pca(table, counts, 9).narrowed(3), fit_pca(table, counts, 3)
    assert torch.equal(narrow.components, fitted.components)
    assert narrow.kept == pytest.approx(fitted.kept) and narrow.kind == fitted.kind


def test_a_random_projection_cannot_be_narrowed():
    with pytest.raises(ValueError, match="compression='random projection': expected a PCA"):
        random_projection(*table_and_counts(), 6).narrowed(3)


def test_components_are_orthonormal_and_their_sign_is_fixed():
    table, counts = table_and_counts()
    for compression in (fit_pca(table, counts, 6), random_projection(table, counts, 6)):
        products = compression.components @ compression.components.T
        torch.testing.assert_close(products, torch.eye(6), rtol=0, atol=1e-6)
    components = fit_pca(table, counts, 6).components
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()


def test_a_random_projection_keeps_less_than_pca_and_depends_on_its_seed():
    table, counts = table_and_counts()
    pca = fit_pca(table, counts, 4)
    first, second = (random_projection(table, counts, 4, seed) for seed in (0, 1))
    assert first.kind == Kind.RANDOM
    assert max(first.kept, second.kept) < pca.kept and first.kept != second.kept
    tokens = table.repeat_interleave(counts, 0).double()
    whole = (tokens - tokens.mean(0)).square().sum()
    kept = first.compress(tokens.float()).double().square().sum() / whole
    assert float(kept) == pytest.approx(first.kept, rel=1e-4)
    assert torch.equal(first.components, random_projection(table, counts, 4, 0).components)


@pytest.mark.parametrize("width", [1, 2, 8])
def test_lookup_recovers_every_token_at_any_width(width):
    table, counts = table_and_counts()
    pca = fit_pca(table, counts, width)
    ids = torch.randint(V, (3, 50), generator=torch.Generator().manual_seed(1))
    found = nearest_codebook(pca.compress(table[ids]), pca.compress(table), chunk=11)
    assert torch.equal(found, ids)


def test_lookup_is_the_nearest_entry_and_the_lowest_id_among_equals():
    codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 9.0]])
    points = torch.tensor([[0.4, 0.1], [0.6, 0.0], [0.0, 5.0]])
    assert nearest_codebook(points, codebook).tolist() == [0, 1, 3]


def test_lookup_recovers_the_shipped_models_whole_vocabulary(lm):
    table, counts = lm.embedding_table, torch.ones(len(lm.embedding_table), dtype=torch.int64)
    book = fit_pca(table, counts, 24).compress(table)
    assert torch.equal(nearest_codebook(book, book), torch.arange(len(table)))


@given(seed=st.integers(0, 1_000))
def test_the_variance_is_numpys_over_every_token_averaged_over_dimensions(seed):
    table, counts = table_and_counts(seed)
    covariance = np.cov(table.double().numpy(), rowvar=False, fweights=counts.numpy(), ddof=0)
    assert variance(table, counts) == pytest.approx(covariance.trace() / D, rel=1e-9)
    assert variance(table, counts * 3) == pytest.approx(variance(table, counts), rel=1e-9)


@given(seed=st.integers(0, 1_000), chunk=st.integers(1, V))
def test_the_chunk_size_does_not_change_the_variance(seed, chunk):
    table, counts = table_and_counts(seed)
    used = counts > 0
    share, x = counts[used].double() / counts.sum(), table[used].double()
    whole = float(share @ (x - share @ x).square().mean(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stage1.compress.CHUNK", chunk)
        assert variance(table, counts) == pytest.approx(whole, rel=1e-12)


def test_the_variance_loses_no_digits_to_a_large_mean(monkeypatch):
    monkeypatch.setattr("stage1.compress.CHUNK", 7)
    table, counts = table_and_counts()
    far = table.double() + 1_000
    assert variance(far, counts) == pytest.approx(variance(table, counts), rel=1e-9)


def test_a_bfloat16_table_gives_the_results_of_its_float32_copy():
    table, counts = table_and_counts()
    table = table.bfloat16()
    half, single = fit_pca(table, counts, 4), fit_pca(table.float(), counts, 4)
    assert torch.equal(half.variances, single.variances)
    assert torch.equal(half.components, single.components)
    assert half.mean.dtype == half.compress(table).dtype == torch.float32
    assert torch.equal(half.compress(table), single.compress(table.float()))
    assert variance(table, counts) == variance(table.float(), counts)
    book, bfloat_book = half.compress(table), half.compress(table).bfloat16()
    expected = nearest_codebook(book, bfloat_book.float())
    assert torch.equal(nearest_codebook(book, bfloat_book), expected)


@pytest.mark.parametrize("shape", [(D,), (50, D), (3, 20, D), (0, D)])
def test_compressing_in_chunks_keeps_the_shape_and_the_values(monkeypatch, shape):
    pca = fit_pca(*table_and_counts(), 4)
    embeddings = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    whole = (embeddings - pca.mean) @ pca.components.T
    monkeypatch.setattr("stage1.compress.CHUNK", 7)
    torch.testing.assert_close(pca.compress(embeddings), whole, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 1_000), chunk=st.integers(1, V), entries=st.integers(1, V))
def test_lookup_in_chunks_takes_the_lowest_id_among_ties(seed, chunk, entries):
    """Integer vectors make distances exact and ties frequent."""
    generator = torch.Generator().manual_seed(seed)
    points, codebook = (torch.randint(-2, 3, (V, 3), generator=generator).float() for _ in range(2))
    expected = (points[:, None] - codebook).square().sum(-1).argmin(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stage1.compress.CHUNK", entries)
        assert torch.equal(nearest_codebook(points, codebook, chunk), expected)


@pytest.mark.parametrize("fit", [fit_pca, random_projection])
@pytest.mark.parametrize("width", [0, D + 1])
def test_a_width_outside_one_to_d_is_refused(fit, width):
    words = rf"compressed_width={width}: expected 1 to 16, the embedding width D"
    with pytest.raises(ValueError, match=words):
        fit(*table_and_counts(), width)


def test_a_width_above_the_rank_is_refused():
    table, counts = table_and_counts()
    counts[6:] = 0  # five used tokens span four dimensions around their mean
    with pytest.raises(ValueError, match="compressed_width=5: expected at most 4, the rank"):
        fit_pca(table, counts, 5)
    whole = fit_pca(table, counts, None)
    assert torch.equal(whole.components, fit_pca(table, counts, 4).components)
    assert whole.kept == pytest.approx(1)


@pytest.mark.parametrize("used", [V, 6])
def test_all_components_lose_nothing_whatever_the_rank(used):
    table, counts = table_and_counts()
    counts[used:] = 0
    pca = fit_pca(table, counts, D)
    torch.testing.assert_close(pca.expand(pca.compress(table)), table, rtol=0, atol=1e-5)


@pytest.mark.parametrize("counts", [None, torch.full((V,), -1), torch.zeros(V, dtype=torch.int64)])
def test_counts_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match="counts: expected 60 counts"):
        fit_pca(table_and_counts()[0], counts, 4)


def test_an_unknown_weighting_is_refused():
    with pytest.raises(Exception, match=r"weighting|Literal"):
        fit_pca(*table_and_counts(), 4, "uniform")
