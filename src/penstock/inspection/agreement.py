"""Agreement of two SAEs of one site, as one set of numbers: directions, firing, magnitudes.

To judge the agreement of two arms, compare it with that of two seeds of one arm.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from penstock.inspection.matching import (
    MAX_HUNGARIAN,
    Slopes,
    best_cosines,
    firing_jaccard,
    hungarian,
    magnitude_slopes,
    mutual_of,
    random_null,
)
from penstock.saes import SAE
from penstock.shapes import Acts, PerLatent
from penstock.sparse import SparseCode, Support

MATCHED = 0.7
"""Mutual nearest neighbours with a larger cosine count as matched."""

NULL_SAMPLES = 1000
"""Number of random directions behind the null's mean and quantile."""


@torch.no_grad()
def agreement(sae_a: SAE, sae_b: SAE, x: Acts) -> dict[str, float | None]:
    """Compare two SAEs on the same activations; latents that do not fire on x are left out of both first.

    Magnitudes are in the activations' units: a latent's value times the norm of its decoder row.

    Args:
        sae_a: Any SAE.
        sae_b: Another SAE with the same d_in and dtype; its d_sae may differ.
        x: Held-out activations in the units that both SAEs take.

    Returns:
        Numbers for JSON, None where one is undefined (no pair, nothing unmatched). Each key with `a` also exists with
        `b`.
        tokens, latents_a (that fire on x), dead_a (that do not).
        mean_max_cosine_a_to_b: mean over a's latents of the best cosine in b; null_mean_a_to_b, null_q99_a_to_b: mean
        and 99% quantile of that best cosine for random directions.
        mutual_share_a: share of a's latents in a pair of mutual nearest neighbours (about half by chance for equal
        sizes); mutual_jaccard: mean Jaccard of these pairs' firing on x.
        hungarian_cosine: mean over the pairs of the best one-to-one matching; hungarian_share: of these pairs, the
        share with a cosine above MATCHED. Both None above MAX_HUNGARIAN latents.
        matched_share_a: share of a's latents that are matched (mutual nearest, cosine above MATCHED).
        slope_a_on_b_q25, _median, _q75: over matched pairs, the slope of a's magnitudes on b's where both fire;
        slope_pairs: number of matched pairs that fire together.
        density_matched_a, density_unmatched_a: mean share of the tokens that a latent fires on.
        magnitude_matched_a, magnitude_unmatched_a: mean over latents of the mean magnitude where they fire.

    Raises:
        ValueError: the SAEs differ in d_in, x does not suit them, or one has no latent that fires on x.
    """
    if sae_a.d_in != sae_b.d_in:
        raise ValueError(
            f"sae_a has d_in {sae_a.d_in} and sae_b {sae_b.d_in}, but directions are compared within one space. "
            "Choose SAEs of the same site; firing_jaccard compares codes across sites and models."
        )
    a, b = _living("sae_a", sae_a, x), _living("sae_b", sae_b, x)
    a_to_b, b_to_a = best_cosines(a.W_dec, b.W_dec), best_cosines(b.W_dec, a.W_dec)
    mutual = mutual_of(a_to_b, b_to_a)
    matched = mutual.pairs[mutual.cosine > MATCHED]
    return {
        "tokens": float(len(x)),
        "mean_max_cosine_a_to_b": _mean(a_to_b.cosine),
        "mean_max_cosine_b_to_a": _mean(b_to_a.cosine),
        **_null("a_to_b", sae_a.d_in, len(b.W_dec)),
        **_null("b_to_a", sae_a.d_in, len(a.W_dec)),
        "mutual_jaccard": _mean(firing_jaccard(a.code, b.code, mutual.pairs)),
        **_hungarian(a, b),
        **_slopes(a, b, matched),
        **_side("a", a, mutual.pairs[:, 0], matched[:, 0]),
        **_side("b", b, mutual.pairs[:, 1], matched[:, 1]),
    }


