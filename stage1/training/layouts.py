"""Token rows of a whole training set, laid out on the device once; steps gather batches there."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor
from torch.nn.functional import pad

from stage1.loss_parts import CrossEntropy, Divergence


class Rows(NamedTuple):
    """Token rows and what each position is; padding comes last in a row."""

    ids: Int[Tensor, "R T"]
    is_prompt: Bool[Tensor, "R T"]
    visible: Bool[Tensor, "R T"]
    """Positions that attention may read."""

    def gather(self, index: Int64[Tensor, " B"], length: int) -> "Rows":
        """Return the rows at these indices, cut to a length."""
        return Rows(*(tensor[index, :length] for tensor in self))

    def padded(self, length: int, pad_token: int) -> "Rows":
        """Return the rows padded to a length."""
        room = length - self.ids.shape[1]
        values = (pad_token, False, True)
        pairs = zip(self, values, strict=True)
        return Rows(*(pad(tensor, (0, room), value=value) for tensor, value in pairs))


def join(parts: Sequence[Rows], pad_token: int) -> Rows:
    """Return all rows in one batch, padded to the longest."""
    length = max(rows.ids.shape[1] for rows in parts)
    padded = [rows.padded(length, pad_token) for rows in parts]
    return Rows(*map(torch.cat, zip(*padded, strict=True)))


def passes(lengths: Int64[np.ndarray, " R"], tokens: int | None) -> list[Int64[np.ndarray, " _"]]:
    """Return row indices in parts of similar length, of about as many tokens each and not many more
    than so many; None: all rows."""
    if tokens is None:
        return [np.arange(len(lengths))]
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    part = (ends - 1) * -(-ends[-1] // tokens) // ends[-1]
    return np.split(order, np.flatnonzero(np.diff(part)) + 1)


def ranges(
    counts: Int64[np.ndarray, " R"], rows: Int64[np.ndarray, " S"]
) -> Int64[np.ndarray, " N"]:
    """Return the indices of these rows' items, where row i holds the next `counts[i]` items."""
    first, chosen = np.cumsum(counts) - counts, counts[rows]
    return np.repeat(first[rows] - np.cumsum(chosen) + chosen, chosen) + np.arange(chosen.sum())


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a CPU tensor on the device, for which the host does not wait."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def sent_together(
    arrays: Sequence[Int64[np.ndarray, " _"]], device: torch.device
) -> tuple[Int64[Tensor, " _"], ...]:
    """Return the arrays as tensors on the device, in one transfer."""
    flat = sent(torch.from_numpy(np.concatenate(arrays)), device)
    return flat.split([len(array) for array in arrays])


class Layout(NamedTuple):
    """The rows that one part of an objective reads, and what the host knows of them."""

    rows: Rows
    supervised: Int64[np.ndarray, " R"]
    """Supervised tokens of every row. On the host, so that no step waits for the device."""
    predictors: Int64[np.ndarray, " N"]
    """Columns of the positions whose logits predict these tokens, row by row."""
    lengths: Int64[np.ndarray, " R"]
    """Positions of every row up to the last one that matters."""
    is_masked: bool
    """Whether padding stands among the tokens, so that attention needs a mask."""


def layout_of(part: CrossEntropy | Divergence, name: str) -> Layout:
    """Lay out a part; `name` is the objective's, for the error where nothing is supervised."""
    tokens, visible = part.tokens, part.attention_mask
    predicts = tokens.predictors(part.supervised, name)
    everything = torch.ones_like(predicts)
    rows = Rows(tokens.ids, tokens.is_prompt, everything if visible is None else visible)
    used, marked = (tokens.is_prompt | predicts).cpu().numpy(), predicts.cpu().numpy()
    last = used.shape[1] - used[:, ::-1].argmax(1)
    lengths = np.minimum(last + 1, used.shape[1])  # the position after the last holds its target
    return Layout(rows, marked.sum(1), marked.nonzero()[1], lengths, visible is not None)
