"""The settings of a run as JSON: what config.json holds, and what is said when it does not fit."""

import json
from dataclasses import asdict

from penstock.saes.architecture import OwnSettings
from penstock.strict import strict_converter, structured
from penstock.training.config import RunConfig


def config_to_json(config: RunConfig) -> str:
    """All settings of a run as JSON, in the order of their declaration."""
    return json.dumps(asdict(config), indent=1) + "\n"


def config_from_json(text: str, source: str) -> RunConfig:
    """Read back what `config_to_json` wrote.

    Args:
        text: The JSON.
        source: Where it came from, for the error.

    Raises:
        ValueError: not JSON, an unknown or missing setting, or a value out of range; names the setting.
    """
    try:
        stored = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} is not JSON: {error}.") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{source} does not hold the settings of a run: it is no JSON object.")
    converter = strict_converter()
    # Which settings an architecture has of its own, `SAEConfig` itself checks.
    converter.register_structure_hook_func(lambda wanted: wanted == OwnSettings, lambda value, _: value)
    return structured(stored, RunConfig, f"{source} does not hold the settings of a run", converter)
