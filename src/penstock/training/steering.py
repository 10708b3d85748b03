"""Steering the sparsity coefficient towards a target L0, from the end of the warm-up to the last step."""

import math
from typing import Any

GAIN = 40.0
"""Relative change of the coefficient in a step, for a relative distance of L0 and a unit of learning rate."""

LARGEST_GAIN = 0.4
"""Limit on the gain of one step: above it, L0 would swing around the target."""

RANGE = 100.0
"""How far the coefficient may move from where it starts, as a factor. Further down it penalises nothing, further up it
closes every latent: beyond, it would only wind up, and come back too late when L0 changes."""

SMOOTHING = 0.2
"""Weight of the newest batch in the smoothed L0, which is only reported: in the loop, its lag would make L0 swing."""

STEER_FROM = 0.05
"""Share of the run before the steering starts, in which L0 falls from half of all latents."""

PARTS = 10
"""Parts of the run for which the mean coefficient is kept."""


class L0Controller:
    """Moves the coefficient until the mean L0 holds a target, and goes on to the last step.

    An integral controller on log(L0 / target): L0 falls roughly as a power of the coefficient, so in logs the loop is
    linear. It has to be fast, because less noise lets more latents fire: L0 rises while the learning rate decays, by 23
    to 34% for ReLU (docs/training.md). And it has to be no faster than the SAE, or the coefficient winds up while L0
    cannot follow. An SAE answers in proportion to its learning rate, so the gain is `GAIN` * sqrt(highest rate * rate
    now). The root is a compromise for the decay: with the rate itself L0 escapes in the last steps, with a constant
    gain the coefficient winds up. Gain and root were chosen by trial on a few runs (benchmarks/steering/).
    """

    def __init__(self, target_l0: float, initial_coef: float, *, num_steps: int, steer_from: int, lr: float) -> None:
        """
        Args:
            target_l0: The mean L0 to reach.
            initial_coef: Where the steering starts.
            num_steps: Steps of the whole run.
            steer_from: The first step of the steering.
            lr: The learning rate before its warm-up, decay and dips.
        """
        self.target_l0 = target_l0
        self.coef = initial_coef
        self.lowest, self.highest = initial_coef / RANGE, initial_coef * RANGE
        self.num_steps = num_steps
        self.steer_from = steer_from
        self.lr = lr
        self.smoothed = float("nan")
        # Sum of the applied coefficients and number of steps, for each part of the run.
        self.sums = [[0.0, 0] for _ in range(PARTS)]

    def update(self, step: int, l0: float, *, lr: float, applied: float) -> None:
        """Move the coefficient after a step.

        Args:
            step: The step's number.
            l0: The mean L0 of its batch.
            lr: The learning rate of the step.
            applied: The coefficient of the step, its warm-up included.
        """
        part = self.sums[step * PARTS // self.num_steps]
        part[0] += applied
        part[1] += 1
        if math.isnan(self.smoothed):
            self.smoothed = l0
        self.smoothed += SMOOTHING * (l0 - self.smoothed)
        if step < self.steer_from:
            return
        distance = math.log(max(l0, 1e-3) / self.target_l0)
        gain = min(LARGEST_GAIN, GAIN * math.sqrt(self.lr * lr))
        moved = self.coef * math.exp(gain * max(-1.0, min(1.0, distance)))
        self.coef = max(self.lowest, min(self.highest, moved))

    @property
    def path(self) -> list[float | None]:
        """The mean applied coefficient of each tenth of the run; None for a tenth without a step."""
        return [total / steps if steps else None for total, steps in self.sums]

    @property
    def trained_coef(self) -> float:
        """The mean coefficient that was applied in the last tenth of the run: what the trained SAE goes back to."""
        return next((coef for coef in reversed(self.path) if coef is not None), self.coef)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to go on, ready for JSON."""
        return {"coef": self.coef, "smoothed": self.smoothed, "sums": self.sums}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.coef, self.smoothed = float(state["coef"]), float(state["smoothed"])
        self.sums = [list(part) for part in state["sums"]]
