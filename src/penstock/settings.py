"""What all sections of settings share: checks of single values, and a section's values by name."""

from collections.abc import Container, Iterable
from dataclasses import fields
from typing import Any

MAX_SEED = 2**31 - 1
"""Leaves room to derive other seeds from a seed."""


def at_least(name: str, value: int | None, low: int) -> None:
    """Raise ValueError if a setting is below `low`; None passes."""
    if value is not None and value < low:
        raise ValueError(f"{name}={value} is out of range: it must be at least {low}.")


def between(name: str, value: float | int | None, low: float | int, high: float | int) -> None:
    """Raise ValueError if a setting lies outside `low` to `high`, or is NaN; None passes."""
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name}={value} is out of range: allowed is {low:g} to {high:g}.")


def one_of(name: str, value: str, known: Container[str], offered: Iterable[str]) -> None:
    """Raise ValueError if a name is not among `known`; the message lists `offered`, which may be fewer."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known: allowed are {', '.join(sorted(offered))}.")


def values_of(section: Any, **changes: Any) -> dict[str, Any]:
    """The values of a settings dataclass by name, some of them changed; sections inside it stay as they are."""
    return {one.name: getattr(section, one.name) for one in fields(section)} | changes
