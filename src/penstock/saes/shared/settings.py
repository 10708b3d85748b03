"""The base class of an architecture's own settings."""

from dataclasses import MISSING, Field, asdict, dataclass, fields
from typing import Any, TypeVar

SettingsT = TypeVar("SettingsT", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """The settings of an architecture without settings of its own, and the base class of all others.

    Subclasses are frozen, keyword-only dataclasses with one field per setting, say `k: int = 32`. The docstring below a
    field becomes the help text of its command-line option. `__post_init__` raises ValueError for values out of range.
    """

    def to_json(self) -> dict[str, Any]:
        """The settings by name, in types that JSON has."""
        return asdict(self)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the settings, in the order of their declaration."""
        return tuple(one.name for one in fields(cls))

    @classmethod
    def required(cls) -> tuple[str, ...]:
        """Names of the settings that have no default."""
        return tuple(one.name for one in fields(cls) if not _has_default(one))


NO_SETTINGS = Settings()


def _has_default(one: Field[Any]) -> bool:
    return one.default is not MISSING or one.default_factory is not MISSING
