"""Records: the numbers of one SAE or control under their published names, in types that JSON has."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from penstock.evaluation.arms import is_control
from penstock.evaluation.evaluate import Evaluation
from penstock.evaluation.statistics import FEW_SEQUENCES, interval, resampled_metrics
from penstock.json_files import COUNT, NUMBER, TEXT, Kind, check_keys, list_of, object_of, or_null
from penstock.metrics import count_quantile, metrics_of

WITH_INTERVALS = ("l0", "delta_ce", "loss_recovered", "fvu", "reconstruction_bias")
"""The metrics that come with a 95% bootstrap interval."""

DENSE = 0.1
"""A latent that fires on more than this share of the tokens is dense."""

SILENT = 0.05
"""Firing latents per token below which an SAE counts as silent."""

MISSED_TARGET = 0.25
"""Relative distance of the held-out L0 from its target that draws a warning."""

DENSITY_EDGES = [round(-6 + 0.25 * step, 2) for step in range(25)]
"""Edges of the density histogram, in log10 of the share of tokens."""


_TEXTS = ("recipe", "model", "site", "lr_rule", "curve", "of", "kind")
_COUNTS = ("d_in", "d_sae", "seed", "steps", "batch_size", "tokens_trained", "unique_tokens", "resampled")
_NUMBERS = (
    *("sparsity_coef", "paper_lambda", "target_l0", "lr", "coef_frozen_at_step", "passes", "train_seconds"),
    *("tokens_evaluated", "sequences_evaluated", "l0", "l0_median", "l0_p5", "l0_p95", "l1", "mse", "fvu", "cosine"),
    *("reconstruction_bias", "ce_clean", "ce_spliced", "ce_zero", "ce_mean", "delta_ce", "kl", "loss_recovered"),
    *("loss_recovered_mean", "frac_alive", "frac_dense"),
)
_KINDS: Mapping[str, Kind] = {
    "name": TEXT,
    "arch": TEXT,
    **dict.fromkeys(_TEXTS, or_null(TEXT)),
    **dict.fromkeys(_COUNTS, or_null(COUNT)),
    **dict.fromkeys(_NUMBERS, or_null(NUMBER)),
    "intervals": or_null(object_of(or_null(list_of(NUMBER, 2)))),
    "density_histogram": or_null(
        Kind(
            "a histogram of log10_edges, counts and never_fired",
            lambda value: (
                isinstance(value, dict)
                and list_of(NUMBER).fits(value.get("log10_edges"))
                and list_of(COUNT).fits(value.get("counts"))
                and len(value["log10_edges"]) == len(value["counts"]) + 1
                and COUNT.fits(value.get("never_fired"))
            ),
        )
    ),
    "warnings": or_null(list_of(TEXT)),
    "coef_path": or_null(list_of(or_null(NUMBER))),
}
"""What the values of a record must be, by key."""


def record_of(evaluation: Evaluation, weights: Tensor, about: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
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
    tokens = int(total["tokens"])
    density = evaluation.firing.double() / tokens
    warnings = list(about.get("warnings") or [])
    if metrics["mse"] is None or metrics["delta_ce"] is None:
        warnings.append("Some reconstructions or losses are not finite; metrics made of them are undefined.")
    for metric, ablation in (("loss_recovered", "zero"), ("loss_recovered_mean", "mean")):
        if metrics[metric] is None and metrics["delta_ce"] is not None:
            warnings.append(
                f"{metric} is undefined: {ablation} ablation at this site does not cost the model anything."
            )
    # Controls are as bad as they are meant to be.
    if not is_control(about):
        if metrics["l0"] is not None and metrics["l0"] < SILENT:
            warnings.append(
                f"silent: the mean L0 is {metrics['l0']:.3g} on held-out tokens. The penalty has closed its latents: "
                "lower sparsity_coef, or give a target_l0. An SAE without the auxiliary task ends like this by design."
            )
        elif metrics["fvu"] is not None and metrics["fvu"] > 1:
            warnings.append(
                f"worse than nothing: FVU is {metrics['fvu']:.3g}, and the mean activation alone has 1. Training has "
                "failed, most likely at too high a learning rate. Ignore the other numbers of this SAE."
            )
        warnings += _doubts(metrics, resampled, len(evaluation.sums["tokens"]), vocab_size)
    target = about.get("target_l0")
    if target is not None and metrics["l0"] is not None and abs(metrics["l0"] / target - 1) > MISSED_TARGET:
        warnings.append(
            f"target missed on held-out tokens: the mean L0 there is {metrics['l0']:.3g}, the target was {target:g}. "
            "Training on more different tokens (tokens, cache_tokens) brings the two together."
        )
    return {
        **about,
        "tokens_evaluated": tokens,
        "sequences_evaluated": len(evaluation.sums["tokens"]),
        **metrics,
        "l0_median": count_quantile(evaluation.l0_histogram, 0.5),
        "l0_p5": count_quantile(evaluation.l0_histogram, 0.05),
        "l0_p95": count_quantile(evaluation.l0_histogram, 0.95),
        "frac_alive": _or_none((evaluation.firing > 0).double().mean().item()),
        "frac_dense": _or_none((density > DENSE).double().mean().item()),
        "intervals": {name: interval(resampled[name]) for name in WITH_INTERVALS},
        "density_histogram": _density_histogram(density),
        "warnings": warnings,
    }


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


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Check a record that was read from a file; keys that a record of `record_of` does not have may be anything.

    Args:
        record: The record.
        where: Its file and line, for the error.

    Raises:
        FileError: a value has the wrong type, or a name is missing.
    """
    check_keys(record, _KINDS, where, needed=("name", "arch"))


def _density_histogram(density: Tensor) -> dict[str, Any]:
    fired = density[density > 0].log10().clamp(DENSITY_EDGES[0], DENSITY_EDGES[-1])
    counts, _ = torch.histogram(fired, torch.tensor(DENSITY_EDGES, dtype=fired.dtype, device=fired.device))
    return {
        "log10_edges": DENSITY_EDGES,
        "counts": [int(count) for count in counts],
        "never_fired": int((density == 0).sum()),
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
