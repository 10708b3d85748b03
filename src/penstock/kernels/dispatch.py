"""Choice of kernels for each call, by device, precision, and density of the support."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

from penstock.kernels import reference
from penstock.kernels.protocol import Kernels
from penstock.sparse import Support

DENSE_ABOVE = {"cpu": 0.2, "cuda": 0.1}
"""Share of pairs on the support above which whole matrix products are faster, by device type.

Measured on a CPU (benchmarks/engine/density.py): 0.2 at d_in 768, more where the rows fit into a cache. On
an H200 (benchmarks/gpu/): 0.13 to 0.16 with float32 products.
"""

Choice = Literal["reference", "cpu", "cuda"]

_forced: ContextVar[Choice | None] = ContextVar("forced", default=None)


@contextmanager
def forced(choice: Choice) -> Iterator[None]:
    """Use these kernels in this thread, regardless of tensor and density: for tests and benchmarks."""
    token = _forced.set(choice)
    try:
        yield
    finally:
        _forced.reset(token)


def kernels_for(tensor: Tensor) -> Kernels:
    """Return the kernels for a tensor's device and precision.

    They are imported when first needed: numba and Triton load slowly, and Triton is only installed with CUDA.
    """
    choice = _forced.get() or _fitting(tensor)
    if choice == "cpu":
        from penstock.kernels import cpu

        return cpu
    if choice == "cuda":
        from penstock.kernels import cuda

        return cuda
    return reference


def kernels_on(support: Support, tensor: Tensor) -> Kernels:
    """Return the kernels for products with a code on this support: the dense ones if the support is dense."""
    if _forced.get() is None and support.density > DENSE_ABOVE.get(tensor.device.type, 0.0):
        return reference
    return kernels_for(tensor)


def _fitting(tensor: Tensor) -> Choice:
    if tensor.device.type == "cuda":
        return "cuda"
    # numpy and numba do not support bfloat16.
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64):
        return "cpu"
    return "reference"
