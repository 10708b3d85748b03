"""Splits loops among CPU threads, using PyTorch's thread count.

numba's own threads are not used. Its thread pools either compete with PyTorch's for the same cores, or must not be
entered from two Python threads at once, which the side-by-side training of several SAEs does.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Barrier

import numpy as np
import torch
from numpy.typing import NDArray

MIN_WORK = 2**16
"""Multiplications below which a second thread costs more than it saves."""


def shares(offsets: NDArray[np.int64], work_per_pair: int) -> list[tuple[int, int]]:
    """Cut rows of different lengths into ranges [first, last) of about equal work, one for each thread.

    Args:
        offsets: Row i has the pairs offsets[i] to offsets[i + 1].
        work_per_pair: Multiplications per pair; decides whether several threads pay off.
    """
    rows = len(offsets) - 1
    threads = min(torch.get_num_threads(), rows, int(offsets[-1]) * work_per_pair // MIN_WORK)
    if threads <= 1:
        return [(0, rows)]
    # Rows count as well as pairs: an empty row still has to be written.
    work = offsets + np.arange(rows + 1)
    cuts = np.searchsorted(work, work[-1] * np.arange(1, threads) // threads)
    bounds = [0, *(int(cut) for cut in cuts), rows]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch and the CPU kernels use this many threads inside the context, then restore the former number.

    The setting belongs to the calling thread; None changes nothing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_parallel(task: Callable[[int, int], object], parts: list[tuple[int, int]]) -> None:
    """Call `task(first, last)` for every part, each in its own thread; only tasks that release the GIL get faster."""
    others = [_pool().submit(task, *part) for part in parts[1:]]
    if parts:
        task(*parts[0])
    for other in others:
        other.result()


def workers_for(tasks: int, threads: int, device: str) -> ThreadPoolExecutor:
    """A pool that runs tasks (steps of SAEs) side by side, with the CPU threads divided among its workers.

    Two SAEs on a thread each are faster than one after the other on two: their products are small, and PyTorch's
    threads wait for each other at every operation. An accelerator is fed by one.
    """
    count = min(tasks, threads) if device == "cpu" else 1
    # Other threads of the caller would begin with what was set last: it is set back.
    with cpu_threads(None):
        workers = ThreadPoolExecutor(count, initializer=_take_threads, initargs=(threads // count,))
        together = Barrier(count)
        for started in [workers.submit(together.wait) for _ in range(count)]:
            started.result()
    return workers


def _take_threads(count: int) -> None:
    # A new thread's first operation, which asking for the number counts as, sets the number to the process's own.
    torch.get_num_threads()
    torch.set_num_threads(count)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="penstock")


# A forked process has none of its parent's threads and would wait for them forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
