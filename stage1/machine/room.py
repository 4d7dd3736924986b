"""Work in parts that halve where memory runs out."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch
from tqdm import tqdm

Result = TypeVar("Result")


def halved(size: int, unit: str, where: str, error: type[Exception] = RuntimeError) -> int:
    """Return half as many, say so and free memory. Raises the error where there is only one."""
    if size <= 1:
        raise error(
            f"{where}: memory runs out with one {unit} at a time; try recomputed=1.0, "
            "dtype='bfloat16' or a smaller max_prompt_tokens"
        )
    half = math.ceil(size / 2)
    said = f"memory runs out with {size:,} {unit}s at a time; going on with {half:,}"
    tqdm.write(f"{where}: {said}")
    torch.cuda.empty_cache()
    return half


class Room:
    """How many units fit into memory at a time, as far as is known; None: any number."""

    def __init__(
        self, unit: str, size: int | None = None, error: type[Exception] = RuntimeError
    ) -> None:
        self.unit, self.size, self.error = unit, size, error

    def fit(self, read: Callable[[int], Result], total: int, where: str) -> Result:
        """Return `read(size)`, where `size` is how many of `total` units are read at a time.

        Where memory runs out, the size halves for good and all is read again, so `read` must leave
        nothing behind. Raises the error where a single unit does not fit.
        """
        while True:
            size = min(self.size or total, total)
            with suppress(torch.OutOfMemoryError):  # its traceback holds memory
                return read(size)
            self.size = halved(size, self.unit, where, self.error)