class _Living(NamedTuple):
    """The latents of an SAE that fire on some tokens, renumbered."""

    W_dec: Float[Tensor, "d_sae d_in"]
    code: SparseCode
    """Code of the tokens, in the activations' units."""
    density: PerLatent
    magnitude: PerLatent
    """Mean magnitude over the tokens on which the latent fires."""
    dead: int


def _living(name: str, sae: SAE, x: Acts) -> _Living:
    acts = sae.encode_sparse(x)
    # A latent with a zero decoder row adds nothing and has no direction, so it counts as never firing.
    code = SparseCode(acts.support, acts.values * sae.W_dec.norm(dim=1)[acts.support.indices]).nonzero()
    firing = code.firing
    alive = firing > 0
    if not alive.any():
        raise ValueError(
            f"No latent of {name} fires on the {len(x)} tokens of x, so there is nothing to compare. Pass more "
            "tokens, in the units that the SAE takes."
        )
    totals = torch.zeros(sae.d_sae, dtype=torch.float64, device=x.device)
    totals.index_add_(0, code.support.indices, code.values.double())
    renumbered = (alive.cumsum(0) - 1)[code.support.indices].int()
    support = Support(code.support.offsets, renumbered, int(alive.sum()))
    return _Living(
        W_dec=sae.W_dec[alive],
        code=SparseCode(support, code.values),
        density=firing[alive].double() / len(x),
        magnitude=totals[alive] / firing[alive],
        dead=int((~alive).sum()),
    )


def _null(way: str, d_in: int, latents: int) -> dict[str, float | None]:
    cosines = random_null(d_in, latents, NULL_SAMPLES, seed=0).double()
    return {f"null_mean_{way}": _mean(cosines), f"null_q99_{way}": cosines.quantile(0.99).item()}


def _hungarian(a: _Living, b: _Living) -> dict[str, float | None]:
    if max(len(a.W_dec), len(b.W_dec)) > MAX_HUNGARIAN:
        return {"hungarian_cosine": None, "hungarian_share": None}
    cosine = hungarian(a.W_dec, b.W_dec).cosine
    return {"hungarian_cosine": _mean(cosine), "hungarian_share": _mean(cosine > MATCHED)}


def _slopes(a: _Living, b: _Living, matched: Int[Tensor, "matches 2"]) -> dict[str, float | None]:
    a_on_b, b_on_a = magnitude_slopes(a.code, b.code, matched), magnitude_slopes(b.code, a.code, matched.flip(1))
    return {
        "slope_pairs": float((a_on_b.tokens > 0).sum()),
        **_quartiles("slope_a_on_b", a_on_b),
        **_quartiles("slope_b_on_a", b_on_a),
    }


def _quartiles(name: str, slopes: Slopes) -> dict[str, float | None]:
    defined = slopes.slope[slopes.tokens > 0]
    return {
        f"{name}_{which}": defined.quantile(share).item() if len(defined) else None
        for which, share in (("q25", 0.25), ("median", 0.5), ("q75", 0.75))
    }


def _side(
    side: str, dictionary: _Living, mutual: Int[Tensor, " mutual"], matched: Int[Tensor, " matches"]
) -> dict[str, float | None]:
    latents = len(dictionary.W_dec)
    is_matched = torch.zeros(latents, dtype=torch.bool, device=matched.device)
    is_matched[matched] = True
    return {
        f"latents_{side}": float(latents),
        f"dead_{side}": float(dictionary.dead),
        f"mutual_share_{side}": len(mutual) / latents,
        f"matched_share_{side}": len(matched) / latents,
        f"density_matched_{side}": _mean(dictionary.density[is_matched]),
        f"density_unmatched_{side}": _mean(dictionary.density[~is_matched]),
        f"magnitude_matched_{side}": _mean(dictionary.magnitude[is_matched]),
        f"magnitude_unmatched_{side}": _mean(dictionary.magnitude[~is_matched]),
    }


def _mean(values: Tensor) -> float | None:
    """Return the mean, or None for no values."""
    mean = values.double().mean().item()
    return mean if math.isfinite(mean) else None
