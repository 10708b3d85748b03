"""CPU kernels in numba: loops over the support, rows shared out among threads.

Every function has its definition in `reference.py`. Each token's or latent's result is made by one thread in a fixed
order, so it does not depend on the number of threads; only `sum_by_latent` adds up what threads found.

Four rows are taken at a time in the inner loops: what is accumulated is then loaded and stored a quarter as often.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from penstock.kernels.buffers import borrow, single_threaded_blas
from penstock.kernels.reference import AdamStep
from penstock.kernels.threads import in_parallel, shares
from penstock.shapes import Acts, PerInput, PerLatent
from penstock.sparse import ByLatent, SparseCode, Support, Values

ROWS, COLUMNS = 1024, 4096
"""Largest dense block that each thread holds at a time: tokens by latents, about the size of a last-level cache."""

Dictionary = Float[Tensor, "d_sae d_in"]
Array = NDArray[Any]


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call and keep the result on disk."""
    # Unwrapped, because the tests check annotations by wrapping every function. Of "fastmath" only reordering: "nnan"
    # and "ninf" would let a NaN pass for a number.
    compile_ = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
    return compile_(inspect.unwrap(function))


def select(
    x: Acts, W_enc: Float[Tensor, "d_in d_sae"], cut: PerLatent, factors: torch.dtype | None = None
) -> SparseCode:
    if factors is not None and factors != x.dtype:
        x, W_enc = x.to(factors).to(x.dtype), W_enc.to(factors).to(x.dtype)
    batch, d_sae = len(x), len(cut)
    offsets = np.zeros(batch + 1, np.int64)
    found: dict[int, tuple[Array, Array]] = {}
    x_rows, weights, cuts = _arrays([x, W_enc, cut])

    def some_rows(first: int, last: int) -> None:
        block = borrow((ROWS * COLUMNS,), x.dtype).numpy()
        # Whoever gives NaN or inf sees it in the loss; numpy's warning would say no more.
        with np.errstate(all="ignore"):
            for start in range(first, last, ROWS):
                stop = min(last, start + ROWS)
                found[start] = _select_rows(x_rows[start:stop], weights, cuts, block, offsets[start + 1 : stop + 1])

    with single_threaded_blas:
        in_parallel(some_rows, shares(np.arange(batch + 1), d_sae * x.shape[1]))
    latents = [found[start][0] for start in sorted(found)] or [np.empty(0, np.int32)]
    values = [found[start][1] for start in sorted(found)] or [np.empty(0, x_rows.dtype)]
    support = Support(torch.from_numpy(offsets.cumsum()), torch.from_numpy(np.concatenate(latents)), d_sae)
    return SparseCode(support, torch.from_numpy(np.concatenate(values)))


def _select_rows(x: Array, W_enc: Array, cut: Array, block: Array, counts: Array) -> tuple[Array, Array]:
    """The pairs of some rows, found in blocks of columns and brought into one order; fills in `counts`."""
    tiles = []
    for left in range(0, len(cut), COLUMNS):
        columns = slice(left, min(len(cut), left + COLUMNS))
        shape = (len(x), columns.stop - left)
        products = np.matmul(x, W_enc[:, columns], out=block[: shape[0] * shape[1]].reshape(shape))
        tile_counts = np.empty(shape[0], np.int64)
        _count(products, cut[columns], tile_counts)
        pairs = int(tile_counts.sum())
        latents, values = np.empty(pairs, np.int32), np.empty(pairs, products.dtype)
        _fill(products, cut[columns], left, latents, values)
        tiles.append((tile_counts, latents, values))
        counts += tile_counts
    places = counts.cumsum() - counts
    latents, values = np.empty(counts.sum(), np.int32), np.empty(counts.sum(), x.dtype)
    for tile in tiles:
        _interleave(places, *tile, latents, values)
    return latents, values


def decode(support: Support, codes: Sequence[Values], W: Dictionary, bias: PerInput) -> list[Acts]:
    decoded = [torch.empty(support.batch, W.shape[1], dtype=W.dtype) for _ in codes]
    offsets = support.offsets.numpy()
    arrays = (offsets, support.indices.numpy(), _arrays(codes), _array(W), _array(bias), _arrays(decoded))
    in_parallel(lambda first, last: _decode(first, last, *arrays), shares(offsets, len(codes) * W.shape[1]))
    return decoded


def value_gradients(support: Support, rows_of: Sequence[Acts], W: Dictionary) -> list[Values]:
    gradients = [torch.empty(len(support.indices), dtype=W.dtype) for _ in rows_of]
    offsets = support.offsets.numpy()
    arrays = (offsets, support.indices.numpy(), _arrays(rows_of), _array(W), _arrays(gradients))
    in_parallel(lambda first, last: _dot(first, last, *arrays), shares(offsets, len(rows_of) * W.shape[1]))
    return gradients


