"""Large work arrays on the CPU that are reused from step to step, and the BLAS that fills them.

Fresh memory from the operating system costs a page fault for every 4 KiB. At these sizes that takes as long as the
arithmetic. An array is reused only when nothing refers to it any more, so a result that is kept stays intact.
"""

import os
import sys
from collections import OrderedDict
from functools import cache
from threading import Lock, current_thread, main_thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

Array = NDArray[Any]

KEPT_BYTES = 2**30
"""Bytes of idle arrays that may always be kept. More are kept only if more were in use at the same time."""


class _Arrays:
    """Arrays by shape and dtype, the most recently used ones last."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.kept: OrderedDict[tuple[tuple[int, ...], np.dtype[Any]], list[Array]] = OrderedDict()
        self.most_in_use = 0

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        key = (shape, dtype)
        with self.lock:
            arrays = self.kept.get(key, [])
            for place in range(len(arrays)):
                if _is_idle(arrays, place):
                    self.kept.move_to_end(key)
                    return torch.from_numpy(arrays[place])
            array = np.empty(shape, dtype)
            self._make_room(array.nbytes)
            self.kept.setdefault(key, []).append(array)
            self.kept.move_to_end(key)
            return torch.from_numpy(array)

    def release(self) -> None:
        with self.lock:
            self.most_in_use = 0
            self._drop_idle(self._bytes())

    def _make_room(self, wanted: int) -> None:
        """Drop idle arrays, least recently used first, if a new one would exceed the limit."""
        every = [(arrays, place) for arrays in self.kept.values() for place in range(len(arrays))]
        idle = sum(arrays[place].nbytes for arrays, place in every if _is_idle(arrays, place))
        in_use = self._bytes() - idle + wanted
        self.most_in_use = max(self.most_in_use, in_use)
        self._drop_idle(in_use + idle - max(KEPT_BYTES, self.most_in_use))

    def _drop_idle(self, too_many: int) -> None:
        for key, arrays in list(self.kept.items()):
            for place in reversed(range(len(arrays))):
                if too_many <= 0:
                    return
                if _is_idle(arrays, place):
                    too_many -= arrays.pop(place).nbytes
            if not arrays:
                del self.kept[key]

    def _bytes(self) -> int:
        return sum(array.nbytes for arrays in self.kept.values() for array in arrays)


def _is_idle(arrays: list[Array], place: int) -> bool:
    return sys.getrefcount(arrays[place]) == _ALONE


def _count_alone() -> int:
    """Return the reference count of an array that only its list refers to."""
    arrays, place = [np.empty(0)], 0
    return sys.getrefcount(arrays[place])


_ALONE = _count_alone()
_arrays = _Arrays()


def borrow(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised CPU tensor, reusing the memory of an earlier one of this shape and dtype if possible."""
    return _arrays.take(shape, _numpy_dtype(dtype))


def release() -> None:
    """Free all memory that is not in use; the next steps allocate again."""
    _arrays.release()


@cache
def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype, device="cpu").numpy().dtype


class _OneThread:
    """Limits numpy's BLAS to one thread while the main thread is inside; the context can be nested.

    Once the main thread has set a limit, OpenBLAS ignores limits from other threads, so other threads set none. Code
    that uses SAEs in its own threads enters this context in the main thread (see `TrainingRun.train`). Otherwise
    OpenBLAS may split a product among its threads, and their number changes the last bits.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.limits: Any = None

    def __enter__(self) -> None:
        if current_thread() is main_thread():
            if self.depth == 0:
                self.limits = _blas().limit(limits=1)
            self.depth += 1

    def __exit__(self, *error: object) -> None:
        if current_thread() is main_thread():
            self.depth -= 1
            if self.depth == 0:
                self.limits.restore_original_limits()


single_threaded_blas = _OneThread()
"""A context for callers that split numpy's matrix products among threads themselves."""


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _unlock_in_a_fork() -> None:
    # Another thread of the parent may hold the lock; the child has no thread that would release it.
    _arrays.lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_a_fork)
