"""The error of reconstructed embeddings."""

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from stage1.compress import CHUNK, nearest_codebook, variance


@torch.inference_mode()
def reconstruction(
    table: Float[Tensor, "V D"], rebuilt: Float[Tensor, "V D"], counts: np.ndarray
) -> dict[str, float]:
    """Compare rebuilt embeddings with the original ones, each token weighted by its count.

    `mse` per dimension (embedding units squared); `fvu`, mse over the variance of the original
    embeddings; mean `cosine`; mean `norm_ratio`; `nearest_right`, the share of tokens whose nearest
    vocabulary entry is themselves.
    """
    used = torch.from_numpy(counts.nonzero()[0]).to(table.device)
    share = torch.from_numpy(counts / counts.sum()).to(table.device)[used]
    measured = torch.cat([row_measures(table, rebuilt, rows) for rows in used.split(CHUNK)], dim=1)
    mse, *others = ((share @ measure).item() for measure in measured)
    fvu = mse / variance(table, torch.from_numpy(counts))
    names = ("mse", "fvu", "cosine", "norm_ratio", "nearest_right")
    return dict(zip(names, (mse, fvu, *others), strict=True))


def row_measures(
    table: Float[Tensor, "V D"], rebuilt: Float[Tensor, "V D"], rows: Int64[Tensor, " N"]
) -> Float64[Tensor, "4 N"]:
    """Return squared error per dimension, cosine, norm ratio, and 1 if the nearest row is right."""
    x, y = table[rows].double(), rebuilt[rows].double()
    right = (nearest_codebook(y, table) == rows).double()
    norm_ratio = y.norm(dim=1) / x.norm(dim=1)
    cosine = cosine_similarity(x, y, dim=1)
    return torch.stack([(y - x).square().mean(1), cosine, norm_ratio, right])
