"""Large work arrays on the CPU, kept from one step for the next, and the BLAS that fills them.

Memory fresh from the operating system costs a page fault for every 4 KiB, which at these sizes takes as long as the
arithmetic. An array is lent again once nothing refers to it any more, so whoever keeps a result keeps it intact.
"""

import sys
from functools import cache
from threading import Lock, current_thread, main_thread
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

_kept: list[np.ndarray[Any, Any]] = [np.empty(0)]
_lock = Lock()

_ALONE = sys.getrefcount(_kept[0])
"""What is counted for an array in the list to which nothing else refers."""

KEPT = 16
"""Arrays kept for reuse at most."""


def borrow(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor, in memory that an earlier tensor of this shape and dtype has given back."""
    wanted = torch.empty(0, dtype=dtype).numpy().dtype
    with _lock:
        for place in range(len(_kept)):
            fits = _kept[place].shape == shape and _kept[place].dtype == wanted
            if fits and sys.getrefcount(_kept[place]) == _ALONE:
                return torch.from_numpy(_kept[place])
        if len(_kept) >= KEPT:
            del _kept[0]
        _kept.append(np.empty(shape, wanted))
        return torch.from_numpy(_kept[-1])


class _OneThread:
    """Keeps numpy's BLAS to one thread while the main thread is inside; may be entered again inside itself.

    OpenBLAS ignores a limit that is set from another thread, so there nothing is done: whoever steps SAEs in threads of
    its own enters in the main thread for as long (`TrainingRun.train`).
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
"""A context for callers of numpy's matrix product that share out its rows themselves."""


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
