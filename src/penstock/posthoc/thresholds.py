"""Pruning at inference: drops the low activations of a trained SAE.

The Gated SAE paper (https://arxiv.org/abs/2404.16014, section 7) suggests that this closes part of the baseline's gap,
but does not test it. A latent keeps only activations strictly above its threshold. The reconstruction may be scaled
about b_dec to compensate:

    kept = acts * 1[acts > threshold]        x_hat = b_dec + scale * kept W_dec

Thresholds and scale are fitted on training activations. A threshold is one number for all latents
(`threshold_for_l0`), a quantile of each latent's own activations, or the minimiser of the squared error plus a price
for each activation kept.
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
"""Value that each latent's activation must exceed, in units of the code; float64, on the SAE's device. 0 keeps all."""

TOKENS_AT_ONCE = 4096
"""Activations encoded at a time when only their sums are kept."""


def pruned(name: str, site: str, sae: SAE, thresholds: Thresholds, scale: float = 1.0) -> Candidate:
    """Return a candidate that drops an SAE's low activations.

    With thresholds of 0 and a scale of 1 it equals the SAE bit for bit.

    Args:
        name: Name of the candidate.
        site: Site of the SAE.
        sae: SAE on raw activations.
        thresholds: One threshold for each latent.
        scale: Factor on the reconstruction's distance from b_dec (see `best_scale`); the code is not scaled.

    Raises:
        ValueError: the number of thresholds is not the number of latents.
    """
    _check_count(thresholds, sae.d_sae)
    whole = Candidate.of(name, site, sae)
    return whole._replace(
        encode=lambda x: prune(whole.encode(x), thresholds),
        # Scaling the values instead of x_hat about b_dec gives exactly x_hat at a scale of 1.
        decode=lambda acts: whole.decode(SparseCode(acts.support, scale * acts.values)),
    )


def prune(code: SparseCode, thresholds: Thresholds) -> SparseCode:
    """Return the code with only the activations above their latent's threshold. A NaN is kept.

    Raises:
        ValueError: the number of thresholds is not the number of latents.
    """
    support = code.support
    _check_count(thresholds, support.d_sae)
    limits = thresholds[support.indices]
    # A threshold of 0 keeps stored zeros, because sums over other pairs would round differently.
    keep = ~((code.values <= limits) & (limits > 0))
    kept_before = torch.cat([support.offsets.new_zeros(1), keep.cumsum(0)])
    return SparseCode(Support(kept_before[support.offsets], support.indices[keep], support.d_sae), code.values[keep])


def global_threshold(sae: SAE, threshold: float) -> Thresholds:
    """Return one threshold for all latents; it means the same for each if decoder rows have unit norm, as when saved.

    Raises:
        ValueError: the threshold is negative.
    """
    if not threshold >= 0:
        raise ValueError(f"The threshold is {threshold}, but it must be at least 0. Give 0 to keep all activations.")
    return torch.full((sae.d_sae,), threshold, dtype=torch.float64, device=sae.W_dec.device)


def threshold_for_l0(code: SparseCode, l0: float) -> float:
    """Return the common threshold that gives a code this mean L0, exact to within half a firing in the whole code.

    The threshold is an activation of the code, or 0 to keep all. Activations equal to it are all dropped, so ties leave
    fewer than requested.

    Args:
        code: Code of training activations.
        l0: Mean number of firing latents per token, from 0 to the code's own.

    Raises:
        ValueError: l0 is negative or above the code's own.
    """
    acts = code.values[code.values > 0].detach()
    tokens = code.support.batch
    if not 0 <= l0 * tokens < len(acts) + 0.5:
        raise ValueError(
            f"l0 is {l0}, but the code has {len(acts) / max(1, tokens):.4g} firing latents per token, and pruning can "
            "only lower that. Choose an l0 between 0 and that number."
        )
    keep = round(l0 * tokens)
    if keep == len(acts):
        return 0.0
    return float(acts.kthvalue(len(acts) - keep).values)


def quantile_thresholds(code: SparseCode, quantile: float) -> Thresholds:
    """Return a quantile of each latent's own positive activations, interpolated linearly (numpy's default).

    Args:
        code: Code of training activations.
        quantile: Above 0 and below 1; approximately the share of firings to drop. A latent that fires once loses that
            firing at any quantile.

    Returns:
        One threshold for each latent, 0 if it never fires.

    Raises:
        ValueError: the quantile is out of range.
    """
    if not 0 < quantile < 1:
        raise ValueError(
            f"quantile is {quantile}, but the share of a latent's firings to drop must be above 0 and below 1. To drop "
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
    """Return for each latent the threshold with the smallest sum of squared error and `price` for each firing kept.

    Dropping only acts_j from a token's code changes |x - x_hat|^2 by

        2 acts_j <W_dec_j, x - x_hat> + acts_j^2 |W_dec_j|^2

    Each latent's best threshold for the sum of these changes is found exactly. Changes by several latents on one token
    add up only if their decoder rows are orthogonal, so the result for all latents together is an approximation.

    Args:
        sae: SAE on the same activations.
        x: Training activations [batch, d_in].
        price: Price of one firing in units of squared error, finite; 0 drops only firings that increase the error.

    Returns:
        One threshold for each latent: the smallest of its best thresholds, which is one of its activations or 0. It is
        0 if the latent never fires.

    Raises:
        ValueError: the price is negative or infinite.
    """
    if not 0 <= price < torch.inf:
        raise ValueError(
            f"price is {price}, but the squared error that one firing is worth must be finite and at least 0. To drop "
            "all firings, use global_threshold with infinity."
        )
    code = sae.encode_sparse(x)
    firings = _firings_by_latent(code)
    acts = code.values[firings.pairs].double()
    start = firings.starts[firings.latents]
    error = torch.cat([acts.new_zeros(1), _error_increase(sae, x, code)[firings.pairs].cumsum(0)])
    dropped = torch.arange(1, len(acts) + 1, device=acts.device) - start
    # Cost of dropping a latent's firings up to and including each of them, compared with keeping all.
    cost = error[1:] - error[start] - price * dropped
    # A threshold drops all equal activations, so only the last of a tie can be the last one dropped.
    same = (acts.diff() == 0) & (firings.latents.diff() == 0)
    cost[:-1].masked_fill_(same, torch.inf)
    none_dropped = cost.new_zeros(code.support.d_sae)
    least = none_dropped.scatter_reduce(0, firings.latents, cost, "amin")
    best = (cost == least[firings.latents]) & (cost < 0)
    return none_dropped.scatter_reduce(0, firings.latents[best], acts[best], "amin", include_self=False)


@torch.no_grad()
def best_scale(sae: SAE, x: Acts, thresholds: Thresholds) -> float:
    """Return the scale of the pruned reconstruction about b_dec with the least squared error: <z, x - b_dec> / <z, z>.

    Here z = kept W_dec, and the products are summed over all tokens.

    Args:
        sae: SAE on the same activations.
        x: Training activations [batch, d_in].
        thresholds: One threshold for each latent.

    Returns:
        The scale; 1 if pruning leaves nothing to scale.

    Raises:
        ValueError: the number of thresholds is not the number of latents.
    """
    b_dec = sae.b_dec.double()
    along, square = b_dec.new_zeros(()), b_dec.new_zeros(())
    for part in x.split(TOKENS_AT_ONCE):
        z = sae.decode_sparse(prune(sae.encode_sparse(part), thresholds)).double() - b_dec
        along += (z * (part.double() - b_dec)).sum()
        square += z.square().sum()
    return float(along / square) if square > 0 else 1.0


class _Firings(NamedTuple):
    """A code's positive activations ordered by latent, ascending within each latent."""

    pairs: Int[Tensor, " firings"]
    """Index of each activation in the code."""
    latents: Int[Tensor, " firings"]
    """Latent of each activation, int64."""
    starts: Int[Tensor, " d_sae"]
    """Index of each latent's first activation."""
    counts: Int[Tensor, " d_sae"]
    """Number of activations of each latent."""


def _firings_by_latent(code: SparseCode) -> _Firings:
    pairs = code.values.argsort()
    pairs = pairs[code.values[pairs] > 0]
    # A stable sort keeps a latent's firings in the order of their activations.
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
    """Return the increase in a token's squared error from dropping only this activation, for each one; float64."""
    residual = x - sae.decode_sparse(code)
    W_dec = sae.W_dec.detach().contiguous()
    (along,) = kernels_on(code.support, W_dec).value_gradients(code.support, [residual], W_dec)
    acts = code.values.double()
    return 2 * acts * along.double() + acts.square() * W_dec.double().square().sum(dim=1)[code.support.indices]
