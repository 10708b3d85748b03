"""Writing and reading of config.json, the settings of a run as JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penstock.json_files import FileError, parse_object, shown
from penstock.saes import OwnSettings
from penstock.strict import strict_converter, structured
from penstock.training.settings.defaults import PlannedModel
from penstock.training.settings.run_config import ResolvedRun, RunConfig, decide


def config_to_json(config: RunConfig) -> str:
    """All settings of a run as JSON, in the order of their declaration."""
    return json.dumps(asdict(config), indent=1) + "\n"


def config_from_json(text: str, source: str) -> RunConfig:
    """The settings in JSON that `config_to_json` wrote.

    Args:
        text: The JSON.
        source: The origin of the text, for the error message.

    Raises:
        ValueError: the text is not JSON, a setting is unknown or missing, or a value is out of range.
    """
    stored, not_finite = parse_object(text, source)
    if not_finite:
        raise FileError(f"{source} holds a number that is NaN or infinite. Settings must be finite. Restore the file.")
    if stored.get("checkpoint_steps") is not None:
        # Older versions also stored the minutes, which had no effect.
        stored.pop("checkpoint_minutes", None)
    converter = strict_converter()
    # `SAEConfig` checks the architecture's own settings.
    converter.register_structure_hook_func(lambda wanted: wanted == OwnSettings, lambda value, _: _own_settings(value))
    return structured(stored, RunConfig, f"{source} does not hold the settings of a run", converter)


def _own_settings(value: Any) -> Any:
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{shown(value)} is not an object")
    return value


def resolved_from_json(text: str, source: str) -> ResolvedRun:
    """The settings of a run that was started. Settings that older versions did not store get their defaults.

    Raises:
        ValueError: see `config_from_json`, or a setting is missing whose default depends on the language model.
    """
    config = config_from_json(text, source)
    undecided = ["data.context"] if config.data.context is None else []
    undecided += [f"saes[{number}].lr" for number, sae in enumerate(config.saes) if sae.lr is None]
    if undecided:
        raise ValueError(
            f"{source} does not have {', '.join(undecided)}, so it is not the config.json of a run that was started. "
            f"Start a run with --from {source}."
        )
    # No missing setting depends on the language model, so its facts are not used.
    return decide(config, PlannedModel(source, 0, {}))


def read_config(run_dir: Path) -> ResolvedRun:
    """The settings of a run.

    Raises:
        FileNotFoundError: `run_dir` does not hold a run.
        ValueError: config.json has unknown keys or values out of range.
    """
    path = run_dir / "config.json"
    return resolved_from_json(_text_of(path), str(path))


def config_from_file(path: Path) -> RunConfig:
    """The settings in a config.json, for a new run.

    Args:
        path: The file, or the directory of a run.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: see `read_config`.
    """
    if path.is_dir():
        path = path / "config.json"
    return config_from_json(_text_of(path), str(path))


def _text_of(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist, so there is no run to read. Start one with penstock train or sweep --out DIR."
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}. Restore the file."
        ) from error
