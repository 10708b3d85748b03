"""Optimisation settings that all SAEs of a run share."""

from dataclasses import dataclass, field
from typing import Literal

from penstock.settings import at_least, between


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Batch size, schedules and precision of training."""

    batch_size: int = 4096
    """Activations per optimiser step."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    encoder_precision: Literal["float32", "bfloat16"] | None = None
    """Precision to which the inputs of the encoder's matrix product are rounded. Everything else is float32. By default
    bfloat16 on CUDA and float32 elsewhere."""
    warmup_share: float = 0.05
    """Share of the steps over which the learning rate rises linearly."""
    decay_share: float = 0.2
    """Share of the steps, at the end, over which the learning rate falls linearly to zero; 0 for no decay."""
    sparsity_warmup_share: float = 0.05
    """Share of the steps over which the sparsity coefficient rises linearly; 0 for no warm-up."""

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        for name, low, high in (
            ("beta2", 0.0, 0.999999),
            ("warmup_share", 0.0, 0.9),
            ("decay_share", 0.0, 0.9),
            ("sparsity_warmup_share", 0.0, 0.9),
        ):
            between(f"{name}", getattr(self, name), low, high)
        if self.warmup_share + self.decay_share > 1:
            raise ValueError(
                f"warmup_share={self.warmup_share} and decay_share={self.decay_share} overlap: "
                "their sum must be at most 1. Lower one of them."
            )


@dataclass(frozen=True, kw_only=True)
class ResolvedOptim(OptimConfig):
    """`OptimConfig` with every default filled in."""

    encoder_precision: Literal["float32", "bfloat16"] = field()
