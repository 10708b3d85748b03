"""Bootstrap over sequences: tokens of a sequence depend on each other, sequences hardly do."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from penstock.metrics import metrics_of

LEVEL = 0.95
"""Coverage of every interval."""


def resample_weights(num_sequences: int, resamples: int, seed: int) -> Float[Tensor, "resamples sequences"]:
    """How often each sequence is drawn in each bootstrap resample, float64.

    The same weights must serve all candidates of an evaluation: differences between them are then paired.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_sequences, (resamples, num_sequences), generator=generator)
    weights = torch.zeros(resamples, num_sequences, dtype=torch.float64)
    return weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def resampled_metrics(
    sums: Mapping[str, Float[Tensor, " sequences"]], weights: Float[Tensor, "resamples sequences"]
) -> dict[str, Float[Tensor, " resamples"]]:
    """Every metric in every resample."""
    return metrics_of({name: weights @ value for name, value in sums.items()})


def interval(values: Float[Tensor, " resamples"]) -> tuple[float, float] | None:
    """The central interval of the bootstrap distribution; None where a tenth of it is undefined."""
    defined = values[~values.isnan()]
    if len(defined) < 0.9 * len(values):
        return None
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(defined, torch.tensor([tail, 1 - tail], dtype=defined.dtype)).tolist()
    return low, high
