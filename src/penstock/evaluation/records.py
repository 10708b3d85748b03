"""Records: the numbers of one SAE or control under their published names, in types that JSON has."""

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from penstock.evaluation.arms import is_control
from penstock.evaluation.evaluate import Evaluation
from penstock.evaluation.sae_record import AboutSAE, DensityHistogram, SAERecord
from penstock.evaluation.statistics import FEW_SEQUENCES, interval, resampled_metrics
from penstock.metrics import count_quantile, metrics_of

WITH_INTERVALS = ("l0", "delta_ce", "loss_recovered", "fvu", "reconstruction_bias")
"""The metrics that come with a 95% bootstrap interval."""

DENSE = 0.1
"""A latent that fires on more than this share of the tokens is dense."""

SILENT = 0.05
"""Firing latents per token below which an SAE counts as silent."""

MISSED_ON_HELD_OUT = 0.1
"""Relative distance of the held-out L0 from its target that draws a warning."""

DENSITY_EDGES = [round(-6 + 0.25 * step, 2) for step in range(25)]
"""Edges of the density histogram, in log10 of the share of tokens."""


def record_of(evaluation: Evaluation, weights: Tensor, about: AboutSAE, vocab_size: int) -> SAERecord:
    """Turn sums into a record.

    Args:
        evaluation: One candidate's sums.
        weights: Bootstrap weights [resamples, sequences] from `resample_weights`.
        about: Further keys of the record, which come first.
        vocab_size: The size of the language model's vocabulary, to warn if the model is worse than chance.

    Returns:
        Floats, counts and text. Undefined metrics are None.
    """
    total = {name: value.sum() for name, value in evaluation.sums.items()}
    metrics = {name: _or_none(value.item()) for name, value in metrics_of(total).items()}
    resampled = resampled_metrics(evaluation.sums, weights)
    tokens, sequences = int(total["tokens"]), len(evaluation.sums["tokens"])
    firing_shares = evaluation.firing.double() / tokens
    warnings = [*(about.get("warnings") or []), *_undefined(metrics)]
    # Controls are as bad as they are meant to be.
    if not is_control(about):
        warnings += [*_failures(metrics), *_doubts(metrics, resampled, sequences, vocab_size)]
    warnings += _missed_target(metrics["l0"], about.get("target_l0"))
    record = {
        **about,
        "tokens_evaluated": tokens,
        "sequences_evaluated": sequences,
        **metrics,
        "l0_median": count_quantile(evaluation.l0_histogram, 0.5),
        "l0_p5": count_quantile(evaluation.l0_histogram, 0.05),
        "l0_p95": count_quantile(evaluation.l0_histogram, 0.95),
        "frac_alive": _or_none((evaluation.firing > 0).double().mean().item()),
        "frac_dense": _or_none((firing_shares > DENSE).double().mean().item()),
        "intervals": {name: interval(resampled[name]) for name in WITH_INTERVALS},
        "density_histogram": _density_histogram(firing_shares),
        "warnings": warnings,
    }
    return cast("SAERecord", record)


def _undefined(metrics: Mapping[str, float | None]) -> list[str]:
    """Warnings that name the undefined metrics and the reasons."""
    warnings = []
    if metrics["mse"] is None or metrics["delta_ce"] is None:
        warnings.append("Some reconstructions or losses are not finite; metrics made of them are undefined.")
    for metric, ablation in (("loss_recovered", "zero"), ("loss_recovered_mean", "mean")):
        if metrics[metric] is None and metrics["delta_ce"] is not None:
            warnings.append(
                f"{metric} is undefined: {ablation} ablation at this site does not cost the model anything."
            )
    return warnings


def _failures(metrics: Mapping[str, float | None]) -> list[str]:
    """Whether the training of an SAE has failed, and how."""
    l0, fvu = metrics["l0"], metrics["fvu"]
    if l0 is not None and l0 < SILENT:
        return [
            f"silent: the mean L0 is {l0:.3g} on held-out tokens. The penalty has closed its latents: "
            "lower sparsity_coef, or give a target_l0. An SAE without the auxiliary task ends like this by design."
        ]
    if fvu is not None and fvu > 1:
        return [
            f"worse than nothing: FVU is {fvu:.3g}, and the mean activation alone has 1. Training has "
            "failed, most likely at too high a learning rate. Ignore the other numbers of this SAE."
        ]
    return []


def _missed_target(l0: float | None, target: float | None) -> list[str]:
    if target is None or l0 is None or abs(l0 / target - 1) <= MISSED_ON_HELD_OUT:
        return []
    return [
        f"target missed on held-out tokens: the mean L0 there is {l0:.3g}, the target was {target:g}. "
        "Training on more different tokens (tokens, cache_tokens) brings the two together."
    ]


def _doubts(
    metrics: Mapping[str, float | None], resampled: Mapping[str, Tensor], sequences: int, vocab_size: int
) -> list[str]:
    """Why the numbers of an SAE may mean little: few sequences, nothing to recover, a model that predicts nothing."""
    found = []
    if sequences < FEW_SEQUENCES:
        found.append(
            f"few sequences: the intervals rest on {sequences} held-out sequence{'s' * (sequences != 1)}. Evaluate on "
            "more tokens (eval_tokens)."
        )
    ce_clean, ce_zero = metrics["ce_clean"], metrics["ce_zero"]
    if ce_clean is not None and ce_clean > math.log(vocab_size):
        found.append(
            f"The language model predicts worse than chance: its cross-entropy is {ce_clean:.4g} nats, and "
            f"{math.log(vocab_size):.4g} is the log of its vocabulary. Check that model, tokenizer and text belong "
            "together; losses say nothing here."
        )
    bounds = interval(resampled["ce_zero"] - resampled["ce_clean"])
    if metrics["loss_recovered"] is not None and ce_clean is not None and ce_zero is not None and bounds:
        low, high = bounds
        if low <= 0:
            found.append(
                f"loss_recovered says nothing: zero ablation costs {ce_zero - ce_clean:.3g} nats, within its interval "
                f"of {low:.3g} to {high:.3g}. Read fvu and delta_ce, or evaluate on more tokens."
            )
    return found


def _density_histogram(firing_shares: Tensor) -> DensityHistogram:
    fired = firing_shares[firing_shares > 0].log10().clamp(DENSITY_EDGES[0], DENSITY_EDGES[-1])
    counts, _ = torch.histogram(fired, torch.tensor(DENSITY_EDGES, dtype=fired.dtype, device=fired.device))
    return {
        "log10_edges": DENSITY_EDGES,
        "counts": [int(count) for count in counts],
        "never_fired": int((firing_shares == 0).sum()),
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
