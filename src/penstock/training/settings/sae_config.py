"""Settings of one SAE: `SAEConfig` as users give them, and `ResolvedSAE` with every default filled in."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.language_models.sites import site_name
from penstock.saes import ARCHITECTURES, Aim, DecoderRule, OwnSettings, Settings, offered, training_of
from penstock.settings import MAX_SEED, at_least, between, one_of, values_of
from penstock.training.settings.defaults import ModelFacts
from penstock.training.settings.recipes import KNOWN_RECIPES, RECIPES, Recipe


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """The settings of one SAE of a run. Give exactly one of `sparsity_coef`, `paper_lambda` and `target_l0`.

    Architectures whose own settings decide how many latents fire take none of the three. Defaults come from the
    architecture, the recipe and the learning-rate rule.
    """

    arch: str
    """Name of the architecture: one of `penstock.ARCHITECTURES` that can be trained."""
    site: str
    """Site in the language model, e.g. `resid_post.2`."""
    d_sae: int
    """Number of latents."""
    settings: OwnSettings = None
    """The architecture's own settings, by name or as its settings class; by default its defaults."""
    recipe: str | None = None
    """Training recipe: `paper_clipped`, `paper`, `norm_weighted` or `norm_weighted_frozen` (see docs/training.md); by
    default the architecture's."""
    sparsity_coef: float | None = None
    """Weight of the penalty, for activations scaled to unit mean squared norm and errors summed over d_in."""
    paper_lambda: float | None = None
    """Weight of the penalty in the paper's units for Gated SAEs: raw activations, and errors divided by d_in. It is
    converted to a `sparsity_coef` when the run has measured the scale of the site."""
    target_l0: float | None = None
    """Mean number of firing latents per token. The coefficient is steered to reach it, until the last step."""
    seed: int = 0
    """Seed of the initial weights."""
    name: str | None = None
    """Name of the SAE, and of its folder in the run; by default made from the settings."""
    lr: float | None = None
    """Learning rate; by default chosen by the architecture's rule (see docs/training.md)."""
    lr_rule: str | None = None
    """Source of `lr`; filled in when the run starts."""
    warmup_share: float | None = None
    """Share of the steps over which the learning rate rises linearly; by default the run's."""
    beta1: float | None = None
    """Decay of Adam's first moment; by default the recipe's."""
    optimiser: Literal["latent_adam", "adam"] | None = None
    """`latent_adam` updates only the latents that fired, and needs beta1 = 0. `adam` is PyTorch's, which updates all.
    Both take the same steps up to rounding. By default `latent_adam` if beta1 is 0, otherwise `adam`."""
    grad_clip: float | None = None
    """Largest norm of the gradient over all parameters, 0 for no clipping; by default the recipe's."""
    decoder_init_norm: float | None = None
    """Norm of the decoder rows at initialisation; by default the recipe's. Recipes with unit rows allow only 1."""
    resample_at: tuple[float, ...] | None = None
    """Moments at which dead latents are resampled, in the unit `resampling.unit`; empty for never. By default the
    recipe's."""

    def __post_init__(self) -> None:
        training = training_of(self.arch)
        object.__setattr__(self, "site", site_name(self.site))
        # Assigned, so that the architecture's defaults are stored with the run.
        object.__setattr__(self, "settings", ARCHITECTURES[self.arch].settings_of(self.settings))
        recipe = self.recipe or training.default_recipe
        one_of("recipe", recipe, KNOWN_RECIPES, RECIPES)
        object.__setattr__(self, "recipe", recipe)
        at_least("d_sae", self.d_sae, 2)
        between("seed", self.seed, 0, MAX_SEED)
        self._check_aim(training.aims)
        between("sparsity_coef", self.sparsity_coef, 1e-9, 1e6)
        between("paper_lambda", self.paper_lambda, 1e-12, 1e6)
        if self.target_l0 is not None and not 0 < self.target_l0 < self.d_sae:
            raise ValueError(
                f"target_l0={self.target_l0} is out of range: it must be above 0 and below d_sae={self.d_sae}."
            )
        between("lr", self.lr, 1e-9, 10.0)
        if self.lr_rule is not None and self.lr is None:
            raise ValueError(f"lr_rule={self.lr_rule!r} has no effect without lr, whose source it names. Leave it out.")
        between("warmup_share", self.warmup_share, 0.0, 0.9)
        between("beta1", self.beta1, 0.0, 0.9999)
        if self.optimiser == "latent_adam" and self.beta1:
            raise ValueError(
                f"optimiser='latent_adam' with beta1={self.beta1} is not possible, because latent_adam has no first "
                "moment. Set beta1=0, or optimiser='adam'."
            )
        between("grad_clip", self.grad_clip, 0.0, 1e9)
        between("decoder_init_norm", self.decoder_init_norm, 1e-6, 1e3)
        if self.rule.decoder_norm not in training.decoder_norms:
            fitting = [name for name, one in RECIPES.items() if one.rule.decoder_norm in training.decoder_norms]
            raise ValueError(
                f"recipe={self.recipe!r} has decoder_norm={self.rule.decoder_norm!r}, which {self.arch!r} does not "
                f"support. The recipe must be one of {', '.join(fitting)}."
            )
        if self.resample_at and training.dead_latents != "resampling":
            raise ValueError(
                f"resample_at={self.resample_at} has no effect on {self.arch!r}, whose loss revives dead latents. "
                "Leave it out."
            )
        if self.rule.decoder_norm == "unit" and self.decoder_init_norm not in (None, 1.0):
            raise ValueError(
                f"decoder_init_norm={self.decoder_init_norm} has no effect with the recipe {self.recipe!r}, "
                "whose decoder rows have unit norm. Leave it out, or train another recipe."
            )

    @property
    def training_recipe(self) -> Recipe:
        """The recipe, which has the defaults of settings that are not given."""
        return KNOWN_RECIPES[self.recipe or training_of(self.arch).default_recipe]

    @property
    def rule(self) -> DecoderRule:
        """How the loss treats the decoder."""
        return self.training_recipe.rule

    @property
    def own_settings(self) -> Settings:
        """The architecture's own settings, with every default filled in."""
        return ARCHITECTURES[self.arch].settings_of(self.settings)

    @property
    def aimed_l0(self) -> float | None:
        """The L0 that the settings request; None if they give a coefficient or lambda instead."""
        own_l0 = training_of(self.arch).own_l0
        return self.target_l0 if own_l0 is None else float(own_l0(self.own_settings))

    @property
    def folder(self) -> str:
        """The name, or if there is none, one made from the settings that distinguish the SAE from others."""
        if self.name is not None:
            return self.name
        aims = {"l0": self.target_l0, "coef": self.sparsity_coef, "lambda": self.paper_lambda, "lr": self.lr}
        given = [f"{name}_{value:g}" for name, value in aims.items() if value is not None]
        own = [f"{name}_{_in_name(value)}" for name, value in self.own_settings.to_json().items()]
        return "-".join([self.arch, str(self.recipe), self.site, str(self.d_sae), *own, *given, f"seed{self.seed}"])

    def _check_aim(self, allowed: tuple[Aim, ...]) -> None:
        aims = ("sparsity_coef", "paper_lambda", "target_l0")
        given = {name: getattr(self, name) for name in aims if getattr(self, name) is not None}
        wrong = [name for name in given if name not in allowed]
        idle = [f"{name}={given[name]}" for name in wrong]
        if idle and not allowed:
            own = ", ".join(self.own_settings.names())
            raise ValueError(
                f"{' and '.join(idle)} has no effect on {self.arch!r}, whose own settings ({own}) decide how many "
                "latents fire. Leave it out."
            )
        if idle:
            raise ValueError(
                f"{' and '.join(idle)} cannot be given for {self.arch!r}, only for {', '.join(_taking(wrong[0]))} "
                f"(see docs/training.md). Give one of {', '.join(allowed)}."
            )
        if allowed and len(given) != 1:
            raise ValueError(
                f"An SAE needs exactly one of {', '.join(name for name in aims if name in allowed)}, got "
                f"{' and '.join(given) or 'none'}. The easiest to choose is target_l0, the mean number of latents that "
                "fire per token, e.g. 32."
            )


