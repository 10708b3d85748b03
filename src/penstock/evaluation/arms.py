"""The key by which SAEs are grouped into arms, and the test that tells controls from SAEs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

CONTROLS = {"identity": "Identity", "zero": "Zero ablation", "mean": "Mean ablation", "pca": "PCA"}
"""The values of `arch` in the records of controls, and their display names."""


def is_control(record: Mapping[str, Any]) -> bool:
    """Whether a record belongs to a control rather than an SAE."""
    return record.get("arch") in CONTROLS


def given_lr(about: Mapping[str, Any]) -> float | None:
    """The learning rate if the user set it; None if a rule chose it, which may give another rate at every site."""
    return about.get("lr") if about.get("lr_rule") == "given" else None


class Arm(NamedTuple):
    """The key of an arm: SAEs that share architecture, recipe, width and, if the user set it, learning rate."""

    arch: str
    recipe: str | None
    """The recipe, or None if the SAE's metadata does not have one."""
    d_sae: int | None
    """The width, or None if SAEs of all widths form one arm."""
    lr: float | None = None
    """The learning rate, or None if a rule chose it (see `given_lr`)."""

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Arm":
        """The arm of an SAE, from its record or its settings as a mapping."""
        return cls(str(about.get("arch")), about.get("recipe"), about.get("d_sae"), given_lr(about))

    @classmethod
    def at_side(cls, pair: Mapping[str, Any], side: str) -> "Arm":
        """The arm of one of the two SAEs that a record is about, from the keys of `side_keys`."""
        arch, recipe, d_sae, lr = (pair.get(f"{key}_{side}") for key in ("arch", "recipe", "d_sae", "lr"))
        return cls(str(arch), recipe, d_sae, lr)

    def side_keys(self, side: str) -> dict[str, Any]:
        """The keys of this arm in a record about two SAEs: `arch_a`, `recipe_a`, `d_sae_a`, and `lr_a` if set."""
        return {f"{key}_{side}": value for key, value in self._asdict().items() if key != "lr" or value is not None}

    @classmethod
    def in_role(cls, comparison: Mapping[str, Any], role: str) -> "Arm":
        """The arm that a comparison has in a role, such as `baseline`, from the keys of `role_keys`."""
        recipe, d_sae, lr = (comparison.get(f"{role}_{key}") for key in ("recipe", "d_sae", "lr"))
        return cls(comparison[role], recipe, d_sae, lr)

    def role_keys(self, role: str) -> dict[str, Any]:
        """The keys for this arm in a comparison: `arm`, `arm_recipe`, `arm_d_sae`, and `arm_lr` if it has one."""
        keys = {role: self.arch, f"{role}_recipe": self.recipe, f"{role}_d_sae": self.d_sae}
        return keys if self.lr is None else {**keys, f"{role}_lr": self.lr}
