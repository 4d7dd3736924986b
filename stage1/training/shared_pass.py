"""One pass of the language model over the rows of many adapters, and each token's loss in it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import embedding

from stage1.model import fused_loss
from stage1.model.language_model import FrozenLM
from stage1.training.layouts import Layout, Rows, join, passes, ranges, sent, sent_together
from stage1.training.microbatches import TrainingError

Tables = Float[Tensor, "S V D"]

PASS_VALUES = 100_000_000
"""Tokens times layers times width that a GPU reads in one pass, of rows of similar length; fewer
once memory has run out."""


class Reading(NamedTuple):
    """What the language model reads in one step for one term of one member."""

    member: int
    term: str
    weight: float
    is_kl: bool
    layout: Layout
    chosen: Int64[np.ndarray, " B"]
    """Rows of the layout."""

    @property
    def supervised(self) -> int:
        return int(self.layout.supervised[self.chosen].sum())

    @property
    def predictors(self) -> Int64[np.ndarray, " N"]:
        """Columns of the chosen rows' predictors, row by row."""
        return self.layout.predictors[ranges(self.layout.supervised, self.chosen)]

    @property
    def tokens(self) -> int:
        """Positions up to each row's last one that matters."""
        return int(self.layout.lengths[self.chosen].sum())


def add_gradients(
    lm: FrozenLM, readings: Sequence[Reading], tables: Tables, is_kl: bool, tokens: int | None
) -> Float[Tensor, " N"]:
    """Add the gradients of these readings at the tables; return all supervised tokens' losses.

    Rows of similar length pass through the language model together, about so many tokens of them;
    None: all rows. A pass is freed before the next one. Raises TrainingError where a row alone does
    not fit into memory.
    """
    device = tables.device  # it runs behind: nothing here may wait for what it computes
    rows, owners = gather(readings, lm.pad_token, device)
    counts = np.concatenate([reading.layout.supervised[reading.chosen] for reading in readings])
    lengths = np.concatenate([reading.layout.lengths[reading.chosen] for reading in readings])
    columns = np.concatenate([reading.predictors for reading in readings])
    sizes = torch.tensor([reading.supervised for reading in readings])
    scales = torch.tensor([reading.weight for reading in readings]) / sizes
    weights = sent(scales.repeat_interleave(sizes), device)
    masked = [[reading.layout.is_masked] * len(reading.chosen) for reading in readings]
    is_masked = np.concatenate(masked)
    losses = torch.empty_like(weights)
    for some in passes(lengths, tokens):
        longest, own_places = int(lengths[some].max()), ranges(counts, some)
        first = np.repeat(np.arange(len(some)) * longest, counts[some])
        arrays = [first + columns[own_places], own_places, some]
        predictors, places, index = sent_together(arrays, device)
        part, about = rows.gather(index, longest), (is_kl, bool(is_masked[some].any()))
        given = part, owners[index], predictors, tables, weights[places]
        try:
            loss, own = losses_of(lm, *given, *about)
            loss.backward()
        except torch.OutOfMemoryError as error:
            if len(some) > 1:
                raise
            raise TrainingError(
                f"memory runs out with one row of {longest} tokens; try recomputed=1.0, "
                "dtype='bfloat16' or a smaller max_prompt_tokens"
            ) from error
        losses[places] = own
    return losses


def losses_of(
    lm: FrozenLM,
    rows: Rows,
    owners: Int64[Tensor, " R"],
    predictors: Int64[Tensor, " N"],
    tables: Tables,
    weights: Float[Tensor, " N"],
    is_kl: bool,
    is_masked: bool,
) -> tuple[Tensor, Float[Tensor, " N"]]:
    """Return the weighted sum of the losses of one pass of the language model, and each.

    `predictors` are indices into the R x T positions.
    """
    original = lm.embed(rows.ids).to(tables.dtype)
    adapted = embedding(rows.ids + owners[:, None] * tables.shape[1], tables.flatten(0, 1))
    inputs = torch.where(rows.is_prompt[..., None], adapted, original)
    hidden = lm.hidden(inputs, predictors, rows.visible if is_masked else None)
    if is_kl:
        with torch.no_grad():
            teacher = lm.hidden(original, predictors)
        return fused_loss.weighted_kl(hidden, lm.head, teacher, weights)
    targets = rows.ids.roll(-1, 1).flatten()[predictors]
    return fused_loss.weighted_cross_entropy(hidden, lm.head, targets, weights)


def gather(
    readings: Sequence[Reading], pad_token: int, device: torch.device
) -> tuple[Rows, Int64[Tensor, " R"]]:
    """Return the rows of all readings, and the member whose prompt each one holds."""
    sizes = [len(reading.chosen) for reading in readings]
    owners = np.repeat([reading.member for reading in readings], sizes)
    chosen = [reading.chosen for reading in readings]
    *indices, owners_there = sent_together([*chosen, owners], device)
    parts = [
        reading.layout.rows.gather(index, int(reading.layout.lengths[reading.chosen].max()))
        for reading, index in zip(readings, indices, strict=True)
    ]
    return join(parts, pad_token), owners_there
