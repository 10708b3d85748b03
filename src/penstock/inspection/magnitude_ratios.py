"""Ratios of magnitudes between two dictionaries, for the latents that they share."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from penstock.evaluation.statistics import interval
from penstock.inspection.agreement import MATCHED
from penstock.inspection.matching import MagnitudeSums, Pairs, magnitude_sums, mutual_nearest
from penstock.saes import SAE
from penstock.shapes import Acts
from penstock.sparse import SparseCode


@torch.no_grad()
def matched_magnitudes(sae_a: SAE, sae_b: SAE, x: Acts) -> MagnitudeSums:
    """Sums over the tokens where both fire, for the latents that two SAEs share.

    Latents are matched as in `agreement`: among those that fire on x, mutual nearest with a cosine above MATCHED.
    Magnitudes are in the activations' units, a code times the norm of its decoder row.

    Args:
        sae_a: Any SAE.
        sae_b: Another of the same d_in and dtype.
        x: Held-out activations in the units that both SAEs take.
    """
    code_a, code_b = _in_units(sae_a, x), _in_units(sae_b, x)
    living_a, living_b = (code.firing.nonzero().flatten() for code in (code_a, code_b))
    if not len(living_a) or not len(living_b):
        return magnitude_sums(code_a, code_b, living_a.new_zeros(0, 2))
    mutual = mutual_nearest(sae_a.W_dec[living_a], sae_b.W_dec[living_b])
    of_a, of_b = mutual.pairs[mutual.cosine > MATCHED].T
    matched: Pairs = torch.stack([living_a[of_a], living_b[of_b]], dim=1)
    return magnitude_sums(code_a, code_b, matched)


def ratio_summary(sums: MagnitudeSums, min_together: int, resamples: int, seed: int) -> dict[str, Any]:
    """Statistics of the magnitude ratios b / a, over pairs of latents that fire together on `min_together` tokens.

    The bootstrap is over latents: its interval covers neither the choice of tokens nor the spread between seeds.

    Returns:
        `latents` (pairs of latents compared), `ratios` (4 digits), their `median` with its 95% bootstrap interval over
        latents (`low`, `high`), `q25`, `q75`, `share_below_1`, and the medians of the slopes (`slope_b_on_a_median`,
        `slope_a_on_b_median`). Statistics are None if no latents are compared.
    """
    enough = sums.tokens >= min_together
    ab, aa, bb = (values[enough] for values in (sums.ab, sums.aa, sums.bb))
    ratios = (bb / aa).sqrt()
    low, high = _median_interval(ratios, resamples, seed)
    return {
        "latents": len(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios.tolist()],
        "median": _quantile(ratios, 0.5),
        "low": low,
        "high": high,
        "q25": _quantile(ratios, 0.25),
        "q75": _quantile(ratios, 0.75),
        "share_below_1": (ratios < 1).double().mean().item() if len(ratios) else None,
        "slope_b_on_a_median": _quantile(ab / aa, 0.5),
        "slope_a_on_b_median": _quantile(ab / bb, 0.5),
    }


def _median_interval(
    values: Float[Tensor, " latents"], resamples: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    if not len(values):
        return None, None
    generator = np.random.default_rng(seed)
    # One resample at a time: all of them at once would not fit for a large dictionary.
    numbers = values.cpu().numpy()
    medians = [np.median(generator.choice(numbers, len(numbers))) for _ in range(resamples)]
    return interval(torch.tensor(medians, dtype=torch.float64, device="cpu")) or (None, None)


def _quantile(values: Float[Tensor, " latents"], share: float) -> float | None:
    return values.quantile(share).item() if len(values) else None


def _in_units(sae: SAE, x: Acts) -> SparseCode:
    acts = sae.encode_sparse(x)
    return SparseCode(acts.support, acts.values * sae.W_dec.norm(dim=1)[acts.support.indices]).nonzero()
