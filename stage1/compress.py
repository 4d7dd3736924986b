"""Compression to K dimensions: exact PCA of the token embeddings, a random projection, and lookup.

A prompt's embeddings are rows of the vocabulary table, so the covariance over a corpus follows
exactly from the table and the token counts: V rows instead of one row per token (PCA with weighted
observations; Jolliffe, 2002, section 14.2.1). Everything is float64 until the map is applied.
"""

import enum
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import scipy.linalg
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from stage1.fields import require

CHUNK = 8_192  # table rows in float64 at a time: 268 MB at D=4,096
Weighting = Literal["token", "vocabulary"]


class Kind(enum.Enum):
    """Kinds of compression and of token weighting, by the names that tables show."""

    PCA_TOKEN = "PCA, token-weighted"
    PCA_VOCABULARY = "PCA, vocabulary-uniform"
    RANDOM = "random projection"


@dataclass(frozen=True)
class Compression:
    """An affine map from D dimensions to K and its inverse: z = (x - mean) C^T, x' = z C + mean."""

    mean: Float[Tensor, " D"]
    components: Float[Tensor, "K D"]
    """C, with orthonormal rows."""
    variances: Float64[Tensor, " D"]
    """The full PCA spectrum of the embeddings, descending, whatever the components are."""
    kept: float
    """Share of the variance that K dimensions keep, in [0, 1]."""
    kind: Kind

    @property
    def width(self) -> int:
        return len(self.components)

    @cached_property
    def explained(self) -> Float64[Tensor, " D"]:
        """Share of the variance that the first 1, 2, ..., D principal components keep."""
        return self.variances.cumsum(0) / self.variances.sum()

    def compress(self, embeddings: Float[Tensor, "*B D"]) -> Float[Tensor, "*B K"]:
        """Compress in chunks, so that a bfloat16 table is never in float32 as a whole."""
        chunks = [
            (rows.to(self.mean.dtype) - self.mean) @ self.components.T
            for rows in embeddings.reshape(-1, embeddings.shape[-1]).split(CHUNK)
        ]
        return torch.cat(chunks).view(*embeddings.shape[:-1], self.width)

    def expand(self, compressed: Float[Tensor, "*B K"]) -> Float[Tensor, "*B D"]:
        # In place: a whole table is 2 GB at V=128,256, D=4,096.
        return (compressed @ self.components).add_(self.mean)

    def narrowed(self, width: int) -> "Compression":
        """Return the first `width` components of a PCA; a random projection raises ValueError."""
        require(self.kind is not Kind.RANDOM, "compression", self.kind.value, "a PCA to narrow")
        require(1 <= width <= self.width, "compressed_width", width, f"1 to {self.width}")
        kept = float(self.explained[width - 1])
        return Compression(self.mean, self.components[:width], self.variances, kept, self.kind)


def weights(
    table: Float[Tensor, "V D"], counts: Int[Tensor, " V"] | None, weighting: Weighting
) -> Int64[Tensor, " V"]:
    """Return each row's weight: its count, or one. Raises ValueError for counts that do not fit."""
    if weighting == "vocabulary":
        return torch.ones(len(table), dtype=torch.int64, device=table.device)
    require(weighting == "token", "weighting", weighting, "'token' or 'vocabulary'")
    if counts is None or len(counts) != len(table) or (counts < 0).any() or counts.sum() < 2:
        raise ValueError(
            f"counts: expected {len(table)} counts, none negative, of at least two tokens in all"
        )
    return counts.to(table.device, torch.int64)


def variance(table: Float[Tensor, "V D"], counts: Int[Tensor, " V"]) -> float:
    """Return the variance per dimension of the counted embeddings, the denominator of fvu."""
    counts = counts.to(table.device)
    used, share = counts.nonzero().squeeze(1), counts.double() / counts.sum()
    mean = weighted_sum(table, share, used)
    total = torch.zeros((), dtype=torch.float64, device=table.device)
    for rows in used.split(CHUNK):
        total += share[rows] @ (table[rows].double() - mean).square().mean(1)
    return total.item()


def weighted_sum(
    table: Float[Tensor, "V D"], shares: Float64[Tensor, " V"], used: Int64[Tensor, " N"]
) -> Float64[Tensor, " D"]:
    """Return the sum of the used rows, each times its share, in float64."""
    total = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
    for rows in used.split(CHUNK):
        total += shares[rows] @ table[rows].double()
    return total


def moments(
    table: Float[Tensor, "V D"], counts: Int64[Tensor, " V"]
) -> tuple[Float64[Tensor, " D"], Float64[Tensor, "D D"]]:
    """Return mean and covariance (divided by tokens - 1) of the counted embeddings."""
    used, total, D = counts.nonzero().squeeze(1), counts.sum().double(), table.shape[1]
    mean = weighted_sum(table, counts.double(), used) / total
    covariance = torch.zeros(D, D, dtype=torch.float64, device=table.device)
    for rows in used.split(CHUNK):
        covariance += gram((table[rows].double() - mean) * counts[rows].double().sqrt()[:, None])
    return mean, covariance / (total - 1)


