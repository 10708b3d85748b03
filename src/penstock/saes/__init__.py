"""SAE architectures. Each has one module, which ends with its `Architecture`, and a line in ARCHITECTURES."""

from collections.abc import Iterable

from penstock.saes.gated import GATED, GatedSAE
from penstock.saes.gated_ablations import ABLATION_RULES, GATED_NO_AUXILIARY, GATED_NO_R_MAG, GATED_UNTIED
from penstock.saes.jumprelu import JUMPRELU, JumpReLUSAE
from penstock.saes.relu import RELU, ReLUSAE
from penstock.saes.shared.architecture import Aim, Architecture, LearningRate, Look, Marker, OwnSettings, Training
from penstock.saes.shared.base import SAE, Loss, TrainableSAE, latent_major, penalty, random_directions, squared_errors
from penstock.saes.shared.decoder_rules import DECODER_RULES, DecoderRule
from penstock.saes.shared.settings import NO_SETTINGS, Settings

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        GATED,
        RELU,
        JUMPRELU,
        GATED_NO_R_MAG,
        GATED_UNTIED,
        GATED_NO_AUXILIARY,
    )
}
"""Every architecture by name, in the order in which tables and figures list them."""

DEFAULT_ARCH = GATED.name
"""The architecture that is trained by default."""

BASELINE = RELU.name
"""The architecture that the others are compared with."""


def baseline_of(archs: Iterable[str]) -> str | None:
    """The baseline among some architectures: BASELINE if it is one of them, otherwise the first of ARCHITECTURES.

    Returns None if all names are unknown.
    """
    given = set(archs)
    return next((name for name in (BASELINE, *ARCHITECTURES) if name in given), None)


def baseline_first() -> tuple[str, ...]:
    """Names of the architectures that users can choose, BASELINE first."""
    return (BASELINE, *(name for name in offered() if name != BASELINE))


def trainable() -> tuple[str, ...]:
    """Names of the architectures that can be trained, including ablations."""
    return tuple(name for name, architecture in ARCHITECTURES.items() if architecture.training is not None)


def offered() -> tuple[str, ...]:
    """Names of the architectures that users can choose: `trainable` without the ablations."""
    return tuple(name for name, architecture in ARCHITECTURES.items() if architecture.is_offered)


def training_of(arch: str) -> Training:
    """The `Training` declaration of an architecture.

    Raises:
        ValueError: the architecture is unknown or cannot be trained.
    """
    training = ARCHITECTURES[arch].training if arch in ARCHITECTURES else None
    if training is None:
        why = "cannot be trained, only converted or loaded" if arch in ARCHITECTURES else "is not known"
        raise ValueError(f"arch={arch!r} {why}: it must be one of {', '.join(sorted(offered()))}.")
    return training


__all__ = [
    "ABLATION_RULES",
    "ARCHITECTURES",
    "BASELINE",
    "DECODER_RULES",
    "DEFAULT_ARCH",
    "NO_SETTINGS",
    "SAE",
    "Aim",
    "Architecture",
    "DecoderRule",
    "GatedSAE",
    "JumpReLUSAE",
    "LearningRate",
    "Look",
    "Marker",
    "OwnSettings",
    "Loss",
    "ReLUSAE",
    "Settings",
    "Training",
    "TrainableSAE",
    "baseline_first",
    "baseline_of",
    "latent_major",
    "offered",
    "penalty",
    "random_directions",
    "squared_errors",
    "trainable",
    "training_of",
]
