"""Which SAEs belong together in a picture, what they are called, and how they are drawn.

An arm is all SAEs of one architecture, recipe, width and, where it was asked for, learning rate. Colour and marker
shape both tell the architecture, so that neither is needed alone; fill and dashes tell the arms of one architecture
apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from penstock.evaluation.comparison import given_lr

Shape = Literal["circle", "square", "triangle", "diamond", "down", "hexagon", "star"]

CONTROLS = {"identity": "Identity", "zero": "Zero ablation", "mean": "Mean ablation", "pca": "PCA"}
"""Controls and their names: rows of the records that are no SAE."""

ARCH_NAMES = {
    "gated": "Gated",
    "relu": "ReLU",
    "jumprelu": "JumpReLU",
    "topk": "TopK",
    "batch_topk": "BatchTopK",
    "matryoshka": "Matryoshka",
}

SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "diamond", "down", "hexagon", "star")

COLORS = ("#0b6bb3", "#c44e0a", "#007f5f", "#a3458f", "#8a6100", "#5a5fc7", "#4a5258")
"""One per architecture, on a light page; contrast against white at least 4.5:1."""

DARK_COLORS = ("#62b5f5", "#f4894a", "#3fc99f", "#e58fd0", "#e0b040", "#a5a9ff", "#c3c9cf")
"""The same for a dark page; contrast at least 6:1."""


@dataclass(frozen=True, kw_only=True)
class ArmLook:
    """SAEs that share architecture, recipe, width and, where it was asked for, learning rate."""

    arch: str
    recipe: str | None
    d_sae: int | None
    lr: float | None
    """None if a rule chose it."""
    label: str
    """Name for legends: the architecture, and what sets this arm apart from others of its architecture."""
    slot: int
    """Index into COLORS and SHAPES; the same for every arm of an architecture."""
    variant: int
    """0 for the first arm of its architecture (filled marks, solid line), 1, 2, ... for the others."""


def is_control(record: dict[str, Any]) -> bool:
    """Whether a record is a control and not an SAE."""
    return record.get("arch") in CONTROLS


def arch_name(arch: str | None) -> str:
    """The name of an architecture or control as the field writes it; an unknown one stays as it is."""
    return ARCH_NAMES.get(str(arch)) or CONTROLS.get(str(arch)) or str(arch)


def arch_and_width(arch: str, d_sae: int) -> str:
    """What sets the arms of the paper apart, such as "Gated, 131,072 latents"."""
    return f"{arch_name(arch)}, {d_sae:,} latents"


def find_arms(records: Sequence[dict[str, Any]]) -> list[ArmLook]:
    """The arms among `records`, in the order known architectures are listed here, then as they come."""
    saes = [record for record in records if not is_control(record)]
    known = list(ARCH_NAMES)
    archs = sorted(
        dict.fromkeys(str(record.get("arch")) for record in saes),
        key=lambda arch: known.index(arch) if arch in known else len(known),
    )
    arms = []
    for arch in archs:
        mine = [record for record in saes if str(record.get("arch")) == arch]
        keys = sorted({_key(record) for record in mine}, key=lambda key: (str(key[1]), key[2] or 0, key[3] or 0))
        recipes, widths, rates = ({key[place] for key in keys} for place in (1, 2, 3))
        for variant, (_, recipe, d_sae, lr) in enumerate(keys):
            details = [str(recipe)] if len(recipes) > 1 else []
            details += [f"d_sae {d_sae:,}"] if len(widths) > 1 and d_sae is not None else []
            details += [f"lr {lr:g}"] if len(rates) > 1 and lr is not None else []
            label = arch_name(arch) + (f" ({', '.join(details)})" if details else "")
            slot = _slot(arch, archs)
            arms.append(ArmLook(arch=arch, recipe=recipe, d_sae=d_sae, lr=lr, label=label, slot=slot, variant=variant))
    return arms


def arm_index(record: dict[str, Any], arms: Sequence[ArmLook]) -> int | None:
    """Position of the record's arm in `arms`; None for a control."""
    if is_control(record):
        return None
    return next(index for index, arm in enumerate(arms) if (arm.arch, arm.recipe, arm.d_sae, arm.lr) == _key(record))


def _key(record: dict[str, Any]) -> tuple[str, str | None, int | None, float | None]:
    return str(record.get("arch")), record.get("recipe"), record.get("d_sae"), given_lr(record)


def _slot(arch: str, archs: Sequence[str]) -> int:
    """A known architecture always looks the same; unknown ones take what the others in the run leave free."""
    known = list(ARCH_NAMES)
    if arch in known:
        return known.index(arch)
    taken = {known.index(other) for other in archs if other in known}
    free = [slot for slot in range(len(SHAPES)) if slot not in taken] or list(range(len(SHAPES)))
    unknown = [other for other in archs if other not in known]
    return free[unknown.index(arch) % len(free)]
