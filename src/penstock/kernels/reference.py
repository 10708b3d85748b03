"""What every kernel computes, in plain PyTorch: the definition, and the path taken where the support is dense.

A dense block of a few rows is written out at a time and multiplied as matrices, so memory stays small at any density.
The CPU and CUDA kernels have the same functions and agree with these up to rounding.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from penstock.shapes import Acts, PerInput, PerLatent
from penstock.sparse import SparseCode, Support, Values

BLOCK = {"cpu": 2**23, "cuda": 2**27}
"""Entries of a dense block [rows, d_sae], by device type."""

Dictionary = Float[Tensor, "d_sae d_in"]


def select(
    x: Acts, W_enc: Float[Tensor, "d_in d_sae"], cut: PerLatent, factors: torch.dtype | None = None
) -> SparseCode:
    """The entries of `x @ W_enc` above their latent's cut. A NaN is never below: it is kept.

    `factors` is the precision that x and W_enc are rounded to first (their own if left out); the product is
    accumulated, compared and returned in theirs.
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
    """`code @ W + bias` for each code."""
    decoded = [W.new_empty(support.batch, W.shape[1]) for _ in codes]
    for rows, pairs, places in _dense_blocks(support):
        for code, out in zip(codes, decoded, strict=True):
            torch.addmm(bias, _written_out(code[pairs], places, rows, support), W, out=out[rows])
    return decoded


def value_gradients(support: Support, rows_of: Sequence[Acts], W: Dictionary) -> list[Values]:
    """For each pair (i, j) the dot product of row i and W's row j: the gradient of a code's values."""
    gradients = [W.new_empty(len(support.indices)) for _ in rows_of]
    for rows, pairs, places in _dense_blocks(support):
        for x, gradient in zip(rows_of, gradients, strict=True):
            gradient[pairs] = (x[rows] @ W.T).flatten()[places]
    return gradients


def weight_gradient(support: Support, codes: Sequence[Values], rows_of: Sequence[Acts]) -> Dictionary:
    """The sum over codes of `code.T @ rows`: the gradient of a dictionary's rows."""
    gradient = rows_of[0].new_zeros(support.d_sae, rows_of[0].shape[1])
    for rows, pairs, places in _dense_blocks(support):
        for code, x in zip(codes, rows_of, strict=True):
            gradient.addmm_(_written_out(code[pairs], places, rows, support).T, x[rows])
    return gradient


def sum_by_latent(support: Support, values: Values) -> PerLatent:
    """The sum of each latent's values over the batch."""
    return values.new_zeros(support.d_sae).index_add_(0, support.indices, values)


def _blocks(batch: int, d_sae: int, device: torch.device) -> Iterator[slice]:
    rows = max(1, BLOCK.get(device.type, 2**23) // d_sae)
    return (slice(start, min(batch, start + rows)) for start in range(0, batch, rows))


def _dense_blocks(support: Support) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows of the batch, their pairs, and each pair's place in the flattened block."""
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


class AdamStep(NamedTuple):
    """One step of Adam without a first moment (beta1 = 0), in float64 on the host."""

    lr: float
    beta2: float
    correction: float
    """1 - beta2^t after t steps: the second moment is divided by it."""
    eps: float
    scale: float = 1.0
    """Factor on the gradient, below 1 where it is clipped."""


def squared_norms(
    gradient: Dictionary, latents: Int[Tensor, " some"], unit_rows: Dictionary | None
) -> Float[Tensor, " some"]:
    """Squared norms of these latents' gradient rows, without their parts along `unit_rows` if given."""
    rows = gradient[latents]
    if unit_rows is not None:
        rows = _projected(rows, unit_rows[latents])
    return rows.square().sum(dim=1)


def adam_rows_(
    W: Dictionary,
    gradient: Dictionary,
    second_moment: Dictionary,
    latents: Int[Tensor, " some"],
    decay: Float[Tensor, " some"],
    step: AdamStep,
    *,
    unit: bool,
) -> None:
    """Update some rows in place: project, Adam, renormalise.

    Args:
        W: Parameter, latent-major.
        gradient: Of the loss; rows of other latents are not read.
        second_moment: As of each latent's last update.
        latents: The rows to update, each once.
        decay: What each row's second moment is multiplied by first: beta2 to the power of the steps since.
        step: Settings of this step.
        unit: Remove the gradient's part along the row, and bring the row back to unit norm.
    """
    rows, moments = W[latents], second_moment[latents]
    g = gradient[latents]
    g = step.scale * (_projected(g, rows) if unit else g)
    moments = decay[:, None] * moments + (1 - step.beta2) * g.square()
    rows = rows - step.lr * g / ((moments / step.correction).sqrt() + step.eps)
    if unit:
        rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    W[latents], second_moment[latents] = rows, moments


def _projected(gradient: Float[Tensor, "some d_in"], unit_rows: Float[Tensor, "some d_in"]) -> Tensor:
    return gradient - (gradient * unit_rows).sum(dim=1, keepdim=True) * unit_rows
