"""The settings of a run as JSON: what config.json holds, and what is said when it does not fit."""

import difflib
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import cattrs
import cattrs.v

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
    converter = cattrs.Converter(forbid_extra_keys=True)
    # By itself cattrs converts: "false" would become True, and 10.7 steps 10.
    for kind, accepted in _JSON_TYPES.items():
        converter.register_structure_hook(kind, _exactly(accepted))
    try:
        return converter.structure(stored, RunConfig)
    except cattrs.BaseValidationError as error:
        problems = cattrs.transform_error(error, format_exception=_explained)
        raise ValueError(
            f"{source} does not hold the settings of a run: {'; '.join(problems)} ($ is the whole file)."
        ) from error


_JSON_TYPES: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
"""Which types of JSON values may stand for a setting's type."""


def _exactly(accepted: tuple[type, ...]) -> Callable[[Any, type], Any]:
    def structure(value: Any, wanted: type) -> Any:
        if type(value) not in accepted:
            raise ValueError(f"{value!r} is not of type {wanted.__name__}")
        return wanted(value)

    return structure


def _explained(error: BaseException, wanted: Any) -> str:
    """A problem in the stored settings, with a suggestion for a misspelt one."""
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = [f.name for f in fields(error.cl)]
        return "; ".join(_unknown_key(key, known) for key in sorted(error.extra_fields))
    if isinstance(error, ValueError):
        return str(error).rstrip(".")
    return cattrs.v.format_exception(error, wanted)


def _unknown_key(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    remedy = f"did you mean {close[0]}?" if close else f"remove it (known here: {', '.join(known)})"
    return f"there is no setting {key}: {remedy}"
