"""Latents that two dictionaries share: matched by direction, then compared on the tokens where both fire.

Cosines are signed: codes are never negative, so a latent with the opposite direction is a different latent.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from penstock.sparse import SparseCode

COSINES_AT_ONCE = 2**23
"""Cosines held in memory at once, 32 MiB."""

MAX_HUNGARIAN = 20_000
"""Most latents per dictionary that `hungarian` accepts; its cost matrix then takes 3 GiB."""

Pairs = Int[Tensor, "matches 2"]


class BestCosines(NamedTuple):
    """The nearest row of another dictionary, by cosine, for each row of one dictionary."""

    cosine: Float[Tensor, " d_a"]
    """Best cosine of each row, from -1 to 1, float32."""
    index: Int[Tensor, " d_a"]
    """Index of the nearest row, the first in a tie; int64."""


class Matching(NamedTuple):
    """A one-to-one matching of rows of two dictionaries."""

    pairs: Pairs
    """Row of a and row of b, ascending in a; int64."""
    cosine: Float[Tensor, " matches"]
    """Cosine of each pair, float32."""


class Slopes(NamedTuple):
    """The slope of one code's magnitudes on another's, for each pair of latents."""

    slope: Float[Tensor, " matches"]
    """Slope of each pair, float64; NaN if the two latents never fire together."""
    tokens: Int[Tensor, " matches"]
    """Number of tokens on which both fire."""


class MagnitudeSums(NamedTuple):
    """Sums for each pair over the tokens on which both latents fire, in float64."""

    ab: Float[Tensor, " matches"]
    """Sum of the products of their magnitudes."""
    aa: Float[Tensor, " matches"]
    """Sum of a's squares."""
    bb: Float[Tensor, " matches"]
    tokens: Int[Tensor, " matches"]
    """Number of these tokens."""


@torch.no_grad()
def best_cosines(W_a: Float[Tensor, "d_a d_in"], W_b: Float[Tensor, "d_b d_in"]) -> BestCosines:
    """Return the best cosine of each row of a among the rows of b; their mean is the mean max cosine similarity (MMCS).

    It is not symmetric, and is meaningful only compared with `random_null`. Products are computed in float32; the
    cosine of a row of zeros is 0.

    Args:
        W_a: Decoder rows.
        W_b: Decoder rows of the same width, at least one.

    Source: Sharkey et al. 2022, "Taking features out of superposition with sparse autoencoders".
    """
    rows_b = _unit(W_b)
    best = [(_unit(rows) @ rows_b.T).max(dim=1) for rows in W_a.split(_rows_at_once(len(rows_b)))]
    return BestCosines(torch.cat([values for values, _ in best]), torch.cat([index for _, index in best]))


def random_null(d_in: int, d_b: int, samples: int, seed: int) -> Float[Tensor, " samples"]:
    """Return best cosines by chance: of random directions among `d_b` random directions, all uniform on the sphere.

    Values are about sqrt(2 ln(d_b) / d_in). All samples are compared with the same dictionary.
    """
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.randn(d_b, d_in, generator=generator, device="cpu")
    return best_cosines(torch.randn(samples, d_in, generator=generator, device="cpu"), dictionary).cosine


def mutual_nearest(W_a: Float[Tensor, "d_a d_in"], W_b: Float[Tensor, "d_b d_in"]) -> Matching:
    """Return the pairs of rows that are each other's nearest.

    Chance alone pairs about d_b / (d_a + d_b) of a's rows (half for equal sizes), so look at the cosines, too.
    """
    return mutual_of(best_cosines(W_a, W_b), best_cosines(W_b, W_a))


def mutual_of(a_to_b: BestCosines, b_to_a: BestCosines) -> Matching:
    """Return the same as `mutual_nearest`, from the best cosines of both directions."""
    of_a = torch.arange(len(a_to_b.index), device=a_to_b.index.device)
    mutual = b_to_a.index[a_to_b.index] == of_a
    return Matching(torch.stack([of_a[mutual], a_to_b.index[mutual]], dim=1), a_to_b.cosine[mutual])


@torch.no_grad()
def hungarian(W_a: Float[Tensor, "d_a d_in"], W_b: Float[Tensor, "d_b d_in"]) -> Matching:
    """Return the one-to-one matching with the largest sum of cosines; all rows of the smaller dictionary are matched.

    Time grows with the cube of the number of latents.

    Raises:
        ValueError: a dictionary has more than MAX_HUNGARIAN rows.

    Source: Paulo & Belrose 2025, https://arxiv.org/abs/2501.16615, match dictionaries of two seeds this way.
    """
    latents = max(len(W_a), len(W_b))
    if latents > MAX_HUNGARIAN:
        raise ValueError(
            f"A Hungarian matching of {latents:,} latents takes too long, because its time is cubic: at most "
            f"{MAX_HUNGARIAN:,} are allowed. Leave out latents that never fire, or use mutual_nearest."
        )
    from scipy.optimize import linear_sum_assignment

    rows_b = _unit(W_b)
    # Costs, because `maximize=True` would copy the matrix.
    costs = torch.empty(len(W_a), len(W_b), dtype=torch.float64, device="cpu")
    at_once = _rows_at_once(len(rows_b))
    for rows, block in zip(W_a.split(at_once), costs.split(at_once), strict=True):
        block.copy_(-(_unit(rows) @ rows_b.T))
    of_a, of_b = map(torch.from_numpy, linear_sum_assignment(costs.numpy()))
    cosine = -costs[of_a, of_b].float()
    return Matching(torch.stack([of_a, of_b], dim=1).to(W_a.device), cosine.to(W_a.device))


