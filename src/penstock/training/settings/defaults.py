"""Defaults of a run's settings. See `resolve_sae` for those of an SAE."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

DEFAULT_BUFFER_TOKENS = 2**18
"""The default size of the shuffle buffer, in activations."""

LONGEST_CONTEXT = 1024
"""The largest default context; models with more positions use more only if the user asks for it."""


@runtime_checkable
class ModelFacts(Protocol):
    """The facts of a language model that settings depend on. A `LanguageModel` has them."""

    @property
    def name(self) -> str:
        """The model's name in the settings."""
        ...

    @property
    def context(self) -> int:
        """The largest number of positions."""
        ...

    @property
    def device(self) -> torch.device | None:
        """The device, or None if the model is not loaded."""
        ...

    def d_in(self, site: str) -> int:
        """The width of a site. Raises ValueError if the site does not exist."""
        ...


@dataclass(frozen=True)
class PlannedModel:
    """The `ModelFacts` of a language model that is not loaded."""

    name: str
    context: int
    widths: Mapping[str, int]
    """The d_in of each site."""

    @property
    def device(self) -> None:
        """None, because the model is not loaded."""

    def d_in(self, site: str) -> int:
        if site not in self.widths:
            raise ValueError(f"The width of {site} is not known. Give the d_in of every site of the run.")
        return self.widths[site]


def coefficient(lambda_paper: float, d_in: int, scale: float) -> float:
    """The `sparsity_coef` for a lambda of the paper's Gated SAEs: lambda * d_in * scale.

    In the paper, the loss of a raw activation x is |x - x_hat|^2 / d_in + lambda |f|_1 (appendix D). We assume that the
    auxiliary error is divided by d_in, too. Here the loss is |s x - s x_hat|^2 + coef |s f|_1, because an SAE is
    positively homogeneous in x and its biases together. With this coefficient it is d_in s^2 times the paper's.

    Args:
        lambda_paper: The paper's lambda, above 0.
        d_in: Width of the site.
        scale: The factor s = 1 / sqrt(E |x|^2) that gives the activations unit mean squared norm.

    Raises:
        ValueError: an argument is not above 0.
    """
    if not (lambda_paper > 0 and d_in > 0 and scale > 0):
        raise ValueError(
            f"lambda_paper={lambda_paper}, d_in={d_in}, scale={scale}: all three must be above 0. The scale is "
            "1 / sqrt(E |x|^2) of the raw activations (penstock.activations.sources.measure_scale)."
        )
    return lambda_paper * d_in * scale


def default_window_tokens(tokens: int) -> int:
    """The number of tokens without firing after which a latent counts as dead: 1/16 of the run's tokens."""
    return max(1, tokens // 16)


def default_dip_steps(num_steps: int) -> int:
    """The number of steps over which the learning rate recovers after resampling: 1,000, or 1/16 of the run if less."""
    return min(1000, max(1, num_steps // 16))
