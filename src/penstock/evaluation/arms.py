"""The key by which SAEs are grouped into arms, and the test that tells controls from SAEs."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from penstock.saes import ARCHITECTURES, Settings

CONTROLS = {"identity": "Identity", "zero": "Zero ablation", "mean": "Mean ablation", "pca": "PCA"}
"""The values of `arch` in the records of controls, and their display names."""


def is_control(record: Mapping[str, Any]) -> bool:
    """Whether a record belongs to a control rather than an SAE."""
    return record.get("arch") in CONTROLS


def given_lr(about: Mapping[str, Any]) -> float | None:
    """The learning rate if the user set it; None if a rule chose it, which may give another rate at every site."""
    return about.get("lr") if about.get("lr_rule") == "given" else None


def settings_text(arch: str, settings: Settings | Mapping[str, Any] | None) -> str | None:
    """The architecture's own settings as text, without those that decide L0; None if there are no others."""
    values = settings.to_json() if isinstance(settings, Settings) else settings or {}
    decide_l0 = ARCHITECTURES[arch].l0_settings if arch in ARCHITECTURES else ()
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items() if name not in decide_l0) or None


class Arm(NamedTuple):
    """The key of an arm: SAEs that share architecture, recipe, width, own settings and, if the user set it, rate.

    Settings that decide L0 move an SAE along its arm, so they are not part of the key.
    """

    arch: str
    recipe: str | None
    """The recipe, or None if the SAE's metadata does not have one."""
    d_sae: int | None
    """The width, or None if SAEs of all widths form one arm."""
    lr: float | None = None
    """The learning rate, or None if a rule chose it (see `given_lr`)."""

    settings: str | None = None
    """The architecture's own settings (see `settings_text`); None for an architecture without any."""

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Arm":
        """The arm of an SAE, from its record or its settings as a mapping."""
        arch = str(about.get("arch"))
        settings = settings_text(arch, about.get("settings"))
        return cls(arch, about.get("recipe"), about.get("d_sae"), given_lr(about), settings)

    @classmethod
    def at_side(cls, pair: Mapping[str, Any], side: str) -> "Arm":
        """The arm of one of the two SAEs that a record is about, from the keys of `side_keys`."""
        arch, *others = (pair.get(f"{key}_{side}") for key in cls._fields)
        return cls(str(arch), *others)

    def side_keys(self, side: str) -> dict[str, Any]:
        """This arm in a record about two SAEs: `arch_a`, `recipe_a`, `d_sae_a`, then rate and settings if set."""
        return {f"{key}_{side}": value for key, value in self._written().items()}

    @classmethod
    def in_role(cls, comparison: Mapping[str, Any], role: str) -> "Arm":
        """The arm that a comparison has in a role, such as `baseline`, from the keys of `role_keys`."""
        return cls(comparison[role], *(comparison.get(f"{role}_{key}") for key in cls._fields[1:]))

    def role_keys(self, role: str) -> dict[str, Any]:
        """The keys for this arm in a comparison: `arm`, `arm_recipe`, `arm_d_sae`; `arm_lr`, `arm_settings` if set."""
        return {role if key == "arch" else f"{role}_{key}": value for key, value in self._written().items()}

    @property
    def order(self) -> tuple[Any, ...]:
        """A key to sort arms by; without None, which has no order."""
        return self.arch, str(self.recipe), self.d_sae or 0, self.lr or 0, self.settings or ""

    def _written(self) -> dict[str, Any]:
        """The fields to write to a file: rate and settings only if they are part of the key."""
        optional = ("lr", "settings")
        return {key: value for key, value in self._asdict().items() if key not in optional or value is not None}
