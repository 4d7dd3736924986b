"""How near rebuilt embeddings are to the original ones."""

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
    """How near the rebuilt embeddings of the counted tokens are to the original ones, each token weighing alike.

    `mse` per dimension (embedding units squared); `fvu`, mse over the variance of the original embeddings; mean
    `cosine`; mean `norm_ratio`; `nearest_right`, the share of tokens whose nearest vocabulary entry is themselves.
    """
    used = torch.from_numpy(counts.nonzero()[0]).to(table.device)
    share = torch.from_numpy(counts / counts.sum()).to(table.device)[used]
    measured = torch.cat([row_measures(table, rebuilt, rows) for rows in used.split(CHUNK)], dim=1)
    mse, cosine, norm_ratio, nearest_right = ((share @ measure).item() for measure in measured)
    fvu = mse / variance(table, torch.from_numpy(counts))
    return {
        "mse": mse,
        "fvu": fvu,
        "cosine": cosine,
        "norm_ratio": norm_ratio,
        "nearest_right": nearest_right,
    }


def row_measures(
    table: Float[Tensor, "V D"], rebuilt: Float[Tensor, "V D"], rows: Int64[Tensor, " N"]
) -> Float64[Tensor, "4 N"]:
    """Squared error per dimension, cosine, norm ratio, and whether the row itself is the nearest entry (0 or 1)."""
    x, y = table[rows].double(), rebuilt[rows].double()
    right = (nearest_codebook(y, table) == rows).double()
    norm_ratio = y.norm(dim=1) / x.norm(dim=1)
    return torch.stack(
        [(y - x).square().mean(1), cosine_similarity(x, y, dim=1), norm_ratio, right]
    )
