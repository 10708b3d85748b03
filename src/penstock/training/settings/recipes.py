"""Training recipes: a decoder rule, with the optimiser settings that were tuned for it.

Two recipes may share a decoder rule. `paper` and `paper_clipped` have the same loss: the first resamples dead latents,
the second clips gradients. See saes/shared/decoder_rules.py for the sources, and docs/training.md for how the settings
were found.
"""

from dataclasses import dataclass

from penstock.saes import ABLATION_RULES, DECODER_RULES, DecoderRule

# Bricken et al. resample at 25k, 50k, 75k and 100k of 200k steps.
BRICKEN_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2)

# So small that it clips every step, and Adam sees gradients of constant norm. The gradients of the first steps, while a
# random dictionary overshoots, are tens of times longer. Unclipped, they slow Adam down for 1 / (1 - beta2) steps.
CLIP = 0.005


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A decoder rule, and the defaults of an SAE's training settings."""

    rule: DecoderRule
    """How the loss treats the decoder."""
    beta1: float
    """Decay of Adam's first moment."""
    grad_clip: float
    """Largest norm of the gradient over all parameters; 0 for no clipping."""
    decoder_init_norm: float
    """Norm of the decoder rows at initialisation."""
    resample_at: tuple[float, ...] = ()
    """Shares of the run at which dead latents are resampled; only used while `resampling.unit` is `share`."""


RECIPES: dict[str, Recipe] = {
    "paper_clipped": Recipe(rule=DECODER_RULES["unit"], beta1=0.0, grad_clip=CLIP, decoder_init_norm=1.0),
    "paper": Recipe(
        rule=DECODER_RULES["unit"], beta1=0.0, grad_clip=0.0, decoder_init_norm=1.0, resample_at=BRICKEN_SHARES
    ),
    "norm_weighted": Recipe(rule=DECODER_RULES["norm_weighted"], beta1=0.9, grad_clip=CLIP, decoder_init_norm=0.1),
    "norm_weighted_frozen": Recipe(
        rule=DECODER_RULES["norm_weighted_frozen"], beta1=0.9, grad_clip=CLIP, decoder_init_norm=0.1
    ),
}
"""The recipes that users can choose."""

KNOWN_RECIPES: dict[str, Recipe] = {
    **RECIPES,
    "auxiliary_unfrozen": Recipe(
        rule=ABLATION_RULES["auxiliary_unfrozen"], beta1=0.0, grad_clip=CLIP, decoder_init_norm=1.0
    ),
    "inconsistent_mixture": Recipe(
        rule=ABLATION_RULES["inconsistent_mixture"], beta1=0.9, grad_clip=CLIP, decoder_init_norm=0.1
    ),
}
"""All recipes by name, including those of ablations."""
