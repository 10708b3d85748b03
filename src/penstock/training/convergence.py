"""Whether a run was long enough: what its loss tells about training twice as long."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

WINDOWS = 8
"""Windows of equal length in which the loss is averaged."""

STILL_IMPROVING = 0.03
"""Relative fall of the loss with each doubling of the steps that draws a warning."""


class Trend(NamedTuple):
    """Relative fall of the loss when the steps double, and the standard error of that number."""

    fall: float
    error: float

    @property
    def still_improving(self) -> bool:
        """Whether the fall is above `STILL_IMPROVING`, and too large to be the noise of batches."""
        return self.fall > STILL_IMPROVING and self.fall > 3 * self.error


class LossTrend:
    """Averages the loss in windows before the learning rate decays.

    The decay lowers the loss of every run at once, however long it was, so it says nothing about convergence. Before
    it, a loss falls about linearly in the logarithm of the step. The windows cover the second half of the steps before
    the decay, after warm-ups and after the return of the rate from the last resampling.

    While a coefficient is steered, the loss changes with it. So the terms are kept apart, and all windows are
    compared at one coefficient: that of the last window.
    """

    def __init__(self, start: int, end: int) -> None:
        """
        Args:
            start: First step that counts.
            end: The first step after those that count.
        """
        self.start = start
        self.end = end
        # Sums of the steps, the penalty, all other terms and the coefficient, and the number of steps.
        self.sums = [[0.0] * 5 for _ in range(WINDOWS)]

    def add(self, step: int, terms: Mapping[str, float], coef: float) -> None:
        """Take in the terms of a step's loss, `sparsity` before its coefficient `coef` and `loss` their sum."""
        if not self.start <= step < self.end:
            return
        penalty = terms.get("sparsity", 0.0)
        window = self.sums[(step - self.start) * WINDOWS // (self.end - self.start)]
        for at, value in enumerate((step, penalty, terms["loss"] - coef * penalty, coef, 1)):
            window[at] += value

    def trend(self) -> Trend | None:
        """What a doubling of the steps brings, by least squares; None where there are too few steps to tell."""
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
        """What a checkpoint needs to go on, ready for JSON."""
        return self.sums

    def load_state(self, state: Any) -> None:
        """Go on from `state()`."""
        self.sums = [list(window) for window in state]
