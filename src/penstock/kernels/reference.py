"""What every kernel computes, in plain PyTorch: the reference, and the path taken when the support is dense.

Codes are written out as dense blocks of a few rows and multiplied as matrices, so memory stays small at any density.
The CPU and CUDA kernels have the same functions and agree with these up to rounding.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from penstock.kernels.adam import adam_rows_, squared_norms
from penstock.kernels.protocol import Dictionary
from penstock.shapes import Acts, PerInput, PerLatent
from penstock.sparse import SparseCode, Support, Values

__all__ = [
    "adam_rows_",
    "decode",
    "select",
    "squared_norms",
    "sum_by_latent",
    "value_gradients",
    "weight_gradient",
]

ENTRIES_AT_ONCE = {"cpu": 2**23, "cuda": 2**27}
"""Entries of a dense block [rows, d_sae], by device type."""


def select(
    x: Acts, W_enc: Float[Tensor, "d_in d_sae"], cut: PerLatent, factors: torch.dtype | None = None
) -> SparseCode:
    """Return the entries of `x @ W_enc` above their latent's cut. A NaN is never below the cut, so it is kept.

    `factors` is the precision that x and W_enc are rounded to first (default: their own). The product is
    accumulated, compared and returned in the precision of x and W_enc.
    """
    if factors is not None and factors != x.dtype:
        x, W_enc = x.to(factors).to(x.dtype), W_enc.to(factors).to(x.dtype)
    counts, latents, values = [], [], []
    for rows in _blocks(len(x), len(cut), x.device):
        products = x[rows] @ W_enc
        keep = ~(products <= cut)
        counts.append(keep.sum(dim=1))
        latents.append(keep.nonzero()[:, 1].int())
        values.append(products[keep])
    zero = torch.zeros(1, dtype=torch.int64, device=x.device)
    offsets = torch.cat([zero, *counts]).cumsum(0)
    empty = torch.zeros(0, dtype=torch.int32, device=x.device)
    return SparseCode(Support(offsets, torch.cat([empty, *latents]), len(cut)), torch.cat([x.new_zeros(0), *values]))


def decode(support: Support, codes: Sequence[Values], W: Dictionary, bias: PerInput) -> list[Acts]:
    """Return `code @ W + bias` for each code."""
    decoded = [W.new_empty(support.batch, W.shape[1]) for _ in codes]
    for rows, pairs, places in _dense_blocks(support):
        for code, out in zip(codes, decoded, strict=True):
            torch.addmm(bias, _written_out(code[pairs], places, rows, support), W, out=out[rows])
    return decoded


def value_gradients(support: Support, rows_of: Sequence[Acts], W: Dictionary) -> list[Values]:
    """Return for each pair (i, j) the dot product of row i and W's row j: the gradient of a code's values."""
    gradients = [W.new_empty(len(support.indices)) for _ in rows_of]
    for rows, pairs, places in _dense_blocks(support):
        for x, gradient in zip(rows_of, gradients, strict=True):
            gradient[pairs] = (x[rows] @ W.T).flatten()[places]
    return gradients


def weight_gradient(support: Support, codes: Sequence[Values], rows_of: Sequence[Acts]) -> Dictionary:
    """Return the sum over codes of `code.T @ rows`: the gradient of a dictionary's rows."""
    gradient = rows_of[0].new_zeros(support.d_sae, rows_of[0].shape[1])
    for rows, pairs, places in _dense_blocks(support):
        for code, x in zip(codes, rows_of, strict=True):
            gradient.addmm_(_written_out(code[pairs], places, rows, support).T, x[rows])
    return gradient


def sum_by_latent(support: Support, values: Values) -> PerLatent:
    """Return the sum of each latent's values over the batch."""
    return values.new_zeros(support.d_sae).index_add_(0, support.indices, values)


def _blocks(batch: int, d_sae: int, device: torch.device) -> Iterator[slice]:
    rows = max(1, ENTRIES_AT_ONCE.get(device.type, 2**23) // d_sae)
    return (slice(start, min(batch, start + rows)) for start in range(0, batch, rows))


def _dense_blocks(support: Support) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield rows of the batch, their pairs, and each pair's position in the flattened block."""
    for rows in _blocks(support.batch, support.d_sae, support.offsets.device):
        offsets = support.offsets[rows.start : rows.stop + 1]
        pairs = slice(int(offsets[0]), int(offsets[-1]))
        starts = torch.arange(len(offsets) - 1, device=offsets.device) * support.d_sae
        places = starts.repeat_interleave(offsets.diff()) + support.indices[pairs]
        yield rows, pairs, places


def _written_out(values: Values, places: Tensor, rows: slice, support: Support) -> Float[Tensor, "rows d_sae"]:
    block = values.new_zeros((rows.stop - rows.start) * support.d_sae)
    block[places] = values
    return block.view(-1, support.d_sae)
