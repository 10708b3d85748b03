"""Differences between arms in what their dictionaries hold, each with its 95% bootstrap interval.

A difference is shown if its interval excludes 0. Of many differences that are none, one in twenty is shown by chance.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from penstock.evaluation.statistics import interval
from penstock.studies.concepts import KINDS, Kinds

Floats = np.ndarray

DIFFERENCE = "difference"
"""The `kind` of a record that is a difference."""


class SeedPair(NamedTuple):
    """Two dictionaries of one seed, by name."""

    arm: str
    baseline: str
    seed: int


def share_differences(
    judged: Mapping[str, Kinds], pairs: Sequence[SeedPair], *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """The difference of the share of each kind of concept, arm - baseline: the mean over pairs, seed by seed.

    Every dictionary's latents are drawn anew in each resample, once for all pairs that it is in; with two seeds or
    more, seeds are drawn as well. Two or three seeds say little about all: the interval is then rather too narrow.

    Args:
        judged: The kinds of the latents of each dictionary.
        pairs: Which are compared; one without a latent that was judged is left out.
        resamples: How often latents are drawn, at least 1.
        seed: Of the draws.

    Returns:
        For each of KINDS its `name`, the number of `pairs`, the `difference`, `low`, `high`, whether it is `shown`, and
        where there are two seeds or more the differences `by_seed`. Nothing if no pair is left.
    """
    kept = [pair for pair in pairs if min(len(judged[name].latents) for name in (pair.arm, pair.baseline)) > 0]
    if not kept:
        return []
    generator = np.random.default_rng(seed)
    names = dict.fromkeys(name for pair in kept for name in (pair.arm, pair.baseline))
    shares = {name: _shares(judged[name], resamples, generator) for name in names}
    by_seed: dict[int, list[Floats]] = defaultdict(list)
    for pair in kept:
        by_seed[pair.seed].append(shares[pair.arm] - shares[pair.baseline])
    seeds = sorted(by_seed)
    # [seeds, 1 + resamples, kinds]
    differences = np.stack([np.mean(by_seed[one], axis=0) for one in seeds])
    drawn = generator.integers(len(seeds), size=(len(seeds), resamples, 1))
    resampled = np.take_along_axis(differences[:, 1:], drawn, axis=0).mean(axis=0)
    return [
        {
            **_difference(name, differences[:, 0, kind].mean(), resampled[:, kind]),
            "pairs": len(kept),
            "by_seed": [
                {"seed": one, "difference": float(value)}
                for one, value in zip(seeds, differences[:, 0, kind], strict=True)
                if len(seeds) > 1
            ],
        }
        for kind, name in enumerate(KINDS)
    ]


def _shares(judged: Kinds, resamples: int, generator: np.random.Generator) -> Floats:
    """The share of each kind among all latents judged, and in every resample of them: [1 + resamples, kinds]."""
    counts = torch.bincount(judged.kind, minlength=len(KINDS)).numpy()
    total = counts.sum()
    # How many latents of each kind are in a resample is multinomial; the latents need not be drawn.
    drawn = generator.multinomial(total, counts / total, size=resamples)
    return np.concatenate([counts[None], drawn]) / total


AGREEMENT = {
    "mean_max_cosine": ("mean_max_cosine_a_to_b", "mean_max_cosine_b_to_a"),
    "matched_share": ("matched_share_a", "matched_share_b"),
    "mutual_jaccard": ("mutual_jaccard",),
}
"""What is compared between arms and seeds: the mean of these numbers of `agreement`."""


def agreement_differences(
    arms: Sequence[Mapping[str, Any]],
    seeds: Sequence[Mapping[str, Any]],
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """How much less, or more, two arms agree than two seeds of one arm: the mean over pairs, arms - seeds.

    The bootstrap is over pairs, those of arms and those of seeds each on their own. Pairs that share an SAE depend on
    each other, which it does not know: the interval is then rather too narrow.

    Args:
        arms: The `agreement` of each pair of two arms.
        seeds: That of each pair of two seeds.
        resamples: How often pairs are drawn, at least 1.
        seed: Of the draws.

    Returns:
        For each of AGREEMENT its `name`, the number of pairs of arms and of seeds, the `difference`, `low`, `high`, and
        whether it is `shown`. One pair says nothing of the spread of pairs: with less than two of either `low` and
        `high` are None, with none at all there is no difference and no entry.
    """
    generator = np.random.default_rng(seed)
    found = []
    for name, keys in AGREEMENT.items():
        of_arms, of_seeds = _means(arms, keys), _means(seeds, keys)
        if min(len(of_arms), len(of_seeds)) == 0:
            continue
        enough = min(len(of_arms), len(of_seeds)) > 1
        drawn = [generator.choice(values, size=(resamples, len(values))).mean(axis=1) for values in (of_arms, of_seeds)]
        resampled = drawn[0] - drawn[1] if enough else np.full(resamples, np.nan)
        found.append(
            {
                **_difference(name, of_arms.mean() - of_seeds.mean(), resampled),
                "pairs_of_arms": len(of_arms),
                "pairs_of_seeds": len(of_seeds),
            }
        )
    return found


def _means(agreements: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Floats:
    """The mean of these numbers for each pair in which all are defined."""
    values = np.array([[agreement[key] for key in keys] for agreement in agreements], dtype=np.float64)
    means = values.reshape(-1, len(keys)).mean(axis=1)
    return means[np.isfinite(means)]


def _difference(name: str, on_all: float, resampled: Floats) -> dict[str, Any]:
    low, high = interval(torch.from_numpy(resampled)) or (None, None)
    return {
        "kind": DIFFERENCE,
        "name": name,
        "difference": float(on_all),
        "low": low,
        "high": high,
        "shown": low is not None and high is not None and not low <= 0 <= high,
    }
