"""The interface of a module of kernels: `reference`, `cpu` and `cuda` implement it and agree up to rounding."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from penstock.shapes import Acts, PerInput, PerLatent
from penstock.sparse import SparseCode, Support, Values

Dictionary = Float[Tensor, "d_sae d_in"]
"""A matrix with one row for each latent."""


class AdamStep(NamedTuple):
    """One step of Adam without a first moment (beta1 = 0), in float64 on the host."""

    lr: float
    beta2: float
    correction: float
    """Divisor of the second moment: 1 - beta2^t after t steps."""
    eps: float
    scale: float = 1.0
    """Factor on the gradient, below 1 if it is clipped."""


@runtime_checkable
class Kernels(Protocol):
    """Kernels for one kind of device. `reference.py` and `adam.py` define each function in plain PyTorch."""

    def select(
        self, x: Acts, W_enc: Float[Tensor, "d_in d_sae"], cut: PerLatent, factors: torch.dtype | None = None
    ) -> SparseCode:
        """Return the entries of `x @ W_enc` above their latent's cut."""
        ...

    def decode(self, support: Support, codes: Sequence[Values], W: Dictionary, bias: PerInput) -> list[Acts]:
        """Return `code @ W + bias` for each code."""
        ...

    def value_gradients(self, support: Support, rows_of: Sequence[Acts], W: Dictionary) -> list[Values]:
        """Return for each pair the dot product of its token's row and its latent's row of W."""
        ...

    def weight_gradient(self, support: Support, codes: Sequence[Values], rows_of: Sequence[Acts]) -> Dictionary:
        """Return the sum over codes of `code.T @ rows`."""
        ...

    def sum_by_latent(self, support: Support, values: Values) -> PerLatent:
        """Return the sum of each latent's values over the batch."""
        ...

    def squared_norms(
        self, gradient: Dictionary, latents: Int[Tensor, " some"], unit_rows: Dictionary | None
    ) -> Float[Tensor, " some"]:
        """Return the squared norms of these latents' gradient rows."""
        ...

    def adam_rows_(
        self,
        W: Dictionary,
        gradient: Dictionary,
        second_moment: Dictionary,
        latents: Int[Tensor, " some"],
        decay: Float[Tensor, " some"],
        step: AdamStep,
        *,
        unit: bool,
    ) -> None:
        """Update these latents' rows of W and of the second moment in place."""
        ...
