"""Strict conversion of JSON to dataclasses: unknown keys and values of another type are refused."""

import difflib
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

import cattrs
import cattrs.v

from penstock.json_files import shown

T = TypeVar("T")


def strict_converter() -> cattrs.Converter:
    """A converter that refuses unknown keys and values of another type.

    The default converter of cattrs would turn "false" into True, and 10.7 into 10.
    """
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind, accepted in _JSON_TYPES.items():
        converter.register_structure_hook(kind, _exactly(accepted))
    return converter


@cache
def _plain_converter() -> cattrs.Converter:
    """One for all: each new converter writes and compiles its code for a dataclass again."""
    return strict_converter()


def structured(values: Any, wanted: type[T], source: str, converter: cattrs.Converter | None = None) -> T:
    """An instance of the dataclass `wanted`.

    Args:
        values: The parsed JSON.
        wanted: The dataclass.
        source: The origin of the values, for the error message.
        converter: A converter from `strict_converter` with additional hooks.

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    try:
        return (converter or _plain_converter()).structure(values, wanted)
    except cattrs.BaseValidationError as error:
        problems = cattrs.transform_error(error, format_exception=_explained)
        raise ValueError(f"{source}: {'; '.join(problems)} ($ stands for the whole).") from error


_JSON_TYPES: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
"""The types of JSON values that are accepted for each type of setting."""


def _exactly(accepted: tuple[type, ...]) -> Callable[[Any, type], Any]:
    def structure(value: Any, wanted: type) -> Any:
        if type(value) not in accepted:
            raise ValueError(f"{shown(value)} is not of type {wanted.__name__}")
        return wanted(value)

    return structure


def _explained(error: BaseException, wanted: Any) -> str:
    """The message for one problem, with a suggestion if a setting is misspelt."""
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
