"""The loops of the CPU kernels, compiled by numba; they run without the GIL.

Inner loops take four rows at a time, so that accumulators are loaded and stored a quarter as often.
"""

import inspect
import logging
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Array = NDArray[Any]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call, and cache the result on disk if a folder is writable."""
    # Unwrapped, because the tests wrap every function to check annotations. Of "fastmath" only reordering is allowed:
    # "nnan" and "ninf" would let a NaN pass for a number.
    function = inspect.unwrap(function)
    compile_ = partial(njit, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
    try:
        return compile_(cache=True)(function)
    except RuntimeError as error:
        # numba raises this when neither the package's folder nor the user's cache folder is writable.
        if "no locator available" not in str(error):
            raise
        _say_that_nothing_is_kept()
        return compile_()(function)


@cache
def _say_that_nothing_is_kept() -> None:
    logger.warning(
        "The compiled CPU kernels cannot be kept: neither %s nor the user's cache folder is writable. Every process "
        "compiles them again, which takes up to a minute. Set NUMBA_CACHE_DIR to a writable folder.",
        Path(__file__).parent,
    )


@compiled
def count_kept(products: Array, cut: Array, counts: Array) -> None:
    for i in range(products.shape[0]):
        count = 0
        for j in range(products.shape[1]):
            count += not (products[i, j] <= cut[j])
        counts[i] = count


@compiled
def write_kept(products: Array, cut: Array, left: int, latents: Array, values: Array) -> None:
    place = 0
    for i in range(products.shape[0]):
        for j in range(products.shape[1]):
            value = products[i, j]
            if not (value <= cut[j]):
                latents[place] = left + j
                values[place] = value
                place += 1


@compiled
def merge(ends: Array, counts: Array, latents: Array, values: Array, all_latents: Array, all_values: Array) -> None:
    source = 0
    for i in range(len(counts)):
        for place in range(ends[i] - counts[i], ends[i]):
            all_latents[place] = latents[source]
            all_values[place] = values[source]
            source += 1


@compiled
def add_rows(
    first: int, last: int, offsets: Array, latents: Array, codes: Any, W: Array, bias: Array, decoded: Any
) -> None:
    d_in = W.shape[1]
    for i in range(first, last):
        for c in range(len(codes)):
            out = decoded[c][i]
            for k in range(d_in):
                out[k] = bias[k]
        p, end = offsets[i], offsets[i + 1]
        while p + 4 <= end:
            w0, w1, w2, w3 = W[latents[p]], W[latents[p + 1]], W[latents[p + 2]], W[latents[p + 3]]
            for c in range(len(codes)):
                code, out = codes[c], decoded[c][i]
                f0, f1, f2, f3 = code[p], code[p + 1], code[p + 2], code[p + 3]
                for k in range(d_in):
                    out[k] += f0 * w0[k] + f1 * w1[k] + f2 * w2[k] + f3 * w3[k]
            p += 4
        while p < end:
            w = W[latents[p]]
            for c in range(len(codes)):
                f, out = codes[c][p], decoded[c][i]
                for k in range(d_in):
                    out[k] += f * w[k]
            p += 1


@compiled
def dot_products(first: int, last: int, offsets: Array, latents: Array, rows_of: Any, W: Array, gradients: Any) -> None:
    d_in = W.shape[1]
    zero = W.dtype.type(0)
    for i in range(first, last):
        p, end = offsets[i], offsets[i + 1]
        while p + 4 <= end:
            w0, w1, w2, w3 = W[latents[p]], W[latents[p + 1]], W[latents[p + 2]], W[latents[p + 3]]
            for c in range(len(rows_of)):
                x, gradient = rows_of[c][i], gradients[c]
                s0 = s1 = s2 = s3 = zero
                for k in range(d_in):
                    s0 += x[k] * w0[k]
                    s1 += x[k] * w1[k]
                    s2 += x[k] * w2[k]
                    s3 += x[k] * w3[k]
                gradient[p], gradient[p + 1], gradient[p + 2], gradient[p + 3] = s0, s1, s2, s3
            p += 4
        while p < end:
            w = W[latents[p]]
            for c in range(len(rows_of)):
                x = rows_of[c][i]
                s0 = zero
                for k in range(d_in):
                    s0 += x[k] * w[k]
                gradients[c][p] = s0
            p += 1


@compiled
def gather_rows(
    first: int, last: int, offsets: Array, tokens: Array, pairs: Array, codes: Any, rows_of: Any, gradient: Array
) -> None:
    d_in = gradient.shape[1]
    for j in range(first, last):
        out = gradient[j]
        for k in range(d_in):
            out[k] = 0
        for c in range(len(codes)):
            code, rows = codes[c], rows_of[c]
            q, end = offsets[j], offsets[j + 1]
            while q + 4 <= end:
                x0, x1, x2, x3 = rows[tokens[q]], rows[tokens[q + 1]], rows[tokens[q + 2]], rows[tokens[q + 3]]
                f0, f1, f2, f3 = code[pairs[q]], code[pairs[q + 1]], code[pairs[q + 2]], code[pairs[q + 3]]
                for k in range(d_in):
                    out[k] += f0 * x0[k] + f1 * x1[k] + f2 * x2[k] + f3 * x3[k]
                q += 4
            while q < end:
                x, f = rows[tokens[q]], code[pairs[q]]
                for k in range(d_in):
                    out[k] += f * x[k]
                q += 1


@compiled
def add_values(first: int, last: int, bounds: Array, latents: Array, values: Array, sums: Array) -> None:
    for part in range(first, last):
        for p in range(bounds[part], bounds[part + 1]):
            sums[part, latents[p]] += values[p]


@compiled
def transpose(offsets: Array, latents: Array, d_sae: int) -> tuple[Array, Array, Array]:
    starts = np.zeros(d_sae + 1, np.int64)
    for j in latents:
        starts[j + 1] += 1
    for j in range(d_sae):
        starts[j + 1] += starts[j]
    places = starts[:-1].copy()
    tokens = np.empty(len(latents), np.int32)
    pairs = np.empty(len(latents), np.int64)
    for i in range(len(offsets) - 1):
        for p in range(offsets[i], offsets[i + 1]):
            q = places[latents[p]]
            tokens[q], pairs[q] = i, p
            places[latents[p]] = q + 1
    return starts, tokens, pairs


@compiled
def squared_norms(
    first: int, last: int, latents: Array, gradient: Array, unit_rows: Array, unit: bool, norms: Array
) -> None:
    d_in = gradient.shape[1]
    for n in range(first, last):
        g, w = gradient[latents[n]], unit_rows[latents[n]]
        along = dot(g, w) if unit else g.dtype.type(0)
        norm = g.dtype.type(0)
        for k in range(d_in):
            norm += (g[k] - along * w[k]) ** 2
        norms[n] = norm


@compiled
def adam_rows(
    first: int,
    last: int,
    latents: Array,
    W: Array,
    gradient: Array,
    second_moment: Array,
    decay: Array,
    scalars: Array,
    unit: bool,
) -> None:
    lr, share, correction, eps, scale = scalars
    d_in = W.shape[1]
    for n in range(first, last):
        w, g, v = W[latents[n]], gradient[latents[n]], second_moment[latents[n]]
        along = dot(g, w) if unit else W.dtype.type(0)
        norm = W.dtype.type(0)
        for k in range(d_in):
            step = scale * (g[k] - along * w[k])
            v[k] = decay[n] * v[k] + share * step * step
            w[k] -= lr * step / (np.sqrt(v[k] / correction) + eps)
            norm += w[k] * w[k]
        if unit:
            shrink = 1 / max(np.sqrt(norm), W.dtype.type(1e-12))
            for k in range(d_in):
                w[k] *= shrink


@compiled
def dot(g: Array, w: Array) -> Any:
    product = g.dtype.type(0)
    for k in range(len(g)):
        product += g[k] * w[k]
    return product
