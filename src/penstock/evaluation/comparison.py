"""The ratio of firing latents that two arms need for the same quality; in the paper, "half as many".

Along an arm log L0 is close to linear in log(1 - loss recovered). So it is interpolated in these coordinates, for each
seed separately, and averaged over seeds. Nothing is extrapolated: arms are compared over the quality that both reach.
Seeds that both arms have are pairs. If there are two or more pairs, only these are used, and the bootstrap draws pairs
as well as sequences, so that intervals cover both.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from penstock.evaluation.arms import Arm
from penstock.evaluation.sae_record import SAERecord
from penstock.evaluation.statistics import LEVEL, few_groups_factor, resampled_metrics
from penstock.metrics import metrics_of
from penstock.saes import baseline_of

GRID = 5
"""The number of qualities, evenly spaced in log(1 - loss recovered), at which arms are compared."""

Floats = np.ndarray


class Point(NamedTuple):
    """One SAE: its metrics on all tokens (first entry) and on every bootstrap resample (the others)."""

    arm: Arm
    site: str
    seed: int
    """The seed; 0 if the SAE's metadata does not have one."""
    l0: Floats
    loss_recovered: Floats


def point_of(record: SAERecord, sums: Mapping[str, Tensor], weights: Tensor) -> Point:
    """The point of an SAE.

    Args:
        record: The SAE's record.
        sums: The SAE's sums [sequences] (see `Evaluation.sums`).
        weights: Bootstrap weights [resamples, sequences]; the same for all points that are compared.
    """
    on_all = metrics_of({name: value.sum() for name, value in sums.items()})
    resampled = resampled_metrics(sums, weights)
    metrics = {name: torch.cat([on_all[name].view(1), resampled[name]]).numpy() for name in ("l0", "loss_recovered")}
    return Point(Arm.of(record), record["site"], record["seed"] or 0, **metrics)


