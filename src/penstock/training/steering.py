"""Steering the sparsity coefficient towards a target L0, from the end of the warm-up to the last step."""

import math
from typing import Any

GAIN = 40.0
"""The relative change of the coefficient per step, for a unit relative distance of L0 and a unit learning rate."""

LARGEST_GAIN = 0.4
"""The largest gain of one step. With a larger one, L0 would oscillate around the target."""

RANGE = 100.0
"""The largest factor between the coefficient and its initial value. Far below the initial value, the penalty has no
effect; far above, it closes every latent. Beyond these limits the coefficient would wind up and return too late."""

SMOOTHING = 0.2
"""The weight of the newest batch in the smoothed L0, which is only reported: its lag would make the loop oscillate."""

STEER_FROM = 0.05
"""The share of the run before steering starts. During it, L0 falls from half of all latents."""

PARTS = 10
"""The number of parts of the run for which the mean coefficient is recorded."""


LOWEST_L0 = 1e-3
"""A lower mean L0 counts as this, so that logarithms stay finite."""

COMPARISONS = 100
"""Number of times that a short run compares L0 on training and validation tokens."""

LONGEST_INTERVAL = 10
"""Most steps between two of these comparisons."""

NEWEST_COMPARISON = 0.05
"""Weight of the newest comparison in their mean."""


class L0Controller:
    """Adjusts the sparsity coefficient after every step, until the last one, to keep the mean L0 at a target.

    It is an integral controller on log(L0 / target). L0 falls roughly as a power of the coefficient, so the loop is
    linear in logarithms. The controller has to be fast: L0 rises while the learning rate decays, by 23 to 34% for ReLU
    (see docs/training.md). But it must not be faster than the SAE, or the coefficient winds up while L0 cannot follow.

    An SAE reacts in proportion to its learning rate. So the gain is `GAIN` * sqrt(highest rate * current rate). The
    root is a compromise for the decay: with the current rate alone, L0 drifts off in the last steps, and with a
    constant gain the coefficient winds up. Gain and root were chosen by trial on a few runs (see benchmarks/steering/).

    More latents fire on text that is not trained on. The ratio of L0 on validation tokens to L0 on training tokens is
    measured now and then, and the target is kept in the middle: training tokens end at target / sqrt(ratio), validation
    tokens at target * sqrt(ratio). Both are within 5% of the target up to a ratio of 1.1.
    """

    def __init__(self, target_l0: float, initial_coef: float, *, num_steps: int, steer_from: int, lr: float) -> None:
        """
        Args:
            target_l0: The mean L0 to reach.
            initial_coef: The coefficient from which steering starts.
            num_steps: The number of steps of the whole run.
            steer_from: The step at which steering starts.
            lr: The learning rate before warm-up, decay and dips.
        """
        self.target_l0 = target_l0
        self.coef = initial_coef
        self.lowest, self.highest = initial_coef / RANGE, initial_coef * RANGE
        self.num_steps = num_steps
        self.steer_from = steer_from
        self.lr = lr
        self.smoothed = float("nan")
        # Mean logarithm of L0 on validation tokens over L0 on training tokens, and number of comparisons.
        self.log_ratio, self.comparisons = 0.0, 0
        # Sum of the applied coefficients and number of steps, for each part of the run.
        self.sums = [[0.0, 0] for _ in range(PARTS)]

    def compares(self, step: int) -> bool:
        """Return whether L0 is to be compared at a step."""
        interval = max(1, min(LONGEST_INTERVAL, self.num_steps // COMPARISONS))
        return step >= self.steer_from and step % interval == 0

    def compare(self, trained: float, validation: float) -> None:
        """Take in the mean L0 of a training batch and of a validation batch, both before the same step."""
        self.comparisons += 1
        found = math.log(max(validation, LOWEST_L0) / max(trained, LOWEST_L0))
        self.log_ratio += max(NEWEST_COMPARISON, 1 / self.comparisons) * (found - self.log_ratio)

    def update(self, step: int, l0: float, *, lr: float, applied: float) -> None:
        """Adjust the coefficient after a step.

        Args:
            step: The step's number.
            l0: The mean L0 of its batch of training tokens.
            lr: The learning rate of the step.
            applied: The coefficient of the step, including warm-up.
        """
        part = self.sums[step * PARTS // self.num_steps]
        part[0] += applied
        part[1] += 1
        if math.isnan(self.smoothed):
            self.smoothed = l0
        self.smoothed += SMOOTHING * (l0 - self.smoothed)
        if step < self.steer_from:
            return
        distance = math.log(max(l0, LOWEST_L0) / self.target_l0) + self.log_ratio / 2
        gain = min(LARGEST_GAIN, GAIN * math.sqrt(self.lr * lr))
        moved = self.coef * math.exp(gain * max(-1.0, min(1.0, distance)))
        self.coef = max(self.lowest, min(self.highest, moved))

    @property
    def validation_ratio(self) -> float:
        """The mean L0 on validation tokens divided by that on training tokens; 1 if they were not compared."""
        return math.exp(self.log_ratio)

    @property
    def steered_l0(self) -> float:
        """The smoothed mean L0, between that on training tokens and that on validation tokens."""
        return self.smoothed * math.sqrt(self.validation_ratio)

    @property
    def path(self) -> list[float | None]:
        """The mean applied coefficient in each tenth of the run; None for a tenth without steps."""
        return [total / steps if steps else None for total, steps in self.sums]

    @property
    def trained_coef(self) -> float:
        """The mean applied coefficient in the last tenth of the run, which is recorded for the trained SAE."""
        return next((coef for coef in reversed(self.path) if coef is not None), self.coef)

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, in types that JSON has."""
        names = ("coef", "smoothed", "sums", "log_ratio", "comparisons")
        return {name: getattr(self, name) for name in names}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `state()`."""
        self.coef, self.smoothed = float(state["coef"]), float(state["smoothed"])
        self.sums = [list(part) for part in state["sums"]]
        self.log_ratio, self.comparisons = float(state["log_ratio"]), int(state["comparisons"])
