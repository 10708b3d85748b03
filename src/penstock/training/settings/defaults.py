"""Defaults of a run's settings; for those of an SAE see `resolve_sae`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

DEFAULT_BUFFER_TOKENS = 2**18
"""Activations in the shuffle buffer of a run that streams."""

LONGEST_CONTEXT = 1024
"""Tokens in a row of a model that would take more, unless more are asked for."""


@runtime_checkable
class ModelFacts(Protocol):
    """What settings depend on of a language model; a `LanguageModel` has it."""

    @property
    def name(self) -> str:
        """As in the settings."""
        ...

    @property
    def context(self) -> int:
        """The most positions it takes."""
        ...

    @property
    def device(self) -> torch.device | None:
        """Where it lives; None if it is not loaded."""
        ...

    def d_in(self, site: str) -> int:
        """The width of a site; raises ValueError if there is no such site."""
        ...


@dataclass(frozen=True)
class PlannedModel:
    """A language model that is not loaded: `ModelFacts` from numbers."""

    name: str
    context: int
    widths: Mapping[str, int]
    """For each site its d_in."""

    @property
    def device(self) -> None:
        """None: it is not loaded."""

    def d_in(self, site: str) -> int:
        if site not in self.widths:
            raise ValueError(f"The width of {site} is not known: give the d_in of every site of the run.")
        return self.widths[site]


def coefficient(lambda_paper: float, d_in: int, scale: float) -> float:
    """The paper's lambda of a Gated SAE as a `sparsity_coef`: lambda * d_in * scale.

    A token of raw activation x costs |x - x_hat|^2 / d_in + lambda |f|_1 in the paper, its auxiliary error divided by
    d_in like the other (appendix D; of the auxiliary error that is assumed). Here it costs |s x - s x_hat|^2 +
    coef |s f|_1: an SAE is positively homogeneous in x and its biases together. That is d_in s^2 times the paper's.

    Args:
        lambda_paper: Above 0.
        d_in: Width of the site.
        scale: What brings the activations to unit mean squared norm, s = 1 / sqrt(E |x|^2).

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
    """Tokens without firing after which a latent counts as dead: 1/16 of a run of `tokens`."""
    return max(1, tokens // 16)


def default_dip_steps(num_steps: int) -> int:
    """Steps over which the learning rate rises back after resampling: 1,000, or 1/16 of a shorter run."""
    return min(1000, max(1, num_steps // 16))
