"""CPU kernels in numba: loops over the support, split among threads.

Every function is defined in `reference.py` or `adam.py`; the loops are in `cpu_loops.py`.

No result depends on the number of threads. One thread computes each row of a result in a fixed order. Where work has
to be cut (`select`, `sum_by_latent`), only the shapes decide where, and each thread takes whole pieces.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from penstock.kernels import cpu_loops as loops
from penstock.kernels.buffers import borrow, single_threaded_blas
from penstock.kernels.protocol import AdamStep, Dictionary
from penstock.kernels.threads import in_parallel, shares
from penstock.shapes import Acts, PerInput, PerLatent
from penstock.sparse import ByLatent, SparseCode, Support, Values

ROWS = 1024
"""Most rows in a tile of the encoder product, before padding to `ROW_UNIT`."""

ROW_UNIT = 24
"""A tile's number of rows is a multiple of this. With a remainder, a BLAS may take another path and give other bits."""

COLUMN_UNIT = 256
"""Fewest columns in a tile, unless d_sae is smaller; wider tiles are a multiple of it."""

COLUMN_TILES = 16
"""Fewest column tiles of a wide dictionary, so that many threads have work and a tile fits in a cache."""

MAX_COLUMNS = 2048
"""Most columns in a tile."""

SUM_PARTS, PAIRS_PER_PART = 8, 2**16
"""Most parts that `sum_by_latent` is cut into, and the fewest pairs in a part."""

Array = NDArray[Any]


