"""Screening of activations: NaN and infinity are refused, and on request far too long activations are left out."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.language_models.loading import LanguageModel
from penstock.language_models.tokens import TokenRows
from penstock.shapes import Acts, Mask, SequenceActs

FEW = 0.05
"""A warning is given if this share of the tokens, or less, holds half of E |x|^2."""

ENOUGH_TOKENS = 200
"""Fewest tokens for which that share is checked."""

MANY_PASSES = 4
"""Number of passes over the same activations above which a warning is given."""


@dataclass(frozen=True)
class LeftOutTokens:
    """Number of tokens that would count but were left out because of their activations."""

    nonfinite: int = 0
    """Tokens that are NaN or infinite at one of the sites."""
    high_norm: int = 0
    """Tokens longer than `max_norm_multiple` times the median at one of the sites."""

    def __add__(self, other: "LeftOutTokens") -> "LeftOutTokens":
        return LeftOutTokens(self.nonfinite + other.nonfinite, self.high_norm + other.high_norm)


NONE_LEFT_OUT = LeftOutTokens()


def nonfinite(acts: Mapping[str, SequenceActs], mask: Mask) -> Mask:
    """Return the positions that count and whose activation is NaN or infinite at one of the sites."""
    found = torch.zeros_like(mask)
    for values in acts.values():
        # One number first, so that an accelerator transfers a mask only if it has an entry.
        if not values.isfinite().all():
            found |= mask & ~values.isfinite().all(dim=-1).to(mask.device)
    return found


def check_finite(model: LanguageModel, rows: TokenRows, acts: Mapping[str, SequenceActs]) -> None:
    """Refuse activations that are NaN or infinite at a position that counts.

    Raises:
        ValueError: such an activation exists; names the site, the dtype, the token and the remedy.
    """
    for site, values in acts.items():
        bad = nonfinite({site: values}, rows.mask).nonzero()
        if len(bad):
            row, position = bad[0].tolist()
            token = int(rows.tokens[row, position])
            raise ValueError(
                f"The activation at {site} is NaN or infinite for {len(bad)} of {int(rows.mask.sum())} tokens; the "
                f"first one is {model.tokenizer.decode([token])!r} (id {token}) at position {position} of its row. "
                f"This comes from the language model, before any SAE. {_remedy(values.dtype)} With skip_nonfinite "
                "(data.skip_nonfinite in the config.json of a run to be resumed) such tokens are left out and counted."
            )


def norms(acts: SequenceActs) -> Tensor:
    """Return the norm of each activation [sequences, positions], float32."""
    return torch.linalg.vector_norm(acts.float(), dim=-1)


def outlier_warning(acts: Acts, site: str) -> str | None:
    """Return a warning if a few tokens hold most of E |x|^2, as attention sinks do.

    Scale, FVU and the loss of an SAE then depend on those few tokens and say nothing about all others.
    """
    squares = acts.double().square().sum(dim=1)
    if len(squares) < ENOUGH_TOKENS or not squares.sum() > 0:
        return None
    longest = squares.sort(descending=True).values
    few = int((longest.cumsum(0) < longest.sum() / 2).sum()) + 1
    if few > FEW * len(squares):
        return None
    ratio = (longest[few - 1] / squares.median()).sqrt().item()
    return (
        f"outlier tokens: at {site} {few} of {len(squares)} tokens hold half of the mean squared norm. Each is at "
        f"least {ratio:.3g} times as long as the median, so that scale and FVU say little about the other tokens. To "
        f"leave them out of training and evaluation, set max_norm_multiple (e.g. {max(2, round(ratio / 3))})."
    )


def passes_warning(passes: float) -> str | None:
    """Return a warning if training repeats the same activations many times."""
    if passes <= MANY_PASSES:
        return None
    return (
        f"many passes: training went {passes:.1f} times over the same activations, so that SAEs may learn them by "
        "heart. Use a longer text, or train on fewer tokens."
    )


def _remedy(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        return "The model runs in float16, which ends at 65504: use bfloat16 or float32 (dtype)."
    return f"The model runs in {str(dtype).removeprefix('torch.')}: check its weights, and the text at this place."
