"""Pruning at inference: what is left of a trained SAE when its low activations are dropped.

The Gated SAE paper (https://arxiv.org/abs/2404.16014, section 7) supposes that this closes a part of the baseline's
gap, without trying it. A latent keeps the activations strictly above its threshold, and the reconstruction may be
scaled about b_dec to make up for what is gone:

    kept = acts * 1[acts > threshold]        x_hat = b_dec + scale * kept W_dec

Both are found on training activations. Thresholds are one number for all latents (`threshold_for_l0`), a quantile of
each latent's own activations, or what minimises the error at a price for each activation kept.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from penstock.evaluation.evaluate import Candidate
from penstock.kernels.dispatch import kernels_on
from penstock.saes import SAE
from penstock.shapes import Acts, PerLatent
from penstock.sparse import SparseCode, Support

Thresholds = PerLatent
"""What each latent's activation has to exceed, in units of the code; float64, on the device of the SAE. 0 keeps all."""

TOKENS_AT_ONCE = 4096
"""Activations encoded at a time where only their sums are kept."""


def pruned(name: str, site: str, sae: SAE, thresholds: Thresholds, scale: float = 1.0) -> Candidate:
    """An SAE without its low activations; thresholds of 0 and a scale of 1 give the SAE itself, bit for bit.

    Args:
        name: Of the candidate.
        site: Where the SAE belongs.
        sae: On raw activations.
        thresholds: One for each latent.
        scale: What the reconstruction's distance from b_dec is multiplied by (`best_scale`); the code is not scaled.

    Raises:
        ValueError: there are not as many thresholds as latents.
    """
    _check_count(thresholds, sae.d_sae)
    whole = Candidate.of(name, site, sae)
    return whole._replace(
        encode=lambda x: prune(whole.encode(x), thresholds),
        # Scaled values, rather than x_hat scaled about b_dec: the same number, but exactly x_hat at a scale of 1.
        decode=lambda acts: whole.decode(SparseCode(acts.support, scale * acts.values)),
    )


def prune(code: SparseCode, thresholds: Thresholds) -> SparseCode:
    """The code without the activations that are not above their latent's threshold. A NaN is kept.

    Raises:
        ValueError: there are not as many thresholds as latents.
    """
    support = code.support
    _check_count(thresholds, support.d_sae)
    limits = thresholds[support.indices]
    # A threshold of 0 leaves stored zeros where they are: with other pairs, sums are rounded otherwise.
    keep = ~((code.values <= limits) & (limits > 0))
    kept_before = torch.cat([support.offsets.new_zeros(1), keep.cumsum(0)])
    return SparseCode(Support(kept_before[support.offsets], support.indices[keep], support.d_sae), code.values[keep])


def global_threshold(sae: SAE, threshold: float) -> Thresholds:
    """The same threshold for all latents: comparable between them where decoder rows have unit norm, as in saved SAEs.

    Raises:
        ValueError: the threshold is negative.
    """
    if not threshold >= 0:
        raise ValueError(f"The threshold is {threshold}, but activations are not negative. Give 0 (keep all) or more.")
    return torch.full((sae.d_sae,), threshold, dtype=torch.float64, device=sae.W_dec.device)


def threshold_for_l0(code: SparseCode, l0: float) -> float:
    """The threshold for all latents at which a code has a mean L0: exact up to half a firing in the whole code.

    It is an activation of the code, or 0 if all are to be kept. Where several are equal to it they all go, and fewer
    than asked for are left.

    Args:
        code: Of training activations.
        l0: Mean number of firing latents a token, from 0 to the code's own.

    Raises:
        ValueError: l0 is negative or above the code's own.
    """
    acts = code.values[code.values > 0].detach()
    tokens = code.support.batch
    if not 0 <= l0 * tokens < len(acts) + 0.5:
        raise ValueError(
            f"l0 is {l0}, but the code has {len(acts) / max(1, tokens):.4g} firing latents a token, and pruning only "
            "makes that fewer. Choose an l0 between 0 and that number."
        )
    keep = round(l0 * tokens)
    if keep == len(acts):
        return 0.0
    return float(acts.kthvalue(len(acts) - keep).values)


def quantile_thresholds(code: SparseCode, quantile: float) -> Thresholds:
    """For each latent the quantile of its own positive activations, linear between neighbours (numpy's default).

    Args:
        code: Of training activations.
        quantile: Above 0 and below 1: about the share of firings that is dropped. A latent that fires once loses that
            firing at any quantile.

    Returns:
        One threshold for each latent, 0 where it never fires.

    Raises:
        ValueError: the quantile is out of range.
    """
    if not 0 < quantile < 1:
        raise ValueError(
            f"quantile is {quantile}, but it is the share of a latent's firings to drop: above 0 and below 1. To drop "
            "none or all, use global_threshold with 0 or infinity."
        )
    firings = _firings_by_latent(code)
    acts = code.values[firings.pairs].detach().double()
    fires = firings.counts > 0
    start, count = firings.starts[fires], firings.counts[fires]
    place = quantile * (count - 1).double()
    below = place.floor().long()
    lower, upper = acts[start + below], acts[start + (below + 1).minimum(count - 1)]
    thresholds = acts.new_zeros(code.support.d_sae)
    thresholds[fires] = lower + (place - below) * (upper - lower)
    return thresholds


