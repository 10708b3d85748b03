"""A batch's active latents in compressed rows: which (token, latent) pairs are on the support, and values on them.

Almost every latent of an SAE is zero. A `Support` holds one ragged set of pairs, and any number of codes that
vanish elsewhere are just tensors of values over it.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from penstock.shapes import Latents

Offsets = Int[Tensor, " rows_and_one"]
Indices = Int[Tensor, " pairs"]
Values = Float[Tensor, " pairs"]


class ByLatent(NamedTuple):
    """The pairs of a support in the order of their latents, tokens ascending within each."""

    offsets: Offsets
    """Latent j owns the places offsets[j] to offsets[j + 1]; int64 [d_sae + 1]."""
    tokens: Indices
    """The token of each place, int32."""
    pairs: Indices
    """Where the pair stands in the support, int64."""


@dataclass(eq=False)
class Support:
    """The (token, latent) pairs of a batch on which a code may differ from zero."""

    offsets: Offsets
    """Token i owns the pairs offsets[i] to offsets[i + 1]; int64 [batch + 1]."""
    indices: Indices
    """The latent of each pair, int32; ascending within a token when it comes from an encoder."""
    d_sae: int
    """Number of latents."""
    by_latent: ByLatent | None = field(default=None, repr=False)
    """The same pairs by latent; kernels fill it in when a gradient first asks for it."""

    @property
    def batch(self) -> int:
        """Number of tokens."""
        return len(self.offsets) - 1

    @property
    def density(self) -> float:
        """Share of all pairs that are on the support; 0 for an empty batch."""
        return len(self.indices) / max(1, self.batch * self.d_sae)

    @property
    def latents(self) -> Int[Tensor, " some"]:
        """The latents that have a pair, each once, ascending; int64."""
        return torch.bincount(self.indices, minlength=self.d_sae).nonzero().flatten()

    @property
    def tokens(self) -> Indices:
        """The token of each pair, int64."""
        numbers = torch.arange(self.batch, device=self.offsets.device)
        return numbers.repeat_interleave(self.offsets.diff(), output_size=len(self.indices))


@dataclass(frozen=True, eq=False)
class SparseCode:
    """A code [batch, d_sae] that is zero off its support."""

    support: Support
    values: Values
    """One for each pair of the support; some may be zero."""

    @classmethod
    def from_dense(cls, acts: Latents) -> "SparseCode":
        """The nonzero entries of a dense code (NaN is one of them)."""
        counts = (acts != 0).sum(dim=1)
        tokens, latents = acts.nonzero(as_tuple=True)
        return cls(Support(_offsets(counts), latents.int(), acts.shape[1]), acts[tokens, latents])

    def to_dense(self) -> Latents:
        """The code with its zeros written out, [batch, d_sae]."""
        dense = self.values.new_zeros(self.support.batch, self.support.d_sae)
        return dense.index_put((self.support.tokens, self.support.indices.long()), self.values)

    def nonzero(self) -> "SparseCode":
        """The same code on the pairs where it is not zero."""
        keep = self.values != 0
        before = torch.cat([keep.new_zeros(1, dtype=torch.int64), keep.cumsum(0)])
        support = Support(before[self.support.offsets], self.support.indices[keep], self.support.d_sae)
        return SparseCode(support, self.values[keep])

    def detach(self) -> "SparseCode":
        """The same code without its history."""
        return SparseCode(self.support, self.values.detach())

    @property
    def l0(self) -> Int[Tensor, " batch"]:
        """Latents that fire on each token, int64."""
        fires = torch.cat([self.support.offsets.new_zeros(1), (self.values != 0).cumsum(0)])
        return fires[self.support.offsets].diff()

    @property
    def firing(self) -> Int[Tensor, " d_sae"]:
        """Tokens on which each latent fires, int64."""
        return torch.bincount(self.support.indices[self.values != 0], minlength=self.support.d_sae)


def _offsets(counts: Int[Tensor, " rows"]) -> Offsets:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
