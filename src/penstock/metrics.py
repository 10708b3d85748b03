"""The metrics of an SAE, computed from sums over tokens that can be merged.

Every metric is a ratio of sums over all evaluated tokens, never a mean of per-batch ratios. The sums are kept in
float64 for each sequence. The same function computes the metrics of all tokens and of each bootstrap resample.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from penstock.shapes import Acts, PerInput
from penstock.sparse import SparseCode

Sums = Mapping[str, Tensor]
"""Named sums, all of one shape: [sequences], [resamples], or scalars."""

MIN_CE_GAP = 1e-3
"""The smallest increase of CE by an ablation, in nats per token, for which loss recovered is defined."""


def token_terms(x: Acts, x_hat: Acts, mean: PerInput) -> dict[str, Float[Tensor, " batch"]]:
    """Return the terms that each token adds to the sums about reconstruction, in float64.

    Args:
        x: Activations of the language model, in raw units.
        x_hat: Their reconstructions.
        mean: The mean activation over all evaluated tokens.
    """
    x, x_hat = x.double(), x_hat.double()
    dot = (x * x_hat).sum(dim=1)
    norms = x.norm(dim=1) * x_hat.norm(dim=1)
    return {
        "tokens": torch.ones_like(dot),
        "square_error": (x - x_hat).square().sum(dim=1),
        "square_deviation": (x - mean.double()).square().sum(dim=1),
        "square_x_hat": x_hat.square().sum(dim=1),
        "dot": dot,
        # A zero vector has no direction, so it counts as orthogonal to everything.
        "cosine": torch.where(norms > 0, dot / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0),
    }


def code_terms(acts: SparseCode, decoder_norm: Float[Tensor, " d_sae"]) -> dict[str, Float[Tensor, " batch"]]:
    """Return the terms that each token adds to the sums about the code: L0, and L1 weighted by decoder norms."""
    sizes = acts.values.double().abs() * decoder_norm.double()[acts.support.indices]
    return {
        "l0": acts.l0.double(),
        "l1": sizes.new_zeros(acts.support.batch).index_add_(0, acts.support.tokens, sizes),
    }


def metrics_of(sums: Sums) -> dict[str, Tensor]:
    """Compute the metrics from summed terms. Undefined metrics are NaN.

    Returns the metrics by their names in a record, with CE and KL in nats per predicted token:
        l0: mean number of firing latents. l1: mean of sum_j acts_j * |W_dec_j|.
        mse: E|x - x_hat|^2, summed over d_in. fvu: mse / E|x - E x|^2.
        cosine: mean cosine of x and x_hat.
        reconstruction_bias: gamma = E|x_hat|^2 / E[x . x_hat] (paper, equation 10); below 1 is shrinkage.
        ce_clean, ce_spliced, ce_zero, ce_mean: CE of the model itself, with reconstructions, zeros and means at the
        site. delta_ce: ce_spliced - ce_clean. kl: divergence of the spliced from the clean predictions.
        loss_recovered: 1 - delta_ce / (ce_zero - ce_clean) (paper, equation 5); loss_recovered_mean: the
        same with mean ablation. Both are undefined if the ablation raises CE by less than MIN_CE_GAP.
    """
    tokens, predicted = sums["tokens"], sums["ce_tokens"]
    ce = {name: sums[name] / predicted for name in ("ce_clean", "ce_spliced", "ce_zero", "ce_mean")}
    delta_ce = ce["ce_spliced"] - ce["ce_clean"]
    return {
        "l0": sums["l0"] / tokens,
        "l1": sums["l1"] / tokens,
        "mse": sums["square_error"] / tokens,
        "fvu": _ratio(sums["square_error"], sums["square_deviation"]),
        "cosine": sums["cosine"] / tokens,
        "reconstruction_bias": _ratio(sums["square_x_hat"], sums["dot"]),
        **ce,
        "delta_ce": delta_ce,
        "kl": sums["kl"] / predicted,
        "loss_recovered": _share_recovered(delta_ce, ce["ce_zero"] - ce["ce_clean"]),
        "loss_recovered_mean": _share_recovered(delta_ce, ce["ce_mean"] - ce["ce_clean"]),
    }


def count_quantile(histogram: Int[Tensor, " values"], share: float) -> int:
    """Return the `share` quantile of counts: the smallest count that at least this share of the entries do not exceed.

    Args:
        histogram: The number of entries with the value 0, 1, 2, ...
        share: The share of the entries, between 0 and 1.
    """
    cumulative = histogram.cumsum(0).double()
    return int((cumulative < share * cumulative[-1]).sum())


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, torch.nan)


def _share_recovered(delta: Tensor, gap: Tensor) -> Tensor:
    return torch.where(gap > MIN_CE_GAP, 1 - delta / gap, torch.nan)
