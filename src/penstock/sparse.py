"""Sparse codes in compressed-row format: the (token, latent) pairs that may be nonzero, and their values.

Almost all latents of an SAE are zero on any one token. A `Support` holds the pairs, a different number for each token.
Several codes can share a support; each of them is one tensor of values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from penstock.shapes import AnyLatents

Offsets = Int[Tensor, " rows_and_one"]
Indices = Int[Tensor, " pairs"]
Values = Float[Tensor, " pairs"]


class ByLatent(NamedTuple):
    """The pairs of a support ordered by latent, and by token within each latent."""

    offsets: Offsets
    """Latent j has the entries offsets[j] to offsets[j + 1]; int64 [d_sae + 1]."""
    tokens: Indices
    """The token of each entry, int32."""
    pairs: Indices
    """The index of each entry's pair in the support, int64."""


@dataclass(eq=False, repr=False)
class Support:
    """The (token, latent) pairs of a batch on which a code may differ from zero."""

    offsets: Offsets
    """Token i has the pairs offsets[i] to offsets[i + 1]; int64 [batch + 1]."""
    indices: Indices
    """The latent of each pair, int32, ascending within a token if an encoder made the support."""
    d_sae: int
    """Number of latents."""
    by_latent: ByLatent | None = field(default=None, repr=False)
    """The same pairs ordered by latent, filled in by kernels when a gradient first needs it."""

    def __repr__(self) -> str:
        pairs = len(self.indices)
        return f"Support({self.batch} tokens, d_sae={self.d_sae}, {pairs} pairs, density={self.density:.2g})"

    @property
    def batch(self) -> int:
        """Number of tokens."""
        return len(self.offsets) - 1

    @property
    def density(self) -> float:
        """The share of all (token, latent) pairs that are in the support; 0 for an empty batch."""
        return len(self.indices) / max(1, self.batch * self.d_sae)

    @property
    def latents(self) -> Int[Tensor, " some"]:
        """The latents that occur in the support, without repetition, ascending; int64."""
        return torch.bincount(self.indices, minlength=self.d_sae).nonzero().flatten()

    @property
    def tokens(self) -> Indices:
        """The token of each pair, int64."""
        numbers = torch.arange(self.batch, device=self.offsets.device)
        return numbers.repeat_interleave(self.offsets.diff(), output_size=len(self.indices))


@dataclass(frozen=True, eq=False, repr=False)
class SparseCode:
    """A code [batch, d_sae], or [..., d_sae] with any leading dimensions, that is zero outside its support.

    The support numbers tokens in one flat list, in row-major order of the leading dimensions.
    """

    support: Support
    values: Values
    """One value for each pair of the support; some may be zero."""
    leading_sizes: tuple[int, ...] | None = None
    """Sizes of the leading dimensions; None means (batch,)."""

    def __repr__(self) -> str:
        """Shape, mean L0, dtype and device."""
        dtype = str(self.values.dtype).removeprefix("torch.")
        l0 = (self.values != 0).sum().item() / max(1, self.support.batch)
        return f"SparseCode({list(self.shape)}, mean L0 {l0:.4g}, {dtype}, {self.values.device})"

    @property
    def leading(self) -> tuple[int, ...]:
        """Sizes of the dimensions before d_sae."""
        return (self.support.batch,) if self.leading_sizes is None else self.leading_sizes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape [..., d_sae] of the dense code."""
        return (*self.leading, self.support.d_sae)

    def with_leading(self, sizes: Sequence[int]) -> "SparseCode":
        """Return the same code with other leading dimensions.

        Raises:
            ValueError: the product of the sizes is not the number of tokens.
        """
        if math.prod(sizes) != self.support.batch:
            raise ValueError(
                f"sizes={list(sizes)} do not fit a code of {self.support.batch} tokens. Their product must be that "
                "number."
            )
        return replace(self, leading_sizes=tuple(sizes))

    @classmethod
    def from_dense(cls, acts: AnyLatents) -> "SparseCode":
        """Return the sparse code of a dense code [..., d_sae]. NaN counts as nonzero."""
        flat = acts.reshape(math.prod(acts.shape[:-1]), acts.shape[-1])
        counts = (flat != 0).sum(dim=1)
        tokens, latents = flat.nonzero(as_tuple=True)
        support = Support(_offsets(counts), latents.int(), flat.shape[1])
        return cls(support, flat[tokens, latents], tuple(acts.shape[:-1]))

    def to_dense(self) -> AnyLatents:
        """Return the code as a dense tensor [..., d_sae]."""
        dense = self.values.new_zeros(self.support.batch, self.support.d_sae)
        return dense.index_put((self.support.tokens, self.support.indices.long()), self.values).reshape(self.shape)

    def nonzero(self) -> "SparseCode":
        """Return the same code without the pairs whose value is zero."""
        keep = self.values != 0
        before = torch.cat([keep.new_zeros(1, dtype=torch.int64), keep.cumsum(0)])
        support = Support(before[self.support.offsets], self.support.indices[keep], self.support.d_sae)
        return SparseCode(support, self.values[keep], self.leading_sizes)

    def detach(self) -> "SparseCode":
        """Return the same code, detached from the autograd graph."""
        return replace(self, values=self.values.detach())

    @property
    def l0(self) -> Int[Tensor, "..."]:
        """The number of nonzero latents of each token, int64 [...]."""
        fires = torch.cat([self.support.offsets.new_zeros(1), (self.values != 0).cumsum(0)])
        return fires[self.support.offsets].diff().reshape(self.leading)

    @property
    def firing(self) -> Int[Tensor, " d_sae"]:
        """The number of tokens on which each latent is nonzero, int64 [d_sae]."""
        return torch.bincount(self.support.indices[self.values != 0], minlength=self.support.d_sae)


def _offsets(counts: Int[Tensor, " rows"]) -> Offsets:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
