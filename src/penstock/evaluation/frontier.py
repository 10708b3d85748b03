"""An arm's own SAEs as a frontier, and ratios between SAEs with their paired intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from penstock.evaluation.comparison import Floats, Point
from penstock.evaluation.statistics import LEVEL


class Frontier(NamedTuple):
    """An arm's own SAEs as a straight line of log(1 - loss recovered) over log L0."""

    slope: float
    low: float
    """Smallest L0 of the arm."""
    high: float


def log_lost(point: Point) -> Floats:
    """log(1 - loss recovered); NaN where nothing is lost."""
    lost = 1 - point.loss_recovered
    return np.log(np.where(lost > 0, lost, np.nan))


def frontier_of(arm: Sequence[Point]) -> Frontier:
    """The frontier of an arm by least squares; its slope is 0 if there is only one SAE."""
    points = [point for point in arm if point.l0[0] > 0 and point.loss_recovered[0] < 1]
    l0s = [float(point.l0[0]) for point in points]
    if len(set(l0s)) < 2:
        return Frontier(0.0, min(l0s, default=math.inf), max(l0s, default=0.0))
    slope = np.polyfit(np.log(l0s), [log_lost(point)[0] for point in points], 1)[0]
    return Frontier(float(slope), min(l0s), max(l0s))


def ratio_with_interval(log_ratio: Floats) -> tuple[float | None, float | None, float | None]:
    """The ratio on all tokens and the ends of its interval over resamples; None where they are undefined."""
    if not np.isfinite(log_ratio[0]):
        return None, None, None
    ratio = float(np.exp(log_ratio[0]))
    if not np.isfinite(log_ratio).all():
        return ratio, None, None
    tail = (1 - LEVEL) / 2
    low, high = np.exp(np.quantile(log_ratio[1:], [tail, 1 - tail]))
    return ratio, float(low), float(high)
