"""Training recipes: how the loss treats the decoder, with the optimiser settings that were tuned for it.

Two recipes may share a decoder rule: `paper` and `paper_clipped` have the same loss and differ in what is done about
dead latents. Sources are named in saes/shared/decoder_rules.py; how the settings were found, in docs/training.md.
"""

from dataclasses import dataclass

from penstock.saes import ABLATION_RULES, DECODER_RULES, DecoderRule

# Bricken's 25k, 50k, 75k and 100k of 200k steps.
BRICKEN_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2)

# Small enough to act on every step, so that Adam sees gradients of one length: the first ones, made while a
# random dictionary overshoots, are tens of times longer and would otherwise slow it for 1 / (1 - beta2) steps.
CLIP = 0.005


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A decoder rule and the training settings that an SAE has unless it is given its own."""

    rule: DecoderRule
    """How the loss treats the decoder."""
    beta1: float
    """Adam's first-moment decay."""
    grad_clip: float
    """Largest norm of the whole gradient, 0 for none."""
    decoder_init_norm: float
    """Norm of the decoder rows at the start."""
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
"""What users choose from."""

KNOWN_RECIPES: dict[str, Recipe] = {
    **RECIPES,
    "auxiliary_unfrozen": Recipe(
        rule=ABLATION_RULES["auxiliary_unfrozen"], beta1=0.0, grad_clip=CLIP, decoder_init_norm=1.0
    ),
    "inconsistent_mixture": Recipe(
        rule=ABLATION_RULES["inconsistent_mixture"], beta1=0.9, grad_clip=CLIP, decoder_init_norm=0.1
    ),
}
"""What a run's settings may name: those of ablations, too."""
