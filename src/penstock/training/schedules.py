"""Schedules of the learning rate and the sparsity coefficient."""

import math
from dataclasses import dataclass

from penstock.training.settings import ResolvedRun, ResolvedSAE


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The schedules of the learning rate and the sparsity coefficient; all lengths are in steps."""

    num_steps: int
    warmup: int
    decay: int
    sparsity_warmup: int
    dips: tuple[int, ...] = ()
    """Steps at which dead latents are resampled."""
    dip: float = 0.1
    """Factor on the learning rate right after resampling."""
    dip_length: int = 1000
    """Steps until the learning rate has recovered."""

    @classmethod
    def of(cls, run: ResolvedRun, sae: ResolvedSAE) -> "Schedule":
        """The schedule of one SAE of a run."""
        return cls(
            num_steps=run.num_steps,
            warmup=round(sae.warmup_share * run.num_steps),
            decay=round(run.optim.decay_share * run.num_steps),
            sparsity_warmup=round(run.optim.sparsity_warmup_share * run.num_steps),
            dips=run.resampling_steps(sae),
            dip=run.resampling.lr_dip,
            dip_length=run.resampling.lr_dip_steps,
        )

    def lr_factor(self, step: int) -> float:
        """The factor on the learning rate: linear warm-up, constant, linear decay.

        After resampling it is multiplied by a cosine that rises from `dip` to 1 (paper, appendix D).
        """
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
        """The factor on the sparsity coefficient: a linear warm-up, then 1."""
        return min(1.0, (step + 1) / self.sparsity_warmup) if self.sparsity_warmup else 1.0

    def steady_steps(self) -> range:
        """The second half of the steps before the decay, without warm-ups and dips. The range may be empty."""
        end = self.num_steps - self.decay
        from_dips = [at + self.dip_length for at in self.dips]
        return range(max(end // 2, self.warmup, self.sparsity_warmup, *from_dips), end)