def select(
    x: Acts, W_enc: Float[Tensor, "d_in d_sae"], cut: PerLatent, factors: torch.dtype | None = None
) -> SparseCode:
    if factors is not None and factors != x.dtype:
        x, W_enc = x.to(factors).to(x.dtype), W_enc.to(factors).to(x.dtype)
    rows, weights, cuts = _arrays([x, W_enc, cut])
    tiles = _tiles(rows, len(cuts))
    counts = np.zeros((-(-len(cuts) // _width(len(cuts))), len(rows)), np.int64)
    largest = max((len(tile.rows) * (tile.columns.stop - tile.columns.start) for tile in tiles), default=0)
    found: dict[int, tuple[Array, Array]] = {}

    def select_some(first: int, last: int) -> None:
        block = borrow((largest,), x.dtype).numpy()
        # NaN and inf show up in the loss; numpy's warning would add nothing.
        with np.errstate(all="ignore"):
            for number in range(first, last):
                tile = tiles[number]
                shape = (len(tile.rows), tile.columns.stop - tile.columns.start)
                products = block[: shape[0] * shape[1]].reshape(shape)
                np.matmul(tile.rows, weights[:, tile.columns], out=products)
                found[number] = _kept(products, cuts[tile.columns], tile.columns.start, counts[tile.number, tile.place])

    with single_threaded_blas:
        in_parallel(select_some, shares(np.arange(len(tiles) + 1), largest * x.shape[1]))
    # A token's pairs follow each other, tile after tile.
    ends = np.ascontiguousarray(counts.T.cumsum().reshape(counts.T.shape).T)
    offsets = np.append(0, ends[-1])
    latents, values = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], rows.dtype)

    def place_some(first: int, last: int) -> None:
        for number in range(first, last):
            tile = tiles[number].number, tiles[number].place
            loops.merge(ends[tile], counts[tile], *found[number], latents, values)

    in_parallel(place_some, shares(np.arange(len(tiles) + 1), len(latents) // max(1, len(tiles))))
    support = Support(torch.from_numpy(offsets), torch.from_numpy(latents), len(cuts))
    return SparseCode(support, torch.from_numpy(values))


class _Tile(NamedTuple):
    """One piece of the encoder product."""

    place: slice
    """The tile's rows in the batch."""
    rows: Array
    """The rows to multiply, padded with zeros at the end of a batch."""
    number: int
    """The tile's columns, counted from the left."""
    columns: slice
    """The latents."""


def _tiles(x: Array, d_sae: int) -> list[_Tile]:
    """Cut the encoder product into tiles, column by column, independently of the number of threads.

    A BLAS gives the same row different bits in products of different shapes. So a tile's width depends only on d_sae,
    and the last rows are padded with zeros to the next multiple of `ROW_UNIT`. A single row is not padded: it becomes
    a matrix-vector product, which is several times cheaper.
    """
    batch, width = len(x), _width(d_sae)
    height = _filled(-(-batch // max(1, -(-batch // ROWS)))) if batch > 1 else 1
    rows = [(slice(top, min(batch, top + height)), x[top : top + height]) for top in range(0, batch, height)]
    if batch > 1 and batch % ROW_UNIT:
        place, last = rows[-1]
        padded = np.zeros((_filled(len(last)), x.shape[1]), x.dtype)
        padded[: len(last)] = last
        rows[-1] = (place, padded)
    return [
        _Tile(*some_rows, number, slice(left, min(d_sae, left + width)))
        for number, left in enumerate(range(0, d_sae, width))
        for some_rows in rows
    ]


def _width(d_sae: int) -> int:
    """Return the number of columns in a tile: a multiple of `COLUMN_UNIT`."""
    return COLUMN_UNIT * max(1, min(MAX_COLUMNS, d_sae // COLUMN_TILES) // COLUMN_UNIT)


def _filled(rows: int) -> int:
    return -(-rows // ROW_UNIT) * ROW_UNIT


def _kept(products: Array, cut: Array, left: int, counts: Array) -> tuple[Array, Array]:
    """Return the latents and values of a tile's pairs, row by row, and fill in `counts`."""
    products = products[: len(counts)]
    loops.count_kept(products, cut, counts)
    pairs = counts.sum()
    latents, values = np.empty(pairs, np.int32), np.empty(pairs, products.dtype)
    loops.write_kept(products, cut, left, latents, values)
    return latents, values


def decode(support: Support, codes: Sequence[Values], W: Dictionary, bias: PerInput) -> list[Acts]:
    decoded = [torch.empty(support.batch, W.shape[1], dtype=W.dtype, device="cpu") for _ in codes]
    offsets = support.offsets.numpy()
    arrays = (offsets, support.indices.numpy(), _arrays(codes), _array(W), _array(bias), _arrays(decoded))
    in_parallel(lambda first, last: loops.add_rows(first, last, *arrays), shares(offsets, len(codes) * W.shape[1]))
    return decoded


def value_gradients(support: Support, rows_of: Sequence[Acts], W: Dictionary) -> list[Values]:
    gradients = [torch.empty(len(support.indices), dtype=W.dtype, device="cpu") for _ in rows_of]
    offsets = support.offsets.numpy()
    arrays = (offsets, support.indices.numpy(), _arrays(rows_of), _array(W), _arrays(gradients))
    in_parallel(
        lambda first, last: loops.dot_products(first, last, *arrays), shares(offsets, len(rows_of) * W.shape[1])
    )
    return gradients


def weight_gradient(support: Support, codes: Sequence[Values], rows_of: Sequence[Acts]) -> Dictionary:
    d_in = rows_of[0].shape[1]
    gradient = borrow((support.d_sae, d_in), rows_of[0].dtype)
    order = by_latent(support)
    offsets = order.offsets.numpy()
    arrays = (offsets, order.tokens.numpy(), order.pairs.numpy(), _arrays(codes), _arrays(rows_of), gradient.numpy())
    in_parallel(lambda first, last: loops.gather_rows(first, last, *arrays), shares(offsets, len(codes) * d_in))
    return gradient


def sum_by_latent(support: Support, values: Values) -> PerLatent:
    pairs = len(support.indices)
    parts = max(1, min(SUM_PARTS, pairs // max(PAIRS_PER_PART, 4 * support.d_sae)))
    bounds = pairs * np.arange(parts + 1) // parts
    sums = np.zeros((parts, support.d_sae), values.numpy().dtype)
    arrays = (bounds, support.indices.numpy(), values.numpy(), sums)
    in_parallel(lambda first, last: loops.add_values(first, last, *arrays), shares(bounds, 1))
    return torch.from_numpy(sums.sum(axis=0) if parts > 1 else sums[0])


def squared_norms(
    gradient: Dictionary, latents: Int[Tensor, " some"], unit_rows: Dictionary | None
) -> Float[Tensor, " some"]:
    norms = torch.empty(len(latents), dtype=gradient.dtype, device="cpu")
    along = gradient if unit_rows is None else unit_rows
    arrays = (latents.numpy(), _array(gradient), _array(along), unit_rows is not None, norms.numpy())
    in_parallel(lambda first, last: loops.squared_norms(first, last, *arrays), _row_shares(latents, gradient))
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
    in_parallel(lambda first, last: loops.adam_rows(first, last, *arrays), _row_shares(latents, W))


def _row_shares(latents: Int[Tensor, " some"], rows: Dictionary) -> list[tuple[int, int]]:
    return shares(np.arange(len(latents) + 1), rows.shape[1])


def by_latent(support: Support) -> ByLatent:
    """Return the support's pairs ordered by latent; computed once per support."""
    if support.by_latent is None:
        arrays = loops.transpose(support.offsets.numpy(), support.indices.numpy(), support.d_sae)
        support.by_latent = ByLatent(*(torch.from_numpy(array) for array in arrays))
    return support.by_latent


def _array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


def _arrays(tensors: Sequence[Tensor]) -> tuple[Array, ...]:
    return tuple(_array(tensor) for tensor in tensors)
