"""Estimates from the trend of the loss whether a run was long enough."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

WINDOWS = 8
"""The number of windows of equal length in which the loss is averaged."""

STILL_IMPROVING = 0.03
"""The relative fall of the loss per doubling of the steps above which a run is warned about."""


class Trend(NamedTuple):
    """The relative fall of the loss per doubling of the steps, and its standard error."""

    fall: float
    error: float

    @property
    def still_improving(self) -> bool:
        """Whether the fall is above `STILL_IMPROVING`, and above three standard errors."""
        return self.fall > STILL_IMPROVING and self.fall > 3 * self.error


class LossTrend:
    """The trend of the loss before the learning rate decays, from averages in windows.

    The decay lowers the loss of every run, whether it was long enough or not. Before the decay, the loss falls about
    linearly in the logarithm of the step. The windows cover the second half of the steps before the decay, but no
    warm-up, and no dip of the learning rate after resampling.

    A steered coefficient changes the loss. So the penalty is averaged separately, and all windows are compared at the
    coefficient of the last window.
    """

    def __init__(self, start: int, end: int) -> None:
        """
        Args:
            start: The first step of the first window.
            end: The step after the last window.
        """
        self.start = start
        self.end = end
        # For each window: sums of step, penalty, all other terms and coefficient, and the number of steps.
        self.sums = [[0.0] * 5 for _ in range(WINDOWS)]

    def add(self, step: int, terms: Mapping[str, float], coef: float) -> None:
        """Add the terms of a step's loss: their sum `loss`, and `sparsity` before its coefficient `coef`."""
        if not self.start <= step < self.end:
            return
        penalty = terms.get("sparsity", 0.0)
        window = self.sums[(step - self.start) * WINDOWS // (self.end - self.start)]
        for at, value in enumerate((step, penalty, terms["loss"] - coef * penalty, coef, 1)):
            window[at] += value

    def trend(self) -> Trend | None:
        """The fall of the loss per doubling of the steps, by least squares; None if there are too few steps."""
        means = [[value / window[4] for value in window[:4]] for window in self.sums if window[4]]
        if len(means) < WINDOWS:
            return None
        coef = means[-1][3]
        doublings = [math.log2(step + 1) for step, *_ in means]
        losses = [rest + coef * penalty for _, penalty, rest, _ in means]
        mean_x, mean_y = sum(doublings) / WINDOWS, sum(losses) / WINDOWS
        spread = sum((x - mean_x) ** 2 for x in doublings)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(doublings, losses, strict=True)) / spread
        left = [y - mean_y - slope * (x - mean_x) for x, y in zip(doublings, losses, strict=True)]
        error = math.sqrt(sum(value**2 for value in left) / (WINDOWS - 2) / spread)
        last = mean_y + slope * (doublings[-1] - mean_x)
        return Trend(-slope / last, error / last) if last > 0 else None

    def state(self) -> list[list[float]]:
        """The state for a checkpoint, in types that JSON has."""
        return self.sums

    def load_state(self, state: Any) -> None:
        """Restore the result of `state()`."""
        self.sums = [list(window) for window in state]
