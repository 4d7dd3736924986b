"""How fast a training runs: tokens per second, and the share of the device's matmul rate."""

import statistics
import time

import torch

SQUARE = {"cuda": 8_192, "cpu": 512}
"""Side of the matrices whose product is timed."""


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device) -> float:
    """Return the FLOP/s of a bfloat16 product of square matrices: the median of twenty.

    On a CPU the product is in float32, as the training is there.
    """
    side, dtype = SQUARE[device.type], torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in "ab")
    times = []
    for _ in range(25):
        finish(device)
        begin = time.perf_counter()
        a @ b
        finish(device)
        times.append(time.perf_counter() - begin)
    return 2 * side**3 / statistics.median(times[5:])


class Meter:
    """Time and tokens of the steps so far; the first steps, which compile, do not count.

    Waiting for the device at a reading makes the time that of finished work.
    """

    UNCOUNTED = 20

    def __init__(self, tokens_per_step: int, multiplied: int, rate: float):
        """`multiplied` parameters take 6 FLOP per token, forward and backward; see `share`."""
        self.tokens_per_step, self.multiplied, self.rate = tokens_per_step, multiplied, rate
        self.begin: float | None = None
        self.done = self.started_at = 0

    def step(self, device: torch.device) -> None:
        """Count a step."""
        self.done += 1
        if self.begin is None and self.done >= self.UNCOUNTED:
            finish(device)
            self.begin, self.started_at = time.perf_counter(), self.done

    def read(self, device: torch.device) -> dict[str, float]:
        """Return tokens per second and the share of the matmul rate, over all counted steps.

        Both are nan before the first counted step. The share counts the products of layers and
        head, not the attention scores.
        """
        finish(device)
        if self.begin is None or self.done == self.started_at:
            return {"tokens_per_s": float("nan"), "share_of_matmul_rate": float("nan")}
        seconds = time.perf_counter() - self.begin
        speed = (self.done - self.started_at) * self.tokens_per_step / seconds
        share = 6 * self.multiplied * speed / self.rate
        return {"tokens_per_s": speed, "share_of_matmul_rate": share}
