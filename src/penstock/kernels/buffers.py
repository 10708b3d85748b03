"""Large work arrays on the CPU, kept from one step for the next, and the BLAS that fills them.

Memory fresh from the operating system costs a page fault for every 4 KiB, which at these sizes takes as long as the
arithmetic. An array is lent again once nothing refers to it any more, so whoever keeps a result keeps it intact.
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
"""Bytes of arrays that are kept at least. More are kept only where more were in use at the same time."""


class _Arrays:
    """Arrays by shape and dtype, those lent last at the end."""

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
        """Drop idle arrays, those first that were not lent for longest, where a new one would be too much."""
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
    """What is counted for an array in a list to which nothing else refers."""
    arrays, place = [np.empty(0)], 0
    return sys.getrefcount(arrays[place])


_ALONE = _count_alone()
_arrays = _Arrays()


def borrow(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor, in memory that an earlier tensor of this shape and dtype has given back."""
    return _arrays.take(shape, _numpy_dtype(dtype))


def release() -> None:
    """Give all memory back that is not in use; the next steps allocate anew."""
    _arrays.release()


@cache
def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype, device="cpu").numpy().dtype


class _OneThread:
    """Keeps numpy's BLAS to one thread while the main thread is inside; may be entered again inside itself.

    Once the main thread has set a limit, OpenBLAS ignores what other threads set, so there nothing is done. Whoever
    uses SAEs in threads of its own enters in the main thread for as long (`TrainingRun.train`): otherwise OpenBLAS may
    share a product out among threads of its own, and their number decides the last bits.
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
"""A context for callers of numpy's matrix product that share it out themselves."""


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _unlock_in_a_fork() -> None:
    # Another thread of the parent may have held it, and nobody in the child would let go of it.
    _arrays.lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_a_fork)