@torch.no_grad()
def optimal_thresholds(sae: SAE, x: Acts, price: float) -> Thresholds:
    """For each latent the threshold with the least increase in squared error plus `price` for each firing kept.

    Dropping acts_j from a token's code, and nothing else, changes |x - x_hat|^2 by

        2 acts_j <W_dec_j, x - x_hat> + acts_j^2 |W_dec_j|^2

    Each latent's best threshold for the sum of these is found exactly, over all thresholds. What several latents drop
    on the same token adds up only where their rows are orthogonal, so the sum over latents is an approximation.

    Args:
        sae: On the same activations.
        x: Training activations [batch, d_in].
        price: In units of squared error, finite; 0 drops only what the reconstruction is better without.

    Returns:
        One threshold for each latent: the smallest of its best ones, which is one of its activations or 0. It is 0
        where a latent never fires.

    Raises:
        ValueError: the price is negative or infinite.
    """
    if not 0 <= price < torch.inf:
        raise ValueError(
            f"price is {price}, but it is the squared error that one firing is worth: 0 or more, and finite. To drop "
            "all firings, use global_threshold with infinity."
        )
    code = sae.encode_sparse(x)
    firings = _firings_by_latent(code)
    acts = code.values[firings.pairs].double()
    start = firings.starts[firings.latents]
    error = torch.cat([acts.new_zeros(1), _error_increase(sae, x, code)[firings.pairs].cumsum(0)])
    dropped = torch.arange(1, len(acts) + 1, device=acts.device) - start
    # Against keeping all, what it costs to drop a latent's firings up to and including each of them.
    cost = error[1:] - error[start] - price * dropped
    # Of equal activations a threshold drops all, so only the last of them ends what can be dropped.
    same = (acts.diff() == 0) & (firings.latents.diff() == 0)
    cost[:-1].masked_fill_(same, torch.inf)
    none_dropped = cost.new_zeros(code.support.d_sae)
    least = none_dropped.scatter_reduce(0, firings.latents, cost, "amin")
    best = (cost == least[firings.latents]) & (cost < 0)
    return none_dropped.scatter_reduce(0, firings.latents[best], acts[best], "amin", include_self=False)


@torch.no_grad()
def best_scale(sae: SAE, x: Acts, thresholds: Thresholds) -> float:
    """The scale of the pruned reconstruction about b_dec with the least squared error: <z, x - b_dec> / <z, z>.

    Here z = kept W_dec, and the products are summed over all tokens.

    Args:
        sae: On the same activations.
        x: Training activations [batch, d_in].
        thresholds: One for each latent.

    Returns:
        The scale; 1 if nothing is left to be scaled.

    Raises:
        ValueError: there are not as many thresholds as latents.
    """
    b_dec = sae.b_dec.double()
    along, square = b_dec.new_zeros(()), b_dec.new_zeros(())
    for part in x.split(TOKENS_AT_ONCE):
        z = sae.decode_sparse(prune(sae.encode_sparse(part), thresholds)).double() - b_dec
        along += (z * (part.double() - b_dec)).sum()
        square += z.square().sum()
    return float(along / square) if square > 0 else 1.0


class _Firings(NamedTuple):
    """A code's positive activations in the order of their latents, ascending within each."""

    pairs: Int[Tensor, " firings"]
    """Where each stands in the code."""
    latents: Int[Tensor, " firings"]
    """The latent of each, int64."""
    starts: Int[Tensor, " d_sae"]
    """Where each latent's begin."""
    counts: Int[Tensor, " d_sae"]
    """How many each latent has."""


def _firings_by_latent(code: SparseCode) -> _Firings:
    pairs = code.values.argsort()
    pairs = pairs[code.values[pairs] > 0]
    # Stable, so that a latent's firings stay in the order of their activations.
    pairs = pairs[code.support.indices[pairs].argsort(stable=True)]
    latents = code.support.indices[pairs].long()
    counts = torch.bincount(latents, minlength=code.support.d_sae)
    return _Firings(pairs, latents, counts.cumsum(0) - counts, counts)


def _check_count(thresholds: Float[Tensor, " thresholds"], d_sae: int) -> None:
    if len(thresholds) != d_sae:
        raise ValueError(
            f"There are {len(thresholds)} thresholds, but the SAE has {d_sae} latents. Find them with the same SAE."
        )


def _error_increase(sae: SAE, x: Acts, code: SparseCode) -> Float[Tensor, " pairs"]:
    """What dropping each activation, and nothing else, adds to its token's squared error; float64."""
    residual = x - sae.decode_sparse(code)
    W_dec = sae.W_dec.detach().contiguous()
    (along,) = kernels_on(code.support, W_dec).value_gradients(code.support, [residual], W_dec)
    acts = code.values.double()
    return 2 * acts * along.double() + acts.square() * W_dec.double().square().sum(dim=1)[code.support.indices]
