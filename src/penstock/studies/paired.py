"""Differences between arms, seed by seed, with an interval that says whether there is one."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from penstock.evaluation.statistics import LEVEL, resample_weights


class Difference(NamedTuple):
    """The mean of paired differences."""

    mean: float
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""
    shown: bool
    """False where the interval contains 0: no difference shown."""


def paired_bootstrap(differences: Float[Tensor, " pairs"], resamples: int, seed: int) -> Difference:
    """The mean of paired differences with its percentile bootstrap interval; pairs are drawn, not tokens.

    With few pairs the interval is too narrow. It excludes 0 whenever all differences have one sign, which chance
    does in 2^(1 - pairs) of all cases: one in two for two seeds, one in four for three, one in sixteen for five.

    Args:
        differences: One for each seed: the arm's number minus the baseline's.
        resamples: Bootstrap resamples, e.g. 1000.
        seed: Of the resampling.

    Returns:
        Interval of coverage LEVEL (in the limit of many pairs).

    Raises:
        ValueError: fewer than two differences, or one that is not finite.
    """
    pairs = len(differences)
    if pairs < 2:
        raise ValueError(
            f"An interval needs differences of at least 2 seeds, but there are {pairs}. Train more seeds of both arms."
        )
    if not differences.isfinite().all():
        raise ValueError(
            f"Differences must be finite, but they are {differences.tolist()}. Leave out the pairs of which one number "
            "is undefined."
        )
    differences = differences.double().cpu()
    means = resample_weights(pairs, resamples, seed) @ differences / pairs
    tail = (1 - LEVEL) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Difference(differences.mean().item(), low, high, shown=not low <= 0 <= high)
