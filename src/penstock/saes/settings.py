"""An architecture's own settings: one frozen dataclass on its page."""

from dataclasses import MISSING, Field, asdict, dataclass, fields
from typing import Any, TypeVar

SettingsT = TypeVar("SettingsT", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Settings of an architecture that has none of its own.

    Others derive from it, frozen and keyword-only, with one field for each setting (say `k: int = 32`) and a docstring
    below it, which becomes the help text of the command-line option. `__post_init__` raises ValueError for a value out
    of range.
    """

    def to_json(self) -> dict[str, Any]:
        """The settings by name, ready for JSON."""
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
