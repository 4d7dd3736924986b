"""Processes that share the runs of a sweep, and end with it."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial

from stage1.machine import gpus
from stage1.machine.processes import end_with_pool


def begin(turn, ids: list[str]) -> None:
    """Give this process of a pool its GPU, and end it when the pool's maker ends."""
    gpus.take_turn(turn, ids)
    end_with_pool()


@contextmanager
def pool_of(processes: int) -> Iterator[Executor]:
    """Yield a pool of processes that take the machine's GPUs in turn and show no progress bars.

    They end with this process, even where it is killed, and at once where it is interrupted.
    """
    os.environ["TQDM_DISABLE"] = "1"  # one bar for all runs is enough
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    initializer = partial(begin, context.Value("i", 0), gpus.visible())
    with ProcessPoolExecutor(processes, mp_context=context, initializer=initializer) as pool:
        try:
            yield pool
        except KeyboardInterrupt:  # else the pool first finishes all that it was given
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            raise