@dataclass(frozen=True, kw_only=True)
class ResolvedSAE(SAEConfig):
    """`SAEConfig` with every default filled in."""

    name: str = field()
    lr: float = field()
    lr_rule: str = field()
    warmup_share: float = field()
    beta1: float = field()
    optimiser: Literal["latent_adam", "adam"] = field()
    grad_clip: float = field()
    decoder_init_norm: float = field()
    resample_at: tuple[float, ...] = field()

    def as_config(self, **changes: Any) -> SAEConfig:
        """An `SAEConfig` with these settings and some changes; None resets a setting to its default."""
        return SAEConfig(**values_of(self, **changes))


def resolve_sae(
    sae: SAEConfig, model: ModelFacts, *, num_steps: int, warmup_share: float, unit: str = "share"
) -> ResolvedSAE:
    """Fill in every default of an SAE's settings.

    Args:
        sae: The settings.
        model: The language model or its facts; used if the learning rate is not given.
        num_steps: The number of steps of the run.
        warmup_share: The run's `warmup_share`, for an SAE without its own.
        unit: The run's `resampling.unit`. The recipe's `resample_at` is only used for `share`.
    """
    defaults, training = sae.training_recipe, training_of(sae.arch)
    if sae.lr is None:
        lr, rule = training.learning_rate.at(model.d_in(sae.site), num_steps)
    else:
        lr, rule = sae.lr, sae.lr_rule or "given"
    beta1 = defaults.beta1 if sae.beta1 is None else sae.beta1
    own_moments = defaults.resample_at if unit == "share" and training.dead_latents == "resampling" else ()
    decided = values_of(
        sae,
        name=sae.folder,
        lr=lr,
        lr_rule=rule,
        warmup_share=warmup_share if sae.warmup_share is None else sae.warmup_share,
        beta1=beta1,
        optimiser=sae.optimiser or ("adam" if beta1 else "latent_adam"),
        grad_clip=defaults.grad_clip if sae.grad_clip is None else sae.grad_clip,
        decoder_init_norm=defaults.decoder_init_norm if sae.decoder_init_norm is None else sae.decoder_init_norm,
        resample_at=own_moments if sae.resample_at is None else sae.resample_at,
    )
    return ResolvedSAE(**decided)


def _taking(aim: str) -> list[str]:
    """Names of the architectures that users can train with this setting of sparsity."""
    return [name for name in offered() if aim in training_of(name).aims]


def _in_name(value: Any) -> str:
    """A setting's value as part of a folder's name."""
    if isinstance(value, (list, tuple)):
        return "_".join(map(_in_name, value))
    return f"{value:g}" if isinstance(value, float) else re.sub(r"[^\w.+-]", "_", str(value))
