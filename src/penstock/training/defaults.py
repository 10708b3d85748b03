"""What a setting becomes when it is left open: by recipe, and the learning rate by arm, width and length."""

from dataclasses import replace
from typing import NamedTuple

from penstock.training.config import RunConfig, SAEConfig


class RecipeDefaults(NamedTuple):
    """Training settings that belong to a recipe."""

    beta1: float
    grad_clip: float
    decoder_init_norm: float
    resample_at: tuple[float, ...]
    """Shares of the run; only used while `resampling.unit` is `share`."""


# Bricken's 25k, 50k, 75k and 100k of 200k steps.
BRICKEN_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2)

RECIPE_DEFAULTS: dict[str, RecipeDefaults] = {
    "paper": RecipeDefaults(0.0, 0.0, 1.0, BRICKEN_SHARES),
    "norm_weighted": RecipeDefaults(0.9, 1.0, 0.1, ()),
    "norm_weighted_frozen": RecipeDefaults(0.9, 1.0, 0.1, ()),
}

DEFAULT_RECIPE = {"gated": "norm_weighted", "relu": "norm_weighted"}
"""The recipe of each architecture unless another is asked for."""

INITIAL_COEF = {"gated": 0.3, "relu": 0.1}
"""Where the steering towards a target L0 starts."""


def learning_rate(arch: str, recipe: str, d_in: int, num_steps: int) -> tuple[float, str]:
    """The learning rate of an arm, and a sentence that says which rule chose it."""
    return 3e-3, "fixed"


def resolve_sae(sae: SAEConfig, config: RunConfig, d_in: int) -> SAEConfig:
    """Decide whatever an SAE's settings leave open."""
    defaults = RECIPE_DEFAULTS[sae.recipe]
    lr, rule = learning_rate(sae.arch, sae.recipe, d_in, config.num_steps)
    if sae.lr is not None:
        lr, rule = sae.lr, sae.lr_rule or "given"
    resample_at = sae.resample_at
    if resample_at is None:
        resample_at = defaults.resample_at if config.resampling.unit == "share" else ()
    return replace(
        sae,
        name=sae.folder,
        lr=lr,
        lr_rule=rule,
        beta1=defaults.beta1 if sae.beta1 is None else sae.beta1,
        grad_clip=defaults.grad_clip if sae.grad_clip is None else sae.grad_clip,
        decoder_init_norm=defaults.decoder_init_norm
        if sae.decoder_init_norm is None
        else sae.decoder_init_norm,
        resample_at=resample_at,
    )
