"""The source of a run's batches: its text, the stream of activations, and a shuffle buffer or cache."""

import logging

from penstock.activations.harvest import Text, TrainingStream, fill_cache, rows_acts
from penstock.activations.memory import check_activations_fit
from penstock.activations.sources import ActivationCache, ActivationSource, ShuffleBuffer
from penstock.language_models.loading import LanguageModel
from penstock.training.settings import ResolvedRun
from penstock.training.settings.defaults import ModelFacts

logger = logging.getLogger(__name__)

VALIDATION_TOKENS = 2**14
"""Activations set aside to steer L0 on."""


def activation_source(config: ResolvedRun, model: LanguageModel) -> ActivationSource:
    """The cache or shuffle buffer that a run's batches come from.

    A cache is harvested at once, a shuffle buffer when the first batch is taken.

    Raises:
        ValueError: the activations need more memory than is free.
    """
    data = config.data
    check_memory(config, model)
    stream = training_stream(config, model)
    if data.cache_tokens is not None:
        logger.info("Harvesting %s activations at %s", f"{data.cache_tokens:,}", ", ".join(config.sites))
        return fill_cache(stream, data.cache_tokens, seed=data.shuffle_seed)
    device = config.language_model.device
    return ShuffleBuffer(stream, capacity=data.buffer_tokens, seed=data.shuffle_seed, device=device)


def validation_cache(config: ResolvedRun, model: LanguageModel) -> ActivationCache | None:
    """Return activations of text that is not trained on, to steer L0 on.

    Returns None if no SAE of the run has a target L0, or if the text is too short for a validation split.
    """
    if all(sae.target_l0 is None for sae in config.saes):
        return None
    seed = config.data.shuffle_seed
    rows = training_text(config, model).validation(VALIDATION_TOKENS, seed=seed)
    if rows is None:
        logger.warning(
            "%s is too short for a validation split: L0 is steered on the training tokens.", config.data.text
        )
        return None
    return ActivationCache(rows_acts(model, rows, config.sites, config.language_model.device), seed=seed)


def check_memory(config: ResolvedRun, model: ModelFacts) -> None:
    """Raise ValueError if a run's activations need more memory than is free on its device."""
    width = sum(model.d_in(site) for site in config.sites)
    check_activations_fit(config.data, width, config.language_model.device)


def training_text(config: ResolvedRun, model: LanguageModel) -> Text:
    """The text of a run, tokenised for its model."""
    data = config.data
    return Text(
        model=model,
        source=data.text,
        text_field=data.text_field or "text",
        context=data.context,
        packing=data.packing,
        mask_special_tokens=data.mask_special_tokens,
        sites=config.sites,
        skip_nonfinite=data.skip_nonfinite,
        max_norm_multiple=data.max_norm_multiple,
    )


def training_stream(config: ResolvedRun, model: LanguageModel) -> TrainingStream:
    """The activations that a run trains on, in the order of its text."""
    return TrainingStream(
        text=training_text(config, model),
        sites=config.sites,
        batch_rows=config.data.model_batch_rows,
        device=config.language_model.device,
    )
