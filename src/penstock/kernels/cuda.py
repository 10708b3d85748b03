"""CUDA kernels in Triton: gathers over the support, without atomics.

Every function is defined in `reference.py`; the programs that run on the device are in `cuda_programs.py`.
One program computes each number in a fixed order, so the same input gives the same bits.

CPU tensors also work if TRITON_INTERPRET=1 is set before Triton is first imported, so tests need no GPU.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from penstock.kernels import cuda_programs as programs
from penstock.kernels.protocol import AdamStep, Dictionary
from penstock.shapes import Acts, PerInput, PerLatent
from penstock.sparse import ByLatent, SparseCode, Support, Values

BLOCK = 2**27
"""Entries of a dense block [rows, d_sae]: enough rows for an efficient product, 512 MiB in float32."""

COLUMNS = 2048
"""Latents of a row that one program of `select` handles."""

TILE = 2048
"""Dictionary entries that a program holds at a time, in several rows: 16 for each of its 128 threads."""

SPLIT = 4
"""Programs that share a token's pairs in `value_gradients`, to balance tokens with very different numbers of pairs."""

WIDTH = 128
"""Values that a program of `sum_by_latent` adds at a time."""


def select(
    x: Acts, W_enc: Float[Tensor, "d_in d_sae"], cut: PerLatent, factors: torch.dtype | None = None
) -> SparseCode:
    batch, d_sae = len(x), len(cut)
    x, W_enc, cut = *_rounded(x, W_enc, factors, cut.dtype), cut.contiguous()
    rows, tiles = max(1, min(batch, BLOCK // d_sae)), triton.cdiv(d_sae, COLUMNS)
    block = cut.new_empty(rows, d_sae)
    counts, latents, values = [cut.new_zeros(1, dtype=torch.int64)], [], []
    for start in range(0, batch, rows):
        products = _product(x[start : start + rows], W_enc, block)
        # A row's tiles follow each other, and so do their pairs.
        count = cut.new_empty(len(products), tiles, dtype=torch.int32)
        _launch(programs.count_kept, count.numel(), products, cut, count, d_sae, COLUMNS=COLUMNS)
        ends = count.flatten().cumsum(0)
        pairs = int(ends[-1])  # the only wait for the device
        latents.append(cut.new_empty(pairs, dtype=torch.int32))
        values.append(cut.new_empty(pairs))
        found = (ends - count.flatten(), latents[-1], values[-1])
        _launch(programs.write_kept, count.numel(), products, cut, *found, d_sae, COLUMNS=COLUMNS, num_warps=8)
        counts.append(count.sum(dim=1))
    indices = torch.cat(latents) if latents else cut.new_empty(0, dtype=torch.int32)
    support = Support(torch.cat(counts).cumsum(0), indices, d_sae)
    return SparseCode(support, torch.cat(values) if values else cut.new_empty(0))


def _rounded(x: Tensor, W_enc: Tensor, factors: torch.dtype | None, result: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the factors of the product in a precision that `_product` can multiply."""
    if factors is None or factors == x.dtype:
        return x, W_enc
    x, W_enc = x.to(factors), W_enc.to(factors)
    half = factors in (torch.bfloat16, torch.float16) and result == torch.float32
    # Tensor cores accumulate in float32; PyTorch exposes that only on CUDA, since 2.8.
    if half and x.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
        return x, W_enc
    return x.to(result), W_enc.to(result)


def _product(x: Tensor, W_enc: Tensor, block: Tensor) -> Tensor:
    """Compute x @ W_enc into the block's first rows, in the block's precision."""
    out = block[: len(x)]
    if x.dtype == block.dtype:
        return torch.mm(x, W_enc, out=out)
    return torch.mm(x, W_enc, out_dtype=block.dtype, out=out)


def decode(support: Support, codes: Sequence[Values], W: Dictionary, bias: PerInput) -> list[Acts]:
    decoded = [W.new_empty(support.batch, W.shape[1]) for _ in codes]
    codes, W, bias = [code.contiguous() for code in codes], W.contiguous(), bias.contiguous()
    tile = _tile(len(support.indices), support.batch, W)
    number = support.batch * triton.cdiv(W.shape[1], tile["BLOCK_D"])
    for a, b in _twos(len(codes)):
        tensors = (*_pairs(support), codes[a], codes[b], W, bias, decoded[a], decoded[b])
        _launch(programs.add_rows, number, *tensors, W.shape[1], TWO=b > a, **tile)
    return decoded


def value_gradients(support: Support, rows_of: Sequence[Acts], W: Dictionary) -> list[Values]:
    gradients = [W.new_empty(len(support.indices)) for _ in rows_of]
    rows_of, W = [x.contiguous() for x in rows_of], W.contiguous()
    tile = _tile(len(support.indices), support.batch, W)
    for a, b in _twos(len(rows_of)):
        tensors = (*_pairs(support), rows_of[a], rows_of[b], W, gradients[a], gradients[b])
        _launch(programs.dot_products, SPLIT * support.batch, *tensors, W.shape[1], TWO=b > a, SPLIT=SPLIT, **tile)
    return gradients


def weight_gradient(support: Support, codes: Sequence[Values], rows_of: Sequence[Acts]) -> Dictionary:
    codes, rows_of = [code.contiguous() for code in codes], [x.contiguous() for x in rows_of]
    d_in = rows_of[0].shape[1]
    tile = _tile(len(support.indices), support.d_sae, rows_of[0])
    number = support.d_sae * triton.cdiv(d_in, tile["BLOCK_D"])
    parts = []
    for a, b in _twos(len(codes)):
        parts.append(rows_of[a].new_empty(support.d_sae, d_in))
        tensors = (*by_latent(support), codes[a], codes[b], rows_of[a], rows_of[b], parts[-1])
        _launch(programs.gather_rows, number, *tensors, d_in, TWO=b > a, **tile)
    for part in parts[1:]:
        parts[0] += part
    return parts[0]


def sum_by_latent(support: Support, values: Values) -> PerLatent:
    order = by_latent(support)
    sums = values.new_empty(support.d_sae)
    tensors = (order.offsets, order.pairs, values.contiguous(), sums)
    _launch(programs.add_values, support.d_sae, *tensors, WIDTH=WIDTH, SUMS=_sums(values), num_warps=1)
    return sums


def squared_norms(
    gradient: Dictionary, latents: Int[Tensor, " some"], unit_rows: Dictionary | None
) -> Float[Tensor, " some"]:
    norms = gradient.new_empty(len(latents))
    along = gradient if unit_rows is None else unit_rows
    tensors = (latents.contiguous(), gradient.contiguous(), along.contiguous(), norms)
    _launch(
        programs.squared_norm, len(latents), *tensors, gradient.shape[1], UNIT=unit_rows is not None, **_row(gradient)
    )
    return norms


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
    rows, moments = W.contiguous(), second_moment.contiguous()
    tensors = (latents.contiguous(), rows, gradient.contiguous(), moments, decay.contiguous())
    # In float32, 1 - 0.999 would be off by 5e-5.
    scalars = (step.lr, 1 - step.beta2, step.correction, step.eps, step.scale)
    _launch(programs.adam_row, len(latents), *tensors, *map(float, scalars), W.shape[1], UNIT=unit, **_row(W))
    for updated, given in ((rows, W), (moments, second_moment)):
        if not given.is_contiguous():
            given.copy_(updated)


def by_latent(support: Support) -> ByLatent:
    """Return the support's pairs ordered by latent; computed once per support."""
    if support.by_latent is None:
        latents, pairs = support.indices.sort(stable=True)
        ends = torch.arange(support.d_sae + 1, dtype=latents.dtype, device=latents.device)
        support.by_latent = ByLatent(torch.searchsorted(latents, ends), support.tokens[pairs].int(), pairs)
    return support.by_latent


def _pairs(support: Support) -> tuple[Tensor, Tensor]:
    return support.offsets.contiguous(), support.indices.contiguous()


def _launch(kernel: Any, number: int, *arguments: Any, **constants: Any) -> None:
    """Run `number` programs on the device of the first argument, which is a tensor.

    Tensors must be contiguous, because a program only sees their start address.
    """
    if number > 0:
        with torch.cuda.device_of(arguments[0]):
            kernel[(number,)](*arguments, **constants, enable_fp_fusion=True)


def _twos(codes: int) -> Iterator[tuple[int, int]]:
    """Yield the codes in pairs, which share their loads; an odd last code is paired with itself."""
    return ((a, min(a + 1, codes - 1)) for a in range(0, codes, 2))


def _tile(pairs: int, rows: int, W: Tensor) -> dict[str, Any]:
    """Return how many pairs and columns of a row to take at a time: few pairs if most rows have few."""
    at_once = 4 if pairs <= 4 * rows else 8
    return {"PAIRS": at_once, "BLOCK_D": min(TILE // at_once, triton.next_power_of_2(W.shape[1])), "SUMS": _sums(W)}


def _row(W: Tensor) -> dict[str, Any]:
    """Return the launch settings for one whole row per program, 16 entries for each thread."""
    width = triton.next_power_of_2(W.shape[1])
    return {"BLOCK_D": width, "SUMS": _sums(W), "num_warps": min(16, max(1, width // 512))}


def _sums(tensor: Tensor) -> tl.dtype:
    """Return the precision of sums over this tensor."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32