@torch.no_grad()
def firing_jaccard(code_a: SparseCode, code_b: SparseCode, pairs: Pairs) -> Float[Tensor, " matches"]:
    """Return for each pair the tokens on which both latents fire, divided by those on which at least one fires.

    The ratio does not depend on magnitudes or widths, so the codes may come from SAEs of different models or sites.

    Args:
        code_a: Code of any batch of tokens.
        code_b: Code of the same tokens.
        pairs: Latents of a and of b. Memory grows with the firings of the a latents, counted once for each pair.

    Returns:
        Numbers from 0 to 1, float64; NaN where neither latent ever fires.

    Raises:
        ValueError: the codes do not have the same number of tokens.
    """
    both = _firing_together(code_a, code_b, pairs)
    together = torch.bincount(both.pair, minlength=len(pairs)).double()
    return together / (code_a.firing[pairs[:, 0]] + code_b.firing[pairs[:, 1]] - together)


@torch.no_grad()
def magnitude_slopes(code_a: SparseCode, code_b: SparseCode, pairs: Pairs) -> Slopes:
    """Return for each pair the slope through the origin of a's magnitudes on b's, over the tokens where both fire.

    The slope minimises the sum of (a - slope * b)^2. Noise in b pulls it towards 0. So latent a is the stronger one
    only if the slope of b on a agrees; the product of both slopes is 1 for proportional magnitudes and less otherwise.
    Magnitudes are comparable between SAEs whose decoder rows have equal norms, as saved SAEs have.

    Args:
        code_a: Code of any batch of tokens.
        code_b: Code of the same tokens.
        pairs: Latents of a and of b. Memory grows as in `firing_jaccard`.

    Raises:
        ValueError: the codes do not have the same number of tokens.
    """
    sums = magnitude_sums(code_a, code_b, pairs)
    return Slopes(sums.ab / sums.bb, sums.tokens)


@torch.no_grad()
def magnitude_sums(code_a: SparseCode, code_b: SparseCode, pairs: Pairs) -> MagnitudeSums:
    """Return for each pair the sums from which slopes between its magnitudes follow, over the tokens where both fire.

    Arguments and errors are the same as for `magnitude_slopes`.
    """
    both = _firing_together(code_a, code_b, pairs)
    zeros = both.a.new_zeros(len(pairs))
    ab, aa, bb = (
        zeros.index_add(0, both.pair, product) for product in (both.a * both.b, both.a.square(), both.b.square())
    )
    return MagnitudeSums(ab, aa, bb, torch.bincount(both.pair, minlength=len(pairs)))


class _Together(NamedTuple):
    """Every token on which both latents of a pair fire."""

    pair: Int[Tensor, " joint"]
    """Index of the pair, ascending."""
    a: Float[Tensor, " joint"]
    """Magnitude of the pair's first latent, float64."""
    b: Float[Tensor, " joint"]


class _Firings(NamedTuple):
    """A code's nonzero entries ordered by latent, and by token within each latent."""

    keys: Int[Tensor, " firings"]
    """latent * batch + token, ascending."""
    tokens: Int[Tensor, " firings"]
    values: Float[Tensor, " firings"]
    """float64."""


def _firing_together(code_a: SparseCode, code_b: SparseCode, pairs: Pairs) -> _Together:
    batch = code_a.support.batch
    if batch != code_b.support.batch:
        raise ValueError(
            f"The codes have {batch} and {code_b.support.batch} tokens, but firing is compared token by token. "
            "Encode the same tokens with both SAEs."
        )
    a, b = _firings(code_a), _firings(code_b)
    per_latent = code_a.firing
    per_pair = per_latent[pairs[:, 0]]
    pair = torch.arange(len(pairs), device=pairs.device).repeat_interleave(per_pair)
    # Each pair visits all firings of its a latent, which are contiguous, and looks their tokens up among b's.
    shift = (per_latent.cumsum(0) - per_latent)[pairs[:, 0]] - (per_pair.cumsum(0) - per_pair)
    visited = shift[pair] + torch.arange(len(pair), device=pairs.device)
    sought = pairs[:, 1][pair] * batch + a.tokens[visited]
    # A sentinel key after all others, so that the search always finds an index.
    keys_b = torch.cat([b.keys, b.keys.new_tensor([torch.iinfo(torch.int64).max])])
    place = torch.searchsorted(keys_b, sought)
    found = keys_b[place] == sought
    return _Together(pair[found], a.values[visited[found]], b.values[place[found]])


def _firings(code: SparseCode) -> _Firings:
    fires = code.nonzero()
    keys, order = (fires.support.indices.long() * fires.support.batch + fires.support.tokens).sort()
    return _Firings(keys, fires.support.tokens[order], fires.values[order].double())


def _rows_at_once(d_b: int) -> int:
    return max(1, COSINES_AT_ONCE // max(1, d_b))


def _unit(rows: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
    """Return the rows in float32 with norm 1; rows of zeros stay zero."""
    rows = rows.float()
    norm = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(norm > 0, norm, 1)
