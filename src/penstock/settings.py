"""Checks of single settings, and a section's settings as a dict."""

from collections.abc import Container, Iterable
from dataclasses import fields
from typing import Any

MAX_SEED = 2**31 - 1
"""The largest seed that users can give, which leaves room for other seeds derived from it."""


def at_least(name: str, value: int | None, low: int) -> None:
    """Raise ValueError if a setting is below `low`. None is allowed."""
    if value is not None and value < low:
        raise ValueError(f"{name}={value} is out of range: it must be at least {low}.")


def between(name: str, value: float | int | None, low: float | int, high: float | int) -> None:
    """Raise ValueError if a setting is not between `low` and `high`, inclusive, or is NaN. None is allowed."""
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name}={value} is out of range: it must be between {low:g} and {high:g}.")


def one_of(name: str, value: str, known: Container[str], offered: Iterable[str]) -> None:
    """Raise ValueError if a name is not in `known`. The message lists `offered`, which may be fewer."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known: it must be one of {', '.join(sorted(offered))}.")


def values_of(section: Any, **changes: Any) -> dict[str, Any]:
    """The settings of a dataclass by name, with `changes` applied. Nested dataclasses are not converted."""
    return {one.name: getattr(section, one.name) for one in fields(section)} | changes