def compare(points: Sequence[Point], *, baseline: str | None = None) -> list[dict[str, Any]]:
    """Compare every arm with every arm of the baseline, at each site.

    Args:
        points: The SAEs of a run.
        baseline: The architecture to compare with; default: see `penstock.saes.baseline_of`.

    Returns:
        An entry for each pair of arms, with these keys: site, the arms' names, the `ratio` of L0 arm / baseline as a
        geometric mean over the quality that both reach, and its bootstrap `interval`. `by_seed` has the ratios of pairs
        of seeds if there are two or more; the interval then covers seeds, too. `overlap` is the common range of loss
        recovered, and `grid` has the single values. If the arms cannot be compared, `ratio` is None and `reason` is
        set.
    """
    baseline = baseline or baseline_of(point.arm.arch for point in points)
    by_site: dict[str, dict[Arm, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        by_site[point.site][point.arm].append(point)
    return [
        {
            "site": site,
            **one.role_keys("arm"),
            **other.role_keys("baseline"),
            **l0_ratio(arms[one], arms[other]),
        }
        for site, arms in by_site.items()
        for one in arms
        for other in arms
        if one.arch != baseline and other.arch == baseline
    ]


def l0_ratio(arm: Sequence[Point], baseline: Sequence[Point]) -> dict[str, Any]:
    """Return the ratio of L0, arm / baseline, at equal loss recovered: an entry of `compare` without the arms' names.

    Args:
        arm: Points of the arm at one site; the points of a seed lie on one curve.
        baseline: Points of the baseline at the same site, with the same resamples.
    """
    empty = {"metric": "loss_recovered", "ratio": None, "interval": None, "by_seed": [], "overlap": None, "grid": []}
    curves = _curves(arm), _curves(baseline)
    if min(len(curve.l0) for curves_of_arm in curves for curve in curves_of_arm) < 2:
        return empty | {"reason": "each arm needs at least two SAEs a seed that fire and recover a part of the loss."}
    every = [*curves[0], *curves[1]]
    low = max(curve.quality[:, 0].min() for curve in every)
    high = min(curve.quality[:, 0].max() for curve in every)
    if not low < high:
        return empty | {
            "reason": "the arms reach no loss recovered in common; train more values of L0, so that they do."
        }
    grid = np.linspace(low, high, GRID)
    seeds = sorted({curve.seed for curve in curves[0]} & {curve.seed for curve in curves[1]})
    paired = len(seeds) > 1
    if paired:
        curves = [curve for curve in curves[0] if curve.seed in seeds], [c for c in curves[1] if c.seed in seeds]
    # [seeds, grid, 1 + resamples], the seeds of both arms in the same order.
    by_seed = [np.stack([curve.at(grid) for curve in curves_of_arm]) for curves_of_arm in curves]
    log_l0 = [values.mean(axis=0) for values in by_seed]
    log_ratio = log_l0[0] - log_l0[1]
    if paired:
        log_ratio[:, 1:] = _seeds_drawn(by_seed[0][:, :, 1:] - by_seed[1][:, :, 1:])
    return {
        "metric": "loss_recovered",
        "ratio": float(np.exp(log_ratio[:, 0].mean())),
        "interval": _interval(np.exp(log_ratio.mean(axis=0))[1:]),
        "by_seed": [
            {"seed": seed, "ratio": float(np.exp((arm_l0 - baseline_l0)[:, 0].mean()))}
            for seed, arm_l0, baseline_l0 in zip(seeds, *by_seed, strict=True)
        ]
        if paired
        else [],
        "overlap": [1 - float(np.exp(-low)), 1 - float(np.exp(-high))],
        "grid": [
            {
                "value": 1 - float(np.exp(-quality)),
                "l0_arm": float(np.exp(log_l0[0][index, 0])),
                "l0_baseline": float(np.exp(log_l0[1][index, 0])),
                "ratio": float(np.exp(log_ratio[index, 0])),
                "interval": _interval(np.exp(log_ratio[index, 1:])),
            }
            for index, quality in enumerate(grid)
        ],
        "reason": None,
    }


def _seeds_drawn(log_ratio: Floats) -> Floats:
    """Return the mean over seeds, drawn with replacement for each resample; the input is [seeds, grid, resamples].

    What drawing seeds changes is widened by `few_groups_factor`: two or three seeds say little about all others. The
    resamples of sequences come widened already (`resampled_metrics`).
    """
    seeds, _, resamples = log_ratio.shape
    drawn = np.random.default_rng(0).integers(seeds, size=(seeds, 1, resamples))
    every = log_ratio.mean(axis=0)
    return every + few_groups_factor(seeds) * (np.take_along_axis(log_ratio, drawn, axis=0).mean(axis=0) - every)


class _Curve(NamedTuple):
    """One seed of an arm, sorted by quality = -log(1 - loss recovered); [points, 1 + resamples]."""

    seed: int
    quality: Floats
    l0: Floats

    def at(self, grid: Floats) -> Floats:
        """log L0 at the given qualities [grid, 1 + resamples], linear between (and beyond) the points."""
        result = np.empty((len(grid), self.quality.shape[1]))
        for column in range(self.quality.shape[1]):
            order = np.argsort(self.quality[:, column])
            quality, log_l0 = self.quality[order, column], np.log(self.l0[order, column])
            # A resample may end just short of the grid, which was laid out for all tokens: go on straight.
            segment = np.clip(np.searchsorted(quality, grid) - 1, 0, len(quality) - 2)
            run = np.maximum(quality[segment + 1] - quality[segment], 1e-12)
            slope = (log_l0[segment + 1] - log_l0[segment]) / run
            result[:, column] = log_l0[segment] + slope * (grid - quality[segment])
        return result


def _curves(points: Sequence[Point]) -> list[_Curve]:
    by_seed: dict[int, list[Point]] = defaultdict(list)
    for point in points:
        lost = 1 - point.loss_recovered
        if np.isfinite(lost).all() and (lost > 0).all() and (point.l0 > 0).all():
            by_seed[point.seed].append(point)
    curves = []
    for seed, seed_points in sorted(by_seed.items()):
        ordered = sorted(seed_points, key=lambda point: point.loss_recovered[0])
        quality = np.stack([-np.log(1 - point.loss_recovered) for point in ordered])
        curves.append(_Curve(seed, quality, np.stack([point.l0 for point in ordered])))
    # One SAE is no curve: a seed of which only one is left must not cost the others their comparison.
    whole = [curve for curve in curves if len(curve.l0) > 1]
    return whole or curves or [_Curve(0, np.empty((0, 1)), np.empty((0, 1)))]


def _interval(values: Floats) -> list[float]:
    tail = (1 - LEVEL) / 2
    return [float(bound) for bound in np.quantile(values, [tail, 1 - tail])]


def warnings_of(records: Sequence[SAERecord], comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings about a sweep as a whole: arms that cannot be compared, and different numbers of training tokens."""
    found = [
        f"{c['site']}: {c['arm']} and {c['baseline']} cannot be compared: {c['reason']}"
        for c in comparisons
        if c["reason"]
    ]
    lengths = {record["tokens_trained"] for record in records if record.get("tokens_trained")}
    if len(lengths) > 1:
        found.append("SAEs were trained on different numbers of tokens; compare only those with the same.")
    return found
