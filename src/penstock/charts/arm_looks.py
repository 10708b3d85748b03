"""Labels, colours and markers of arms in figures.

An arm is the set of all SAEs with the same architecture, recipe, width and, if it was set explicitly, learning rate.
Colour and marker both identify the architecture, so either is enough. Fill and dashes distinguish arms of the same
architecture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.evaluation.arms import CONTROLS, Arm, is_control
from penstock.saes import ARCHITECTURES, Look, Marker

_SPARE = (
    Look(colour="#0b6bb3", dark_colour="#62b5f5", marker="circle"),
    Look(colour="#c44e0a", dark_colour="#f4894a", marker="square"),
    Look(colour="#007f5f", dark_colour="#3fc99f", marker="triangle"),
    Look(colour="#a3458f", dark_colour="#e58fd0", marker="diamond"),
    Look(colour="#8a6100", dark_colour="#e0b040", marker="down"),
    Look(colour="#5a5fc7", dark_colour="#a5a9ff", marker="hexagon"),
    Look(colour="#4a5258", dark_colour="#c3c9cf", marker="star"),
)
"""Looks for architectures that do not declare one."""

_DECLARED = {name: architecture.look for name, architecture in ARCHITECTURES.items() if architecture.look is not None}

_LOOKS = (*_DECLARED.values(), *(look for look in _SPARE if look not in _DECLARED.values()))

SHAPES: tuple[Marker, ...] = tuple(look.marker for look in _LOOKS)

COLORS = tuple(look.colour for look in _LOOKS)
"""Colours of the architectures on a light page, with a contrast against white of at least 4.5:1."""

DARK_COLORS = tuple(look.dark_colour for look in _LOOKS)
"""Colours of the architectures on a dark page, with a contrast of at least 6:1."""


@dataclass(frozen=True, kw_only=True)
class ArmLook:
    """The label and style of an arm in figures."""

    key: Arm
    label: str
    """The name in legends: the architecture, and what distinguishes the arm from others of the same architecture."""
    slot: int
    """Index into COLORS and SHAPES, the same for all arms of an architecture."""
    variant: int
    """0 for an architecture's first arm (filled markers, solid line), 1, 2, ... for its others."""

    @property
    def arch(self) -> str:
        return self.key.arch


def arch_name(arch: str | None) -> str:
    """Return the display name of an architecture or control; unknown names are returned unchanged."""
    known = ARCHITECTURES.get(str(arch))
    return known.label if known else CONTROLS.get(str(arch), str(arch))


def arch_and_width(arch: str, d_sae: int) -> str:
    """Return an arm's name by architecture and width, e.g. "Gated, 131,072 latents"."""
    return f"{arch_name(arch)}, {d_sae:,} latents"


def find_arms(records: Sequence[Mapping[str, Any]]) -> list[ArmLook]:
    """The arms of the SAEs among `records`, in the order of ARCHITECTURES; controls are left out."""
    return looks_of([Arm.of(record) for record in records if not is_control(record)])


def looks_of(keys: Sequence[Arm]) -> list[ArmLook]:
    """Labels and styles for some arms, different for each of them, in the order of ARCHITECTURES."""
    known = list(ARCHITECTURES)
    archs = sorted(
        dict.fromkeys(key.arch for key in keys),
        key=lambda arch: known.index(arch) if arch in known else len(known),
    )
    looks = []
    for arch in archs:
        mine = {key for key in keys if key.arch == arch}
        fields = ("recipe", "d_sae", "lr", "settings")
        recipes, widths, rates, settings = ({getattr(key, name) for key in mine} for name in fields)
        ordered = sorted(mine, key=lambda key: key.order)
        for variant, key in enumerate(ordered):
            details = [str(key.recipe)] if len(recipes) > 1 else []
            details += [f"d_sae {key.d_sae:,}"] if len(widths) > 1 and key.d_sae is not None else []
            details += [f"lr {key.lr:g}"] if len(rates) > 1 and key.lr is not None else []
            details += [key.settings] if len(settings) > 1 and key.settings is not None else []
            label = arch_name(arch) + (f" ({', '.join(details)})" if details else "")
            looks.append(ArmLook(key=key, label=label, slot=_slot(arch, archs), variant=variant))
    return looks


def arm_index(record: Mapping[str, Any], looks: Sequence[ArmLook]) -> int | None:
    """The position of the record's arm in `looks`, or None for a control."""
    return None if is_control(record) else place_of(Arm.of(record), looks)


def place_of(key: Arm, looks: Sequence[ArmLook]) -> int:
    """The position of an arm in `looks`, which must hold it."""
    return next(place for place, look in enumerate(looks) if look.key == key)


def _slot(arch: str, archs: Sequence[str]) -> int:
    """Return the index of an architecture's look. Architectures without one get a look that `archs` leaves unused."""
    known = list(_DECLARED)
    if arch in known:
        return known.index(arch)
    taken = {known.index(other) for other in archs if other in known}
    free = [slot for slot in range(len(SHAPES)) if slot not in taken] or list(range(len(SHAPES)))
    unknown = [other for other in archs if other not in known]
    return free[unknown.index(arch) % len(free)]