def weight_gradient(support: Support, codes: Sequence[Values], rows_of: Sequence[Acts]) -> Dictionary:
    d_in = rows_of[0].shape[1]
    gradient = borrow((support.d_sae, d_in), rows_of[0].dtype)
    order = by_latent(support)
    offsets = order.offsets.numpy()
    arrays = (offsets, order.tokens.numpy(), order.pairs.numpy(), _arrays(codes), _arrays(rows_of), gradient.numpy())
    in_parallel(lambda first, last: _gather(first, last, *arrays), shares(offsets, len(codes) * d_in))
    return gradient


def sum_by_latent(support: Support, values: Values) -> PerLatent:
    offsets = support.offsets.numpy()
    parts = shares(offsets, 1)
    sums = np.zeros((len(parts), support.d_sae), values.numpy().dtype)
    places = {first: place for place, (first, _) in enumerate(parts)}
    arrays = (offsets, support.indices.numpy(), values.numpy())
    in_parallel(lambda first, last: _scatter(first, last, *arrays, sums[places[first]]), parts)
    return torch.from_numpy(sums.sum(axis=0))


def squared_norms(
    gradient: Dictionary, latents: Int[Tensor, " some"], unit_rows: Dictionary | None
) -> Float[Tensor, " some"]:
    norms = torch.empty(len(latents), dtype=gradient.dtype)
    along = gradient if unit_rows is None else unit_rows
    arrays = (latents.numpy(), _array(gradient), _array(along), unit_rows is not None, norms.numpy())
    in_parallel(lambda first, last: _norms(first, last, *arrays), _row_shares(latents, gradient))
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
    scalars = np.array([step.lr, 1 - step.beta2, step.correction, step.eps, step.scale]).astype(_array(W).dtype)
    arrays = (latents.numpy(), *_arrays([W, gradient, second_moment, decay]), scalars, unit)
    in_parallel(lambda first, last: _adam(first, last, *arrays), _row_shares(latents, W))


def _row_shares(latents: Int[Tensor, " some"], rows: Dictionary) -> list[tuple[int, int]]:
    return shares(np.arange(len(latents) + 1), rows.shape[1])


def by_latent(support: Support) -> ByLatent:
    """The support's pairs in the order of their latents; made once for a support."""
    if support.by_latent is None:
        arrays = _transpose(support.offsets.numpy(), support.indices.numpy(), support.d_sae)
        support.by_latent = ByLatent(*(torch.from_numpy(array) for array in arrays))
    return support.by_latent


def _array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


def _arrays(tensors: Sequence[Tensor]) -> tuple[Array, ...]:
    return tuple(_array(tensor) for tensor in tensors)


@_kernel
def _count(products: Array, cut: Array, counts: Array) -> None:
    for i in range(products.shape[0]):
        count = 0
        for j in range(products.shape[1]):
            count += not (products[i, j] <= cut[j])
        counts[i] = count


@_kernel
def _fill(products: Array, cut: Array, left: int, latents: Array, values: Array) -> None:
    place = 0
    for i in range(products.shape[0]):
        for j in range(products.shape[1]):
            value = products[i, j]
            if not (value <= cut[j]):
                latents[place] = left + j
                values[place] = value
                place += 1


@_kernel
def _interleave(
    places: Array, counts: Array, latents: Array, values: Array, all_latents: Array, all_values: Array
) -> None:
    source = 0
    for i in range(len(counts)):
        for _ in range(counts[i]):
            all_latents[places[i]] = latents[source]
            all_values[places[i]] = values[source]
            places[i] += 1
            source += 1


@_kernel
def _decode(
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


@_kernel
def _dot(first: int, last: int, offsets: Array, latents: Array, rows_of: Any, W: Array, gradients: Any) -> None:
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


@_kernel
def _gather(
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


@_kernel
def _scatter(first: int, last: int, offsets: Array, latents: Array, values: Array, sums: Array) -> None:
    for p in range(offsets[first], offsets[last]):
        sums[latents[p]] += values[p]


@_kernel
def _transpose(offsets: Array, latents: Array, d_sae: int) -> tuple[Array, Array, Array]:
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


@_kernel
def _norms(first: int, last: int, latents: Array, gradient: Array, unit_rows: Array, unit: bool, norms: Array) -> None:
    d_in = gradient.shape[1]
    for n in range(first, last):
        g, w = gradient[latents[n]], unit_rows[latents[n]]
        along = _along(g, w) if unit else g.dtype.type(0)
        norm = g.dtype.type(0)
        for k in range(d_in):
            norm += (g[k] - along * w[k]) ** 2
        norms[n] = norm


@_kernel
def _adam(
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
        along = _along(g, w) if unit else W.dtype.type(0)
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


@_kernel
def _along(g: Array, w: Array) -> Any:
    product = g.dtype.type(0)
    for k in range(len(g)):
        product += g[k] * w[k]
    return product
