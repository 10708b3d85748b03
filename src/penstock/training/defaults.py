"""What a setting becomes when it is left open: by recipe, and the learning rate by arm, width and length."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Literal, NamedTuple

import torch

from penstock.language_models.loading import LanguageModel
from penstock.saes import ABLATED
from penstock.training.config import ResamplingConfig, RunConfig, SAEConfig


class RecipeDefaults(NamedTuple):
    """Training settings that belong to a recipe."""

    beta1: float
    grad_clip: float
    decoder_init_norm: float
    resample_at: tuple[float, ...]
    """Shares of the run; only used while `resampling.unit` is `share`."""


# Bricken's 25k, 50k, 75k and 100k of 200k steps.
BRICKEN_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2)

# Small enough to act on every step, so that Adam sees gradients of one length: the first ones, made while a
# random dictionary overshoots, are tens of times longer and would otherwise slow it for 1 / (1 - beta2) steps.
CLIP = 0.005

RECIPE_DEFAULTS: dict[str, RecipeDefaults] = {
    "paper": RecipeDefaults(0.0, 0.0, 1.0, BRICKEN_SHARES),
    "paper_clipped": RecipeDefaults(0.0, CLIP, 1.0, ()),
    "norm_weighted": RecipeDefaults(0.9, CLIP, 0.1, ()),
    "norm_weighted_frozen": RecipeDefaults(0.9, CLIP, 0.1, ()),
    "auxiliary_unfrozen": RecipeDefaults(0.0, CLIP, 1.0, ()),
    "inconsistent_mixture": RecipeDefaults(0.9, CLIP, 0.1, ()),
}

DEFAULT_RECIPE = {"gated": "paper_clipped", "relu": "paper_clipped"}
"""The recipe of each architecture unless another is asked for; chosen by measurement (docs/training.md)."""

DEFAULT_BUFFER_TOKENS = 2**18
"""Activations in the shuffle buffer of a run that streams."""

INITIAL_COEF = {"relu": 0.1, **dict.fromkeys(("gated", *ABLATED), 0.3)}
"""Where the steering towards a target L0 starts."""


BASE_LR = {"relu": 7e-3, **dict.fromkeys(("gated", *ABLATED), 4.5e-3)}
"""Best learning rates measured at d_in 192 and 2,000 steps (docs/training.md); ablations have that of the whole."""


def learning_rate(arch: str, d_in: int, num_steps: int) -> tuple[float, str]:
    """The learning rate of an arm, and a sentence that says which rule chose it.

    The rate falls as 1 / sqrt(d_in), because Adam moves every coordinate by about the rate while the
    coordinates of a unit row shrink like that, and as the fourth root of the steps. The rule goes through
    what was measured here and the paper's 3e-4 (Gated) for 300,000 steps at d_in 3,072.
    """
    lr = BASE_LR[arch] * (192 / d_in) ** 0.5 * (2000 / num_steps) ** 0.25
    return lr, f"{BASE_LR[arch]:g} * sqrt(192 / d_in) * (2000 / steps)^(1/4), d_in {d_in}, steps {num_steps}"


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


def resolve_sae(sae: SAEConfig, config: RunConfig, d_in: int) -> SAEConfig:
    """Decide whatever an SAE's settings leave open."""
    defaults = RECIPE_DEFAULTS[sae.recipe]
    lr, rule = learning_rate(sae.arch, d_in, config.num_steps)
    if sae.lr is not None:
        lr, rule = sae.lr, sae.lr_rule or "given"
    resample_at = sae.resample_at
    if resample_at is None:
        resample_at = defaults.resample_at if config.resampling.unit == "share" else ()
    beta1 = defaults.beta1 if sae.beta1 is None else sae.beta1
    return replace(
        sae,
        name=sae.folder,
        lr=lr,
        lr_rule=rule,
        warmup_share=config.optim.warmup_share if sae.warmup_share is None else sae.warmup_share,
        beta1=beta1,
        optimiser=sae.optimiser or ("adam" if beta1 else "latent_adam"),
        grad_clip=defaults.grad_clip if sae.grad_clip is None else sae.grad_clip,
        decoder_init_norm=defaults.decoder_init_norm if sae.decoder_init_norm is None else sae.decoder_init_norm,
        resample_at=resample_at,
    )


def decide(config: RunConfig, model: LanguageModel, widths: Mapping[str, int]) -> RunConfig:
    """Fill in what the settings leave open, so that the result says all that was used."""
    data = config.data
    context = data.context or min(model.context, 1024)
    if context > model.context:
        raise ValueError(f"context={context} is more than the {model.context} positions of {model.name}. Lower it.")
    buffer_tokens = data.buffer_tokens
    if data.cache_tokens is None:
        buffer_tokens = buffer_tokens or DEFAULT_BUFFER_TOKENS
        if buffer_tokens < config.optim.batch_size:
            raise ValueError(
                f"buffer_tokens={buffer_tokens} is less than batch_size={config.optim.batch_size}: a "
                "batch must fit into the buffer. Raise one or lower the other."
            )
    saes = tuple(resolve_sae(sae, config, widths[sae.site]) for sae in config.saes)
    if not any(sae.resample_at for sae in saes):
        _check_no_resampling(config.resampling)
    return replace(
        config,
        threads=config.threads or torch.get_num_threads(),
        optim=replace(config.optim, encoder_precision=config.optim.encoder_precision or _encoder_precision(config)),
        data=replace(data, context=context, buffer_tokens=buffer_tokens),
        saes=saes,
    )


def _encoder_precision(config: RunConfig) -> Literal["float32", "bfloat16"]:
    return "bfloat16" if config.language_model.device.startswith("cuda") else "float32"


def _check_no_resampling(resampling: ResamplingConfig) -> None:
    """Refuse settings of a resampling that never happens; `window_tokens` also counts the dead."""
    default = ResamplingConfig(window_tokens=resampling.window_tokens)
    idle = [f.name for f in fields(resampling) if getattr(resampling, f.name) != getattr(default, f.name)]
    if idle:
        raise ValueError(
            f"{', '.join(f'resampling.{name}={getattr(resampling, name)!r}' for name in idle)} has no effect: no SAE "
            "of this run resamples its dead latents. Leave it out, or say when with resample_at."
        )
