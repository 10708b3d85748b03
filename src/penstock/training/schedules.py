"""Factors on the learning rate and the sparsity coefficient, and the controller that holds a target L0."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate's and the coefficient's course over a run of `num_steps`; all lengths in steps."""

    num_steps: int
    warmup: int
    decay: int
    sparsity_warmup: int
    dips: tuple[int, ...] = ()
    """Steps at which dead latents were resampled."""
    dip: float = 0.1
    """Factor right after resampling."""
    dip_length: int = 1000

    def lr_factor(self, step: int) -> float:
        """Linear warm-up, flat, linear decay, times a cosine return from the last dip (paper, appendix D)."""
        factor = 1.0
        if step < self.warmup:
            factor = (step + 1) / self.warmup
        elif step >= self.num_steps - self.decay:
            factor = (self.num_steps - step) / self.decay
        since = min((step - at for at in self.dips if step >= at), default=self.dip_length)
        if since < self.dip_length:
            rise = (1 - math.cos(math.pi * since / self.dip_length)) / 2
            factor *= self.dip + (1 - self.dip) * rise
        return factor

    def sparsity_factor(self, step: int) -> float:
        """Linear warm-up of the sparsity coefficient."""
        return min(1.0, (step + 1) / self.sparsity_warmup) if self.sparsity_warmup else 1.0


class L0Controller:
    """Steers the sparsity coefficient until the mean L0 holds a target, then freezes it.

    An integral controller on log(L0 / target): L0 falls roughly as a power of the coefficient, so in logs
    the loop is linear. It begins after the first tenth of the run, when the dictionary's first fall in L0
    (from half of all latents) is over, and it is frozen once the smoothed L0 has stayed within `TOLERANCE` of
    the target for `hold_steps`, at the earliest after 9 tenths of the run: until then L0 still moves, as the
    SAE learns and again as the learning rate falls.
    """

    TOLERANCE = 0.03
    """Relative distance of the smoothed L0 that counts as held."""

    def __init__(self, target_l0: float, initial_coef: float, *, num_steps: int) -> None:
        """
        Args:
            target_l0: The mean L0 to reach.
            initial_coef: Where the steering starts.
            num_steps: Steps of the whole run; the gain and the smoothing follow from it.
        """
        self.target_l0 = target_l0
        self.coef = initial_coef
        self.gain = 20.0 / num_steps
        self.smoothing = min(1.0, 100 / num_steps)
        self.steer_from = num_steps // 10
        self.freeze_from = num_steps * 9 // 10
        self.hold_steps = max(1, num_steps // 100)
        self.smoothed = float("nan")
        self.held = 0
        self.frozen_at: int | None = None

    def update(self, step: int, l0: float) -> None:
        """Take in the mean L0 of the batch of `step`."""
        if math.isnan(self.smoothed):
            self.smoothed = l0
        self.smoothed += self.smoothing * (l0 - self.smoothed)
        if self.frozen_at is not None or step < self.steer_from:
            return
        distance = math.log(max(self.smoothed, 1e-3) / self.target_l0)
        self.coef *= math.exp(self.gain * max(-1.0, min(1.0, distance)))
        self.held = self.held + 1 if abs(distance) < self.TOLERANCE else 0
        if step >= self.freeze_from and self.held >= self.hold_steps:
            self.frozen_at = step

    def state(self) -> dict[str, float | int | None]:
        """What a checkpoint needs to go on."""
        names = ("coef", "smoothed", "held", "frozen_at")
        return {name: getattr(self, name) for name in names}

    def load_state(self, state: dict[str, float | int | None]) -> None:
        """Go on from `state()`."""
        for name, value in state.items():
            setattr(self, name, value)