def gram(rows: Float64[Tensor, "N D"]) -> Float64[Tensor, "D D"]:
    if rows.is_cuda:
        return rows.T @ rows
    array = rows.numpy()
    return torch.from_numpy(
        array.T @ array
    )  # NumPy uses the symmetry, half the work; torch doesn't


def eigenpairs(
    covariance: Float64[Tensor, "D D"],
) -> tuple[Float64[Tensor, " D"], Float64[Tensor, "D D"]]:
    """Return eigenvalues, descending, and eigenvectors in rows, their largest entries positive."""
    if covariance.is_cuda:
        values, vectors = torch.linalg.eigh(covariance)
    else:  # LAPACK's divide and conquer, several times faster on the CPU than torch's driver
        values, vectors = map(torch.from_numpy, scipy.linalg.eigh(covariance.numpy(), driver="evd"))
    values, vectors = values.flip(0).clamp_min(0), vectors.T.flip(0)
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return values, vectors * largest.sign()


def check_width(width: int, D: int) -> None:
    require(1 <= width <= D, "compressed_width", width, f"1 to {D}, the embedding width D")


def fit_pca(
    table: Float[Tensor, "V D"],
    counts: Int[Tensor, " V"] | None,
    width: int | None,
    weighting: Weighting = "token",
) -> Compression:
    """Fit PCA to `width` dimensions of the counted embeddings, or of the vocabulary.

    None takes as many dimensions as the covariance has rank. Equal to scikit-learn's PCA of one row
    per token, without making those rows. All D components lose nothing. Raises ValueError where
    `width` exceeds D, or below D that rank.
    """
    D = table.shape[1]
    check_width(D if width is None else width, D)
    mean, covariance = moments(table, weights(table, counts, weighting))
    variances, components = eigenpairs(covariance)
    rank = int((variances > variances[0] * D * torch.finfo(torch.float64).eps).sum())
    allowed = (
        f"at most {rank}, the rank of the {weighting}-weighted embeddings, or {D}, their width"
    )
    width = rank if width is None else width
    require(width <= rank or width == D, "compressed_width", width, allowed)
    kept = float(variances[:width].sum() / variances.sum())
    kind = Kind.PCA_TOKEN if weighting == "token" else Kind.PCA_VOCABULARY
    return Compression(mean.float(), components[:width].float(), variances, kept, kind)


def random_projection(
    table: Float[Tensor, "V D"], counts: Int[Tensor, " V"], width: int, seed: int = 0
) -> Compression:
    """Return a control: random orthonormal directions (QR of a Gaussian) around the token mean.

    Raises ValueError where `width` exceeds D.
    """
    D = table.shape[1]
    check_width(width, D)
    mean, covariance = moments(table, weights(table, counts, "token"))
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(D, width, dtype=torch.float64, generator=generator)
    components = torch.linalg.qr(gaussian).Q.T.to(table.device)
    kept = float(((components @ covariance) * components).sum() / covariance.trace())
    variances, _ = eigenpairs(covariance)
    return Compression(mean.float(), components.float(), variances, kept, Kind.RANDOM)


def nearest_codebook(
    compressed: Float[Tensor, "*B K"], codebook: Float[Tensor, "V K"], chunk: int = 4_096
) -> Int64[Tensor, "*B"]:
    """Return the nearest vocabulary entry of each vector; among equals, the lowest id.

    The codebook is `compress(embedding_table)`. A compressed token is one of its entries, so
    without ties lookup recovers every token at any K: the compression loses dimensions, not the
    identity of the token. In float64, `chunk` vectors against CHUNK entries at a time.
    """
    flat = compressed.reshape(-1, compressed.shape[-1])
    ids = [nearest_entry(rows.double(), codebook) for rows in flat.split(chunk)]
    return torch.cat(ids).view(compressed.shape[:-1])


def nearest_entry(
    rows: Float64[Tensor, "N K"], codebook: Float[Tensor, "V K"]
) -> Int64[Tensor, " N"]:
    least = rows.new_full((len(rows),), torch.inf)
    nearest = torch.zeros_like(least, dtype=torch.int64)
    for index, entries in enumerate(codebook.split(CHUNK)):
        book = entries.double()
        # |z - c|^2 / 2 = |z|^2 / 2 - z.c + |c|^2 / 2; the first term is the same for every entry.
        distance, entry = (book.square().sum(1) / 2 - rows @ book.T).min(1)
        nearest = torch.where(distance < least, entry + index * CHUNK, nearest)  # ties: the earlier
        least = torch.minimum(distance, least)
    return nearest
