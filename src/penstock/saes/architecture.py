"""What an architecture says of itself: one declaration at the end of its page.

Command line, defaults, run names, estimates, comparisons and figures ask for these facts and know no architecture by
name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch

from penstock.saes.base import SAE, TrainableSAE
from penstock.saes.settings import Settings
from penstock.strict import structured

Aim = Literal["target_l0", "sparsity_coef", "paper_lambda"]
"""What may decide how many latents fire, besides an architecture's own settings."""

OwnSettings = Settings | Mapping[str, Any] | None
"""An architecture's own settings as they are given: its settings class, a mapping by name, or None for its defaults."""

Marker = Literal["circle", "square", "triangle", "diamond", "down", "hexagon", "star"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """How an architecture is drawn; colour and marker both tell it from others, so that neither is needed alone."""

    colour: str
    """On a light page, #rrggbb; its contrast against white is at least 4.5:1."""
    dark_colour: str
    """On a dark page; its contrast is at least 6:1."""
    marker: Marker


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """The learning rate of an architecture where none is given, by width and length of the run.

    The rate falls as 1 / sqrt(d_in), because Adam moves every coordinate by about the rate while the coordinates of a
    unit row shrink like that, and as the fourth root of the steps. For Gated SAEs the rule goes through what was
    measured here and the paper's 3e-4 for 300,000 steps at d_in 3,072 (docs/training.md).
    """

    base: float
    """The best rate measured at d_in 192 and 2,000 steps."""

    def at(self, d_in: int, num_steps: int) -> tuple[float, str]:
        """The learning rate for a width and a number of steps, and a sentence that says which rule chose it."""
        lr = self.base * (192 / d_in) ** 0.5 * (2000 / num_steps) ** 0.25
        return lr, f"{self.base:g} * sqrt(192 / d_in) * (2000 / steps)^(1/4), d_in {d_in}, steps {num_steps}"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an architecture is trained."""

    learning_rate: LearningRate
    aims: tuple[Aim, ...] = ("target_l0", "sparsity_coef")
    """What a user may give to say how sparse the code should be; exactly one is given. Empty if the architecture's own
    settings decide it: then `own_l0` says how many latents fire, and the loss has no penalty."""
    initial_coef: float | None = None
    """Where the steering towards a `target_l0` starts."""
    own_l0: Callable[[Any], float] | None = None
    """The L0 that the architecture's own settings ask for, e.g. `lambda settings: settings.k`."""
    default_recipe: str = "paper_clipped"
    """The training recipe unless another is asked for; chosen by measurement (docs/training.md)."""
    decoder_norms: tuple[Literal["unit", "free"], ...] = ("unit", "free")
    """Which norms decoder rows may have in training; recipes with others are refused."""
    codes_decoded: int = 1
    """Codes that the loss decodes at each step."""
    dead_latents: Literal["resampling", "own loss"] = "resampling"
    """What revives dead latents: resampling, where the recipe or the user asks for it, or a term of the loss."""
    shrinks_magnitudes: bool = False
    """Whether the penalty acts on the magnitudes that are decoded, and so makes them too small."""
    ablation_of: str | None = None
    """The architecture of which this is a changed copy; only the study of ablations offers it."""

    def __post_init__(self) -> None:
        if (self.own_l0 is None) != bool(self.aims):
            raise ValueError("aims and own_l0 exclude each other: give own_l0 exactly where aims is empty.")
        if (self.initial_coef is None) == ("target_l0" in self.aims):
            raise ValueError("initial_coef says where the steering to a target_l0 starts: give both or neither.")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The facts of an architecture."""

    sae: type[SAE]
    """Its class."""
    label: str
    """Its name in tables and figures."""
    settings: type[Settings] = Settings
    """Its own settings."""
    look: Look | None = None
    """How it is drawn; figures choose for those that do not say."""
    training: Training | None = field(default=None)
    """How it is trained; None if it is only converted or loaded, never trained."""
    negative_code: bool = False
    """Whether latents may have negative values."""
    inference_form: Callable[[Any], SAE] | None = None
    """Makes the same function as an SAE that encodes faster, if there is one."""
    as_gated: Callable[[Any], SAE] | None = None
    """Makes a Gated SAE with the same function, if there is one."""

    def __post_init__(self) -> None:
        if self.training is not None and not issubclass(self.sae, TrainableSAE):
            raise ValueError(f"{self.sae.__name__} has training facts but no loss: derive it from TrainableSAE.")

    @property
    def name(self) -> str:
        """The architecture's name in settings, files and options."""
        return self.sae.arch

    @property
    def trainable_sae(self) -> type[TrainableSAE]:
        """Its class, if it can be trained.

        Raises:
            ValueError: it cannot.
        """
        if self.training is None or not issubclass(self.sae, TrainableSAE):
            raise ValueError(f"{self.label} SAEs are not trained, only converted or loaded.")
        return self.sae

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
            generator: Decides the directions; seed 0 if left out.

        Raises:
            ValueError: it cannot be trained; and see `settings_of`.
        """
        build = cast("Callable[..., TrainableSAE]", self.trainable_sae)
        return build(d_in, d_sae, settings=self.settings_of(settings), decoder_norm=decoder_norm, generator=generator)

    def settings_of(self, given: OwnSettings) -> Settings:
        """Own settings from what a user or a file gives by name; defaults fill the rest.

        Raises:
            ValueError: a setting is unknown, missing, of a wrong type or out of range.
        """
        if isinstance(given, self.settings):
            return given
        if isinstance(given, Settings):
            raise ValueError(
                f"settings is a {type(given).__name__}, but {self.name!r} takes {self.settings.__name__}. Give that."
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
