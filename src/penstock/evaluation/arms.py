"""Which SAEs are one arm, and which records are controls: the one key and the one test that everything uses."""

from collections.abc import Mapping
from typing import Any, NamedTuple

CONTROLS = {"identity": "Identity", "zero": "Zero ablation", "mean": "Mean ablation", "pca": "PCA"}
"""What stands as `arch` in the records of controls, and their names."""


def is_control(record: Mapping[str, Any]) -> bool:
    """Whether a record is a control's and not an SAE's."""
    return record.get("arch") in CONTROLS


def given_lr(about: Mapping[str, Any]) -> float | None:
    """The learning rate that was asked for; None if a rule chose it, by which it differs between sites as it should."""
    return about.get("lr") if about.get("lr_rule") == "given" else None


class Arm(NamedTuple):
    """The key of an arm: SAEs that share architecture, recipe, width and, where it was asked for, learning rate."""

    arch: str
    recipe: str | None
    """None for an SAE that does not say how it was trained."""
    d_sae: int | None
    """None where SAEs of all widths are one arm."""
    lr: float | None = None
    """None if a rule chose it (`given_lr`)."""

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Arm":
        """The arm of an SAE, from its record, its settings as a mapping, or what a record says of it."""
        return cls(str(about.get("arch")), about.get("recipe"), about.get("d_sae"), given_lr(about))

    @classmethod
    def at_side(cls, pair: Mapping[str, Any], side: str) -> "Arm":
        """The arm of one of the two SAEs that a record is about, from the keys of `side_keys`."""
        arch, recipe, d_sae, lr = (pair.get(f"{key}_{side}") for key in ("arch", "recipe", "d_sae", "lr"))
        return cls(str(arch), recipe, d_sae, lr)

    def side_keys(self, side: str) -> dict[str, Any]:
        """What a record about two SAEs says of the arm of one of them: `arch_a`, `recipe_a`, `d_sae_a`, `lr_a`."""
        return {f"{key}_{side}": value for key, value in self._asdict().items() if key != "lr" or value is not None}

    @classmethod
    def in_role(cls, comparison: Mapping[str, Any], role: str) -> "Arm":
        """The arm that a comparison has in a role, such as `baseline`, from the keys of `role_keys`."""
        recipe, d_sae, lr = (comparison.get(f"{role}_{key}") for key in ("recipe", "d_sae", "lr"))
        return cls(comparison[role], recipe, d_sae, lr)

    def role_keys(self, role: str) -> dict[str, Any]:
        """What a comparison says of the arm in a role: `arm`, `arm_recipe`, `arm_d_sae`, `arm_lr` (if it has one)."""
        keys = {role: self.arch, f"{role}_recipe": self.recipe, f"{role}_d_sae": self.d_sae}
        return keys if self.lr is None else {**keys, f"{role}_lr": self.lr}
