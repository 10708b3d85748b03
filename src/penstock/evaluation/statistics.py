"""Bootstrap over sequences, because tokens of one sequence depend on each other and sequences hardly do."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from penstock.metrics import metrics_of

LEVEL = 0.95
"""Coverage of every interval."""

FEW_SEQUENCES = 10
"""Below this number of sequences, records warn that their intervals are unreliable."""


def resample_weights(num_sequences: int, resamples: int, seed: int) -> Float[Tensor, "resamples sequences"]:
    """Return how often each sequence is drawn in each bootstrap resample, float64.

    Use the same weights for all candidates of an evaluation, so that differences between them are paired.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_sequences, (resamples, num_sequences), generator=generator, device="cpu")
    weights = torch.zeros(resamples, num_sequences, dtype=torch.float64, device="cpu")
    return weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def resampled_metrics(
    sums: Mapping[str, Float[Tensor, " sequences"]], weights: Float[Tensor, "resamples sequences"]
) -> dict[str, Float[Tensor, " resamples"]]:
    """Return every metric in every resample, widened about its value on all sequences by `few_groups_factor`.

    Without widening, a "95%" interval from five sequences covers 84% (simulated as in
    tests/evaluation/test_statistics.py). From 100 sequences on, widening changes less than 2%. All values are NaN for a
    single sequence, because its spread is unknown.
    """
    sequences = weights.shape[1]
    drawn = metrics_of({name: weights @ value for name, value in sums.items()})
    if sequences < 2:
        return {name: torch.full_like(value, torch.nan) for name, value in drawn.items()}
    on_all = metrics_of({name: value.sum() for name, value in sums.items()})
    factor = few_groups_factor(sequences)
    return {name: on_all[name] + factor * (value - on_all[name]) for name, value in drawn.items()}


def few_groups_factor(groups: int) -> float:
    """Return the factor that widens a bootstrap over few groups to cover 95% (93% for two groups).

    It is sqrt(n / (n - 1)), because the spread of n groups about their own mean is too small, times the quantile of
    Student's t with n - 1 degrees of freedom over the normal quantile, because that spread is itself uncertain.

    Raises:
        ValueError: there are fewer than two groups.
    """
    from scipy import stats

    if groups < 2:
        raise ValueError(f"groups={groups} is out of range: it must be at least 2, because one group has no spread.")
    upper = (1 + LEVEL) / 2
    return float((groups / (groups - 1)) ** 0.5 * stats.t.ppf(upper, groups - 1) / stats.norm.ppf(upper))


def interval(values: Float[Tensor, " resamples"]) -> tuple[float, float] | None:
    """Return the central interval of the bootstrap distribution; None if a tenth of it is undefined."""
    defined = values[~values.isnan()]
    if len(defined) < 0.9 * len(values):
        return None
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(
        defined, torch.tensor([tail, 1 - tail], dtype=defined.dtype, device=defined.device)
    ).tolist()
    return low, high
