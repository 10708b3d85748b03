"""What a setting becomes when it is left open: by recipe, and the learning rate by arm, width and length."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Literal

import torch

from penstock.language_models.loading import LanguageModel
from penstock.saes import training_of
from penstock.training.config import ResamplingConfig, RunConfig, SAEConfig

DEFAULT_BUFFER_TOKENS = 2**18
"""Activations in the shuffle buffer of a run that streams."""


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
    defaults, training = sae.training_recipe, training_of(sae.arch)
    lr, rule = training.learning_rate.at(d_in, config.num_steps)
    if sae.lr is not None:
        lr, rule = sae.lr, sae.lr_rule or "given"
    resample_at = sae.resample_at
    if resample_at is None:
        resample_at = defaults.resample_at if config.resampling.unit == "share" else ()
        resample_at = resample_at if training.dead_latents == "resampling" else ()
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
