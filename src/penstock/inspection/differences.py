"""Differences between the dictionaries of two arms, with 95% bootstrap intervals.

A difference counts as shown if its interval excludes 0. If no true difference exists, about one in twenty is shown by
chance, and more with few seeds or groups.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch

from penstock.evaluation.comparison import Floats
from penstock.evaluation.statistics import few_groups_factor, interval
from penstock.inspection.concept_rules import KINDS, Kinds

DIFFERENCE = "difference"
"""Value of `kind` in a record that holds a difference."""


class SeedPair(NamedTuple):
    """Names of two dictionaries with the same seed."""

    arm: str
    baseline: str
    seed: int


def share_differences(
    judged: Mapping[str, Kinds], pairs: Sequence[SeedPair], *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Return the difference in the share of each kind of concept, arm - baseline: the mean over pairs, seed by seed.

    Each resample draws every dictionary's latents again, once for all its pairs. With two or more seeds, seeds are
    drawn as well. With only two or three seeds the interval is too narrow.

    Args:
        judged: Kinds of the latents of each dictionary.
        pairs: Pairs to compare; a pair is left out if one side has no judged latent.
        resamples: Number of bootstrap resamples, at least 1.
        seed: Seed of the resamples.

    Returns:
        For each of KINDS its `name`, the number of `pairs`, the `difference`, `low`, `high`, whether it is `shown`, and
        with two or more seeds the differences `by_seed`. Empty if no pair is left.
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
    """Return the share of each kind among all judged latents, then in every resample: [1 + resamples, kinds]."""
    counts = torch.bincount(judged.kind, minlength=len(KINDS)).numpy()
    total = counts.sum()
    # The numbers of latents of each kind in a resample are multinomial, so latents need not be drawn one by one.
    drawn = generator.multinomial(total, counts / total, size=resamples)
    return np.concatenate([counts[None], drawn]) / total


AGREEMENT = {
    "mean_max_cosine": ("mean_max_cosine_a_to_b", "mean_max_cosine_b_to_a"),
    "matched_share": ("matched_share_a", "matched_share_b"),
    "mutual_jaccard": ("mutual_jaccard",),
}
"""Numbers of `agreement` whose means are compared between arms and seeds."""


def agreement_differences(
    arms: Sequence[Mapping[str, Any]],
    seeds: Sequence[Mapping[str, Any]],
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return how much more two arms agree than two seeds of one arm: the mean difference over pairs of arms.

    Each pair of arms is compared with the mean over the pairs of seeds that contain one of its two SAEs. These have
    nearly the same L0, on which agreement depends. A pair of arms without such seeds is left out.

    The bootstrap draws groups of pairs of arms. Different groups share no SAE, neither directly nor through their pairs
    of seeds; usually a group is one L0 with all its seeds. The bootstrap ignores whatever else groups share, such as
    the initial weights of a seed. Because a bootstrap over few groups is too narrow, its distribution is widened about
    the difference by `few_groups_factor`, to the coverage of Student's t interval.

    Args:
        arms: `agreement` of each pair of two arms, and the names of its SAEs, `a` and `b`.
        seeds: The same for each pair of two seeds. Pass the seeds of one arm to compare with that arm only.
        resamples: Number of bootstrap resamples, at least 1.
        seed: Seed of the resamples.

    Returns:
        For each of AGREEMENT its `name`, the numbers of `pairs_of_arms`, of `pairs_of_seeds` compared with them and of
        `groups`, the `difference`, `low`, `high`, and whether it is `shown`. `low` and `high` are None with fewer than
        two groups. A number without any pair has no entry.
    """
    generator = np.random.default_rng(seed)
    found = []
    for name, keys in AGREEMENT.items():
        paired = _beside_seeds(_means(arms, keys), _means(seeds, keys))
        if not paired:
            continue
        group = _groups([set(one.pair).union(*one.beside) for one in paired])
        sums, pairs = np.bincount(group, weights=[one.difference for one in paired]), np.bincount(group)
        drawn = generator.integers(len(pairs), size=(resamples, len(pairs)))
        difference, resampled = sums.sum() / len(paired), None
        if len(pairs) > 1:
            resampled = sums[drawn].sum(axis=1) / pairs[drawn].sum(axis=1)
            resampled = difference + few_groups_factor(len(pairs)) * (resampled - difference)
        found.append(
            {
                **_difference(name, difference, resampled),
                "pairs_of_arms": len(paired),
                "pairs_of_seeds": len({pair for one in paired for pair in one.beside}),
                "groups": len(pairs),
            }
        )
    return found


_Names = tuple[str, str]


class _Paired(NamedTuple):
    """A pair of arms and the pairs of seeds compared with it."""

    pair: _Names
    beside: list[_Names]
    difference: float


def _means(agreements: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[_Names, float]:
    """Return the mean of these numbers for each pair of SAEs that defines all of them."""
    values = {(one["a"], one["b"]): [one[key] for key in keys] for one in agreements}
    return {pair: fmean(numbers) for pair, numbers in values.items() if None not in numbers}


def _beside_seeds(arms: Mapping[_Names, float], seeds: Mapping[_Names, float]) -> list[_Paired]:
    """Return each pair of arms, the pairs of seeds that contain one of its SAEs, and the difference from their mean."""
    found = []
    for pair, value in arms.items():
        beside = [one for one in seeds if set(pair) & set(one)]
        if beside:
            found.append(_Paired(pair, beside, value - fmean(seeds[one] for one in beside)))
    return found


def _groups(sets: Sequence[set[str]]) -> list[int]:
    """Return each set's group number; sets that share a name, directly or through other sets, form one group."""
    groups: list[set[str]] = []
    for names in sets:
        linked = [group for group in groups if group & names]
        groups = [group for group in groups if not group & names] + [names.union(*linked)]
    return [next(number for number, group in enumerate(groups) if names <= group) for names in sets]


def _difference(name: str, on_all: float, resampled: Floats | None) -> dict[str, Any]:
    bounds = None if resampled is None else interval(torch.from_numpy(resampled))
    low, high = bounds or (None, None)
    return {
        "kind": DIFFERENCE,
        "name": name,
        "difference": float(on_all),
        "low": low,
        "high": high,
        "shown": low is not None and high is not None and not low <= 0 <= high,
    }
