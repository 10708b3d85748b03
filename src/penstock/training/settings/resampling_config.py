"""Settings of the resampling of dead latents, which all SAEs of a run share."""

from dataclasses import dataclass, field
from typing import Literal

from penstock.settings import at_least, between


@dataclass(frozen=True, kw_only=True)
class ResamplingConfig:
    """Resampling of dead latents, after Bricken et al. 2023, with the paper's dip of the learning rate."""

    unit: Literal["share", "steps", "tokens"] = "share"
    """Unit of `resample_at`: share of the run, steps, or tokens."""
    window_tokens: int | None = None
    """Number of tokens without firing after which a latent counts as dead; by default 1/16 of the run."""
    inputs: int = 819_200
    """Activations from which new latents are drawn by their loss (fewer if the buffer or cache holds fewer)."""
    encoder_scale: float = 0.2
    """Norm of a resampled encoder vector, relative to the mean over the living ones."""
    lr_dip: float = 0.1
    """Factor on the learning rate right after resampling; it then rises back to 1 along a cosine."""
    lr_dip_steps: int | None = None
    """Steps of that rise; by default 1,000, or 1/16 of the run if that is shorter."""

    def __post_init__(self) -> None:
        at_least("resampling.inputs", self.inputs, 1)
        at_least("resampling.window_tokens", self.window_tokens, 1)
        at_least("resampling.lr_dip_steps", self.lr_dip_steps, 1)
        between("resampling.encoder_scale", self.encoder_scale, 1e-6, 1e3)
        if not 0 < self.lr_dip <= 1:
            raise ValueError(f"resampling.lr_dip={self.lr_dip} is out of range: it must be above 0 and at most 1.")


@dataclass(frozen=True, kw_only=True)
class ResolvedResampling(ResamplingConfig):
    """`ResamplingConfig` with every default filled in."""

    window_tokens: int = field()
    lr_dip_steps: int = field()
