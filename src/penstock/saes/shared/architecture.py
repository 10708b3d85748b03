"""The declaration of an architecture, which stands at the end of its module.

Command line, defaults, run names, estimates, comparisons and figures read these declarations. None of them mentions an
architecture by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch

from penstock.saes.shared.base import SAE, TrainableSAE
from penstock.saes.shared.settings import Settings
from penstock.strict import structured

Aim = Literal["target_l0", "sparsity_coef", "paper_lambda"]
"""The settings that can decide how many latents fire, besides an architecture's own settings."""

OwnSettings = Settings | Mapping[str, Any] | None
"""An architecture's own settings: an instance of its settings class, a mapping by name, or None for the defaults."""

Marker = Literal["circle", "square", "triangle", "diamond", "down", "hexagon", "star"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """The colour and marker of an architecture in figures; either of them is enough to tell architectures apart."""

    colour: str
    """The colour on a light page, as #rrggbb, with a contrast against white of at least 4.5:1."""
    dark_colour: str
    """The colour on a dark page, as #rrggbb, with a contrast of at least 6:1."""
    marker: Marker


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """The default learning rate of an architecture, as a function of d_in and the number of steps.

    The rate falls as 1 / sqrt(d_in): Adam moves every coordinate by about the rate, and the coordinates of a unit row
    shrink as 1 / sqrt(d_in). It also falls as 1 / steps^(1/4). For Gated SAEs this rule matches both the rates measured
    here and the paper's 3e-4 for 300,000 steps at d_in 3,072 (see docs/training.md).
    """

    base: float
    """The best learning rate measured at d_in 192 and 2,000 steps."""

    def at(self, d_in: int, num_steps: int) -> tuple[float, str]:
        """The learning rate for activations of width `d_in` and `num_steps` steps, and the formula as text."""
        lr = self.base * (192 / d_in) ** 0.5 * (2000 / num_steps) ** 0.25
        return lr, f"{self.base:g} * sqrt(192 / d_in) * (2000 / steps)^(1/4), d_in {d_in}, steps {num_steps}"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an architecture is trained."""

    learning_rate: LearningRate
    aims: tuple[Aim, ...] = ("target_l0", "sparsity_coef")
    """The settings that can decide the sparsity; users give exactly one of them. Empty if the architecture's own
    settings decide it: then `own_l0` returns the L0, and the loss has no penalty."""
    initial_coef: float | None = None
    """The sparsity coefficient from which steering towards a `target_l0` starts."""
    l0_settings: tuple[str, ...] | None = None
    """The architecture's own settings that decide L0; SAEs that differ only in these are one arm. By default all of
    them if there is an `own_l0`, and none if there is not."""
    own_l0: Callable[[Any], float] | None = None
    """Returns the L0 that the architecture's own settings request, e.g. `lambda settings: settings.k`."""
    default_recipe: str = "paper_clipped"
    """The default training recipe, chosen by measurement (see docs/training.md)."""
    decoder_norms: tuple[Literal["unit", "free"], ...] = ("unit", "free")
    """The values of `DecoderRule.decoder_norm` that the loss supports; recipes with another value are refused."""
    codes_decoded: int = 1
    """The number of codes that the loss decodes in each step."""
    dead_latents: Literal["resampling", "own loss"] = "resampling"
    """What revives dead latents: resampling, if the recipe or the user requests it, or a term of the loss."""
    shrinks_magnitudes: bool = False
    """Whether the penalty acts on the magnitudes that are decoded, and so makes them too small."""
    ablation_of: str | None = None
    """The architecture that this one is an ablation of; only the study of ablations trains it."""

    def __post_init__(self) -> None:
        if (self.own_l0 is None) != bool(self.aims):
            raise ValueError("aims and own_l0 exclude each other. Give own_l0 if, and only if, aims is empty.")
        if (self.initial_coef is None) == ("target_l0" in self.aims):
            raise ValueError("Steering towards a target_l0 starts from initial_coef. Give both or neither.")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The declaration of an architecture."""

    sae: type[SAE]
    """The SAE's class."""
    label: str
    """The architecture's name in tables and figures."""
    settings: type[Settings] = Settings
    """The class of the architecture's own settings."""
    look: Look | None = None
    """The colour and marker in figures; figures choose them if this is None."""
    training: Training | None = field(default=None)
    """How the architecture is trained; None if it can only be converted or loaded."""
    negative_code: bool = False
    """Whether latents may have negative values."""
    inference_form: Callable[[Any], SAE] | None = None
    """Converts an SAE into one that computes the same function faster; None if there is no such form."""
    as_gated: Callable[[Any], SAE] | None = None
    """Converts an SAE into a Gated SAE that computes the same function; None if there is none."""

    def __post_init__(self) -> None:
        if self.training is not None and not issubclass(self.sae, TrainableSAE):
            raise ValueError(f"{self.sae.__name__} declares training but has no loss. Derive it from TrainableSAE.")

    @property
    def name(self) -> str:
        """The architecture's name in settings, files and options."""
        return self.sae.arch

    @property
    def trainable_sae(self) -> type[TrainableSAE]:
        """The SAE's class, as a class that can be trained.

        Raises:
            ValueError: the architecture cannot be trained.
        """
        if self.training is None or not issubclass(self.sae, TrainableSAE):
            raise ValueError(f"{self.label} SAEs cannot be trained, only converted or loaded.")
        return self.sae

    @property
    def l0_settings(self) -> tuple[str, ...]:
        """Names of its own settings that decide L0."""
        if self.training is None:
            return ()
        if self.training.l0_settings is not None:
            return self.training.l0_settings
        return () if self.training.own_l0 is None else self.settings.names()

    @property
    def is_offered(self) -> bool:
        """Whether users may train it by name: it can be trained and is not an ablation."""
        return self.training is not None and self.training.ablation_of is None

    def make(self, d_in: int, d_sae: int, settings: OwnSettings = None) -> SAE:
        """A new SAE to load or convert into.

        Raises:
            ValueError: see `settings_of`.
        """
        build = cast("Callable[..., SAE]", self.sae)
        return build(d_in, d_sae, settings=self.settings_of(settings))

    def make_trainable(
        self,
        d_in: int,
        d_sae: int,
        settings: OwnSettings = None,
        *,
        decoder_norm: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> TrainableSAE:
        """A new SAE at the start of its training.

        Args:
            d_in: Width of the activations.
            d_sae: Number of latents.
            settings: The architecture's own settings.
            decoder_norm: Norm of every decoder row.
            generator: Source of the decoder rows' random directions; default: seed 0.

        Raises:
            ValueError: the architecture cannot be trained, or see `settings_of`.
        """
        build = cast("Callable[..., TrainableSAE]", self.trainable_sae)
        return build(d_in, d_sae, settings=self.settings_of(settings), decoder_norm=decoder_norm, generator=generator)

    def settings_of(self, given: OwnSettings) -> Settings:
        """The architecture's own settings, with defaults for those that a user or a file does not give.

        Raises:
            ValueError: a setting is unknown, missing, of a wrong type or out of range.
        """
        if isinstance(given, self.settings):
            return given
        if isinstance(given, Settings):
            raise ValueError(
                f"settings is a {type(given).__name__}, but {self.name!r} takes a {self.settings.__name__}. Give one."
            )
        values = dict(given or {})
        unknown = [name for name in values if name not in self.settings.names()]
        if unknown:
            known = ", ".join(self.settings.names())
            raise ValueError(
                f"settings: {', '.join(map(str, unknown))} has no effect on {self.name!r}, which "
                f"{f'takes {known}' if known else 'has no settings of its own'}. Leave it out."
            )
        missing = [name for name in self.settings.required() if name not in values]
        if missing:
            raise ValueError(f"settings: {self.name!r} needs {' and '.join(missing)}, which has no default. Give it.")
        return structured(values, self.settings, f"settings of {self.name!r}")
