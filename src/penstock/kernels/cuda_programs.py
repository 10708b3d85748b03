"""The Triton programs that `cuda.py` launches. Each docstring says what one program does and what limits its speed.

The stated limits are for an H100 or H200. Only the encoder product needs tensor cores; the speed of everything here is
bounded by memory. No two programs write to one place, so there are no atomics and sums have a fixed order.

Triton's compiler and its interpreter impose rules. Nothing may wrap a kernel, because its source is compiled
(no_type_check keeps run-time type checkers away). Annotations name members of `tl`. Every load and store is masked.
Row numbers are int64 before they are multiplied by a width, because d_sae * d_in can exceed 2^31.
"""

# tl.float64 is a value in Python, but Triton reads it as the annotation of a float64 scalar.
# pyright: reportInvalidTypeForm=false

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def count_kept(products: tl.tensor, cut: tl.tensor, counts: tl.tensor, d_sae: tl.tensor, COLUMNS: tl.constexpr) -> None:
    """Count the entries of a tile [1, COLUMNS] of the block that are above their cut.

    Limit: reading the block once from memory.
    """
    tiles = tl.cdiv(d_sae, COLUMNS)
    i = (tl.program_id(0) // tiles).to(tl.int64)
    j = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside = j < d_sae
    z = tl.load(products + i * d_sae + j, mask=inside, other=0)
    keep = inside & ~(z <= tl.load(cut + j, mask=inside, other=0))
    tl.store(counts + tl.program_id(0), tl.sum(keep.to(tl.int32), axis=0))


@triton.jit
@no_type_check
def write_kept(
    products: tl.tensor,
    cut: tl.tensor,
    starts: tl.tensor,
    latents: tl.tensor,
    values: tl.tensor,
    d_sae: tl.tensor,
    COLUMNS: tl.constexpr,
) -> None:
    """Write a tile's entries above their cut next to each other.

    Limit: reading the block a second time; the prefix sum of a tile takes about as long.
    """
    tiles = tl.cdiv(d_sae, COLUMNS)
    i = (tl.program_id(0) // tiles).to(tl.int64)
    j = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside = j < d_sae
    z = tl.load(products + i * d_sae + j, mask=inside, other=0)
    keep = inside & ~(z <= tl.load(cut + j, mask=inside, other=0))
    start = tl.load(starts + tl.program_id(0))
    place = tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.store(latents + start + place, j, mask=keep)
    tl.store(values + start + place, z, mask=keep)


@triton.jit
@no_type_check
def add_rows(
    offsets: tl.tensor,
    latents: tl.tensor,
    code_a: tl.tensor,
    code_b: tl.tensor,
    W: tl.tensor,
    bias: tl.tensor,
    decoded_a: tl.tensor,
    decoded_b: tl.tensor,
    d_in: tl.tensor,
    TWO: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SUMS: tl.constexpr,
) -> None:
    """Compute BLOCK_D columns of a token's reconstruction: rows of W times values, plus the bias.

    Limit: reading a row of W for each pair, from memory unless it is in the L2 cache.
    """
    blocks = tl.cdiv(d_in, BLOCK_D)
    i = (tl.program_id(0) // blocks).to(tl.int64)
    k = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = k < d_in
    first = tl.load(offsets + i)
    count = (tl.load(offsets + i + 1) - first).to(tl.int32)
    # One sum for each of the pairs in flight, so that threads meet only once, at the end.
    sum_a = tl.full((PAIRS, BLOCK_D), 0, SUMS)
    sum_b = tl.full((PAIRS, BLOCK_D), 0, SUMS)
    for p in range(0, count, PAIRS):
        q = p + tl.arange(0, PAIRS)
        here = q < count
        j = tl.load(latents + first + q, mask=here, other=0).to(tl.int64)
        w = tl.load(W + j[:, None] * d_in + k[None, :], mask=here[:, None] & inside[None, :], other=0).to(SUMS)
        sum_a += tl.load(code_a + first + q, mask=here, other=0).to(SUMS)[:, None] * w
        if TWO:
            sum_b += tl.load(code_b + first + q, mask=here, other=0).to(SUMS)[:, None] * w
    shift = tl.load(bias + k, mask=inside, other=0).to(SUMS)
    tl.store(decoded_a + i * d_in + k, tl.sum(sum_a, axis=0) + shift, mask=inside)
    if TWO:
        tl.store(decoded_b + i * d_in + k, tl.sum(sum_b, axis=0) + shift, mask=inside)


@triton.jit
@no_type_check
def dot_products(
    offsets: tl.tensor,
    latents: tl.tensor,
    rows_a: tl.tensor,
    rows_b: tl.tensor,
    W: tl.tensor,
    gradient_a: tl.tensor,
    gradient_b: tl.tensor,
    d_in: tl.tensor,
    TWO: tl.constexpr,
    SPLIT: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SUMS: tl.constexpr,
) -> None:
    """Compute dot products of a token's row with rows of W, for one of SPLIT groups of the token's pairs.

    Limit: same as `add_rows`; the token's own row stays in the L1 cache.
    """
    i = (tl.program_id(0) // SPLIT).to(tl.int64)
    first = tl.load(offsets + i)
    count = (tl.load(offsets + i + 1) - first).to(tl.int32)
    for p in range(tl.program_id(0) % SPLIT * PAIRS, count, SPLIT * PAIRS):
        q = p + tl.arange(0, PAIRS)
        here = q < count
        j = tl.load(latents + first + q, mask=here, other=0).to(tl.int64)
        sum_a = tl.full((PAIRS, BLOCK_D), 0, SUMS)
        sum_b = tl.full((PAIRS, BLOCK_D), 0, SUMS)
        for left in range(0, d_in, BLOCK_D):
            k = left + tl.arange(0, BLOCK_D)
            inside = k < d_in
            w = tl.load(W + j[:, None] * d_in + k[None, :], mask=here[:, None] & inside[None, :], other=0).to(SUMS)
            sum_a += tl.load(rows_a + i * d_in + k, mask=inside, other=0).to(SUMS)[None, :] * w
            if TWO:
                sum_b += tl.load(rows_b + i * d_in + k, mask=inside, other=0).to(SUMS)[None, :] * w
        tl.store(gradient_a + first + q, tl.sum(sum_a, axis=1), mask=here)
        if TWO:
            tl.store(gradient_b + first + q, tl.sum(sum_b, axis=1), mask=here)


@triton.jit
@no_type_check
def gather_rows(
    offsets: tl.tensor,
    tokens: tl.tensor,
    pairs: tl.tensor,
    code_a: tl.tensor,
    code_b: tl.tensor,
    rows_a: tl.tensor,
    rows_b: tl.tensor,
    gradient: tl.tensor,
    d_in: tl.tensor,
    TWO: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SUMS: tl.constexpr,
) -> None:
    """Compute BLOCK_D columns of a latent's gradient: tokens' rows times values.

    Limit: with few pairs per latent, writing the gradient; otherwise reading a token's row for each pair from L2.

    The programs of a latent that fires on most tokens finish long after the others.
    """
    blocks = tl.cdiv(d_in, BLOCK_D)
    j = (tl.program_id(0) // blocks).to(tl.int64)
    k = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = k < d_in
    first = tl.load(offsets + j)
    count = (tl.load(offsets + j + 1) - first).to(tl.int32)
    total = tl.full((PAIRS, BLOCK_D), 0, SUMS)
    for p in range(0, count, PAIRS):
        q = p + tl.arange(0, PAIRS)
        here = q < count
        i = tl.load(tokens + first + q, mask=here, other=0).to(tl.int64)
        place = tl.load(pairs + first + q, mask=here, other=0)
        both = here[:, None] & inside[None, :]
        x = tl.load(rows_a + i[:, None] * d_in + k[None, :], mask=both, other=0).to(SUMS)
        total += tl.load(code_a + place, mask=here, other=0).to(SUMS)[:, None] * x
        if TWO:
            x = tl.load(rows_b + i[:, None] * d_in + k[None, :], mask=both, other=0).to(SUMS)
            total += tl.load(code_b + place, mask=here, other=0).to(SUMS)[:, None] * x
    tl.store(gradient + j * d_in + k, tl.sum(total, axis=0), mask=inside)


@triton.jit
@no_type_check
def add_values(
    offsets: tl.tensor, pairs: tl.tensor, values: tl.tensor, sums: tl.tensor, WIDTH: tl.constexpr, SUMS: tl.constexpr
) -> None:
    """Sum a latent's values. Limit: starting a program for each latent; there is little to read."""
    j = tl.program_id(0)
    first = tl.load(offsets + j)
    count = (tl.load(offsets + j + 1) - first).to(tl.int32)
    total = tl.full((WIDTH,), 0, SUMS)
    for p in range(0, count, WIDTH):
        q = p + tl.arange(0, WIDTH)
        here = q < count
        place = tl.load(pairs + first + q, mask=here, other=0)
        total += tl.load(values + place, mask=here, other=0).to(SUMS)
    tl.store(sums + j, tl.sum(total, axis=0))


@triton.jit
@no_type_check
def squared_norm(
    latents: tl.tensor,
    gradient: tl.tensor,
    unit_rows: tl.tensor,
    norms: tl.tensor,
    d_in: tl.tensor,
    UNIT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SUMS: tl.constexpr,
) -> None:
    """Compute the squared norm of a latent's gradient. Limit: reading the rows once from memory."""
    n = tl.program_id(0)
    j = tl.load(latents + n).to(tl.int64)
    k = tl.arange(0, BLOCK_D)
    inside = k < d_in
    g = tl.load(gradient + j * d_in + k, mask=inside, other=0).to(SUMS)
    if UNIT:
        w = tl.load(unit_rows + j * d_in + k, mask=inside, other=0).to(SUMS)
        g -= tl.sum(g * w, axis=0) * w
    tl.store(norms + n, tl.sum(g * g, axis=0))


@triton.jit
@no_type_check
def adam_row(
    latents: tl.tensor,
    W: tl.tensor,
    gradient: tl.tensor,
    second_moment: tl.tensor,
    decay: tl.tensor,
    lr: tl.float64,
    share: tl.float64,
    correction: tl.float64,
    eps: tl.float64,
    scale: tl.float64,
    d_in: tl.tensor,
    UNIT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SUMS: tl.constexpr,
) -> None:
    """Update a latent. Limit: reading three rows and writing two for each latent; the rest stays in registers."""
    n = tl.program_id(0)
    j = tl.load(latents + n).to(tl.int64)
    k = tl.arange(0, BLOCK_D)
    inside = k < d_in
    w = tl.load(W + j * d_in + k, mask=inside, other=0).to(SUMS)
    g = tl.load(gradient + j * d_in + k, mask=inside, other=0).to(SUMS)
    v = tl.load(second_moment + j * d_in + k, mask=inside, other=0).to(SUMS)
    if UNIT:
        g -= tl.sum(g * w, axis=0) * w
    # Only tl.full accepts both the interpreter's plain numbers and the float64 of a compiled kernel.
    g *= tl.full((), scale, SUMS)
    v = tl.load(decay + n).to(SUMS) * v + tl.full((), share, SUMS) * g * g
    size = tl.sqrt(v / tl.full((), correction, SUMS)) + tl.full((), eps, SUMS)
    # Past the row's end and without eps, 0 / 0 would enter the row's norm.
    w -= tl.full((), lr, SUMS) * g / tl.where(inside, size, 1)
    if UNIT:
        norm = tl.sqrt(tl.sum(w * w, axis=0))
        w = w / tl.where(norm < 1e-12, 1e-12, norm)  # a maximum could drop a NaN
    tl.store(W + j * d_in + k, w, mask=inside)
    tl.store(second_moment + j * d_in + k, v, mask=inside)
