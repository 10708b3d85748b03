"""Loading of a run's language model, and moving a run to another device."""

import logging
from pathlib import Path

from penstock.devices import available_or_cpu, check_device, described, resolve_device
from penstock.language_models.loading import LanguageModel
from penstock.language_models.settings import LanguageModelConfig
from penstock.training.settings import ResolvedRun, RunConfig
from penstock.training.settings.config_file import read_config

logger = logging.getLogger(__name__)


def load_language_model(settings: LanguageModelConfig) -> LanguageModel:
    """The language model that the settings name.

    Raises:
        ValueError: a setting would have no effect, the device is not available, or see `LanguageModel.load`.
    """
    settings = settings.resolve()
    check_device(settings.device)
    logger.info("Device: %s", described(settings.device))
    return LanguageModel.load(
        settings.model,
        dtype=settings.dtype,
        # With a device_map the model is spread over devices, and `device` is that of the SAEs.
        device="cpu" if settings.device_map else settings.device,
        device_map=settings.device_map,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )


def load_model(config: RunConfig, *, trust_remote_code: bool = False) -> LanguageModel:
    """The language model of a run.

    Args:
        config: The run's settings. They may come from somebody else's file, so `trust_remote_code` in them is not
            enough to run code. To load the model on another device, see `ResolvedRun.on_device`.
        trust_remote_code: Whether code that comes with the model may run on this machine.

    Raises:
        ValueError: the settings request remote code that the caller does not allow, or see `LanguageModel.load`.
    """
    settings = config.language_model
    if settings.trust_remote_code and not trust_remote_code:
        raise ValueError(
            f"The settings request to run code that comes with the language model {settings.model!r}. A settings file "
            "is not enough for that, because it may come from anyone. Review the code, and add --trust-remote-code to "
            "this command if you trust it."
        )
    return load_language_model(settings)


def config_to_measure(run_dir: Path, device: str | None = None) -> ResolvedRun:
    """Return the settings of a run for evaluation or studies, which may happen on another machine.

    Args:
        run_dir: The run's directory.
        device: Device of the language model and the SAEs. By default the one that they were trained on, or the CPU,
            with a warning, if this machine does not have it.

    Raises:
        FileNotFoundError: `run_dir` does not hold a run.
        ValueError: the device is unknown, or see `read_config`.
    """
    config = read_config(run_dir)
    if device is not None:
        return config.on_device(resolve_device(device))
    trained_on = config.language_model.device
    available = available_or_cpu(trained_on)
    return config if available == trained_on else config.on_device(available)


def config_for(run_dir: Path, model: LanguageModel) -> ResolvedRun:
    """Return the settings of a run, with the device on which its language model is loaded now."""
    config = read_config(run_dir)
    return config if model.is_spread else config.on_device(str(model.device))
