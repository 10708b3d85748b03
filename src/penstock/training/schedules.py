"""Factors on the learning rate and the sparsity coefficient."""

import math
from dataclasses import dataclass

from penstock.training.settings import ResolvedRun, ResolvedSAE


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

    def steady_steps(self) -> range:
        """The second half of the steps before the decay, without those of a warm-up or a dip; may be empty."""
        end = self.num_steps - self.decay
        from_dips = [at + self.dip_length for at in self.dips]
        return range(max(end // 2, self.warmup, self.sparsity_warmup, *from_dips), end)
