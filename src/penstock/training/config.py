"""Settings of a run: frozen dataclasses that only state and check. `defaults.py` fills what is left open.

Fields that are None are decided when the run starts and written back, so that the `config.json` of a run
holds every number that was used. Sizes are in tokens unless the name says otherwise.
"""

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.language_models.sites import site_name
from penstock.saes import ARCHITECTURES, Aim, DecoderRule, Settings, offered, training_of
from penstock.saes.architecture import OwnSettings
from penstock.training.recipes import KNOWN_RECIPES, RECIPES, Recipe

MAX_SEED = 2**31 - 1
"""Leaves room to derive other seeds from a seed."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    model: str = "embedded"
    """`embedded`, a local folder, or a name on the Hugging Face Hub."""
    dtype: str = "float32"
    """Precision of the language model; SAEs always train in float32."""
    device: str = "cpu"
    """Where the language model and the SAEs live: cpu, cuda, cuda:1, mps."""
    device_map: str | None = None
    """Passed to transformers to spread a large model, e.g. `auto`; SAEs stay on `device`."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only for sources you trust."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    text: str = "embedded"
    """`embedded` (the standard library's source); a .txt, .jsonl or .parquet file (.txt and .jsonl also compressed), or
    a folder of them; or datasets:NAME, datasets:NAME:CONFIG, datasets:NAME:CONFIG:SPLIT."""
    text_field: str | None = None
    """Column of the text in .jsonl, .parquet and datasets; `text` if left open."""
    packing: Literal["packed", "truncated"] = "packed"
    """Documents joined with a BOS (or EOS) between them, or one row per document cut at `context`."""
    context: int | None = None
    """Tokens in a row, BOS included; the model's maximum up to 1,024 if left open."""
    tokens: int = 20_000_000
    """Activations to train each SAE on, all passes together."""
    cache_tokens: int | None = None
    """Harvest this many activations once, keep them in memory and pass over them as often as `tokens` asks.
    Otherwise activations are streamed: each one is new until the texts end."""
    buffer_tokens: int | None = None
    """Activations in the shuffle buffer when streaming (2^18 if left open); mixed token by token."""
    model_batch_rows: int = 32
    """Rows in one forward pass of the language model."""
    shuffle_seed: int = 0
    """Decides the order of the activations."""
    mask_special_tokens: bool = False
    """Leave special tokens inside the texts (such as those of chat templates) out of training and evaluation."""
    max_norm_multiple: float | None = None
    """Leave out tokens whose activation is more than so many times as long as the median at one of the sites."""
    skip_nonfinite: bool = False
    """Leave out and count tokens whose activations are NaN or infinite, which end the run otherwise."""

    def __post_init__(self) -> None:
        _at_least("tokens", self.tokens, 1)
        _at_least("model_batch_rows", self.model_batch_rows, 1)
        _at_least("context", self.context, 2)
        _at_least("cache_tokens", self.cache_tokens, 1)
        _at_least("buffer_tokens", self.buffer_tokens, 2)
        _between("shuffle_seed", self.shuffle_seed, 0, MAX_SEED)
        _between("max_norm_multiple", self.max_norm_multiple, 1.5, 1e6)
        if self.cache_tokens is not None:
            if self.buffer_tokens is not None:
                raise ValueError(
                    f"buffer_tokens={self.buffer_tokens} has no effect with cache_tokens="
                    f"{self.cache_tokens}: a cache is shuffled as a whole. Leave one of them out."
                )
            if self.cache_tokens > self.tokens:
                raise ValueError(
                    f"cache_tokens={self.cache_tokens} is more than tokens={self.tokens}, so part of "
                    "the cache would never be used. Lower cache_tokens or raise tokens."
                )
        if self.text_field is not None and (self.text == "embedded" or self.text.lower().endswith(".txt")):
            raise ValueError(
                f"text_field={self.text_field!r} has no effect with text={self.text!r}, which has no "
                "columns. Leave it out, or name a text that has some (.jsonl, .parquet, datasets:NAME)."
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    batch_size: int = 4096
    """Activations in a step."""
    beta2: float = 0.999
    """Adam's second-moment decay."""
    encoder_precision: Literal["float32", "bfloat16"] | None = None
    """What the factors of the encoder product are rounded to; it is accumulated, and all else done, in float32.
    bfloat16 on CUDA and float32 elsewhere if left open."""
    warmup_share: float = 0.05
    """Share of the steps over which the learning rate rises linearly."""
    decay_share: float = 0.2
    """Share of the steps at the end over which it falls linearly to zero; 0 for none."""
    sparsity_warmup_share: float = 0.05
    """Share of the steps over which the sparsity coefficient rises linearly; 0 for none."""

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        for name, low, high in (
            ("beta2", 0.0, 0.999999),
            ("warmup_share", 0.0, 0.9),
            ("decay_share", 0.0, 0.9),
            ("sparsity_warmup_share", 0.0, 0.9),
        ):
            _between(f"{name}", getattr(self, name), low, high)
        if self.warmup_share + self.decay_share > 1:
            raise ValueError(
                f"warmup_share={self.warmup_share} and decay_share={self.decay_share} overlap: "
                "together they may be at most 1. Lower one of them."
            )


@dataclass(frozen=True, kw_only=True)
class ResamplingConfig:
    """Resampling of dead latents, after Bricken et al. 2023 with the paper's dip of the learning rate."""

    unit: Literal["share", "steps", "tokens"] = "share"
    """What the `resample_at` of the SAEs counts in: share of the run, steps, or tokens."""
    window_tokens: int | None = None
    """A latent that has not fired on this many tokens counts as dead; 1/16 of the run if left open."""
    inputs: int = 819_200
    """Activations whose loss decides which of them become new latents (fewer if the source holds fewer)."""
    encoder_scale: float = 0.2
    """Norm of a resampled encoder vector, relative to the mean over the living ones."""
    lr_dip: float = 0.1
    """Factor on the learning rate right after resampling, which then rises back along a cosine."""
    lr_dip_steps: int | None = None
    """Steps of that rise; 1,000, or 1/16 of the run if that is shorter."""

    def __post_init__(self) -> None:
        _at_least("resampling.inputs", self.inputs, 1)
        _at_least("resampling.window_tokens", self.window_tokens, 1)
        _at_least("resampling.lr_dip_steps", self.lr_dip_steps, 1)
        _between("resampling.encoder_scale", self.encoder_scale, 1e-6, 1e3)
        if not 0 < self.lr_dip <= 1:
            raise ValueError(f"resampling.lr_dip={self.lr_dip} is out of range: allowed is above 0, up to 1.")


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """One SAE of a run. Give exactly one of `sparsity_coef`, `paper_lambda` and `target_l0`; the rest has defaults.

    An architecture whose own settings decide how many latents fire takes none of the three. What is left open is
    decided by the architecture, by the recipe and by the learning-rate rule.
    """

    arch: str
    """Name of the architecture: one of `penstock.ARCHITECTURES` that can be trained."""
    site: str
    """Where in the language model, e.g. `resid_post.2`."""
    d_sae: int
    """Number of latents."""
    settings: OwnSettings = None
    """The architecture's own settings, by name or as its settings class; its defaults if left open."""
    recipe: str | None = None
    """`paper_clipped`, `paper`, `norm_weighted` or `norm_weighted_frozen` (docs/training.md); the architecture's
    default if left open."""
    sparsity_coef: float | None = None
    """Weight of the penalty, for activations scaled to unit mean squared norm and errors summed over d_in."""
    paper_lambda: float | None = None
    """The same for raw activations and errors divided by d_in, as the paper states it for Gated SAEs: it becomes a
    `sparsity_coef` once the run has measured the scale of the site."""
    target_l0: float | None = None
    """Mean number of firing latents to reach: the coefficient is steered to the last step."""
    seed: int = 0
    """Seed of the initial weights."""
    name: str | None = None
    """Folder of this SAE in the run."""
    lr: float | None = None
    """Learning rate; the rule of its arm if left open (docs/training.md)."""
    lr_rule: str | None = None
    """Where `lr` comes from; written when the run starts."""
    warmup_share: float | None = None
    """Share of the steps over which the learning rate rises linearly; that of the run if left open."""
    beta1: float | None = None
    """Adam's first-moment decay; the recipe's if left open."""
    optimiser: Literal["latent_adam", "adam"] | None = None
    """`latent_adam` visits only the latents that fired and needs beta1 = 0; `adam` is PyTorch's, on every row. The
    same steps up to rounding. By beta1 if left open."""
    grad_clip: float | None = None
    """Largest norm of the whole gradient, 0 for none; the recipe's if left open."""
    decoder_init_norm: float | None = None
    """Norm of the decoder rows at the start; the recipe's if left open. `paper` allows only 1."""
    resample_at: tuple[float, ...] | None = None
    """When dead latents are resampled, in `unit`; empty for never; the recipe's if left open."""

    def __post_init__(self) -> None:
        training = training_of(self.arch)
        object.__setattr__(self, "site", site_name(self.site))
        # Written back, so that what an architecture's defaults decide is stored with the run.
        object.__setattr__(self, "settings", ARCHITECTURES[self.arch].settings_of(self.settings))
        recipe = self.recipe or training.default_recipe
        _one_of("recipe", recipe, KNOWN_RECIPES, RECIPES)
        object.__setattr__(self, "recipe", recipe)
        _at_least("d_sae", self.d_sae, 2)
        _between("seed", self.seed, 0, MAX_SEED)
        self._check_aim(training.aims)
        _between("sparsity_coef", self.sparsity_coef, 1e-9, 1e6)
        _between("paper_lambda", self.paper_lambda, 1e-12, 1e6)
        if self.target_l0 is not None and not 0 < self.target_l0 < self.d_sae:
            raise ValueError(
                f"target_l0={self.target_l0} is out of range: it must lie between 0 and d_sae={self.d_sae}."
            )
        _between("lr", self.lr, 1e-9, 10.0)
        _between("warmup_share", self.warmup_share, 0.0, 0.9)
        _between("beta1", self.beta1, 0.0, 0.9999)
        if self.optimiser == "latent_adam" and self.beta1:
            raise ValueError(
                f"optimiser='latent_adam' with beta1={self.beta1}: it keeps no first moment, so as to leave latents "
                "without a gradient alone. Set beta1=0, or optimiser='adam'."
            )
        _between("grad_clip", self.grad_clip, 0.0, 1e9)
        _between("decoder_init_norm", self.decoder_init_norm, 1e-6, 1e3)
        if self.rule.decoder_norm not in training.decoder_norms:
            fitting = [name for name, one in RECIPES.items() if one.rule.decoder_norm in training.decoder_norms]
            raise ValueError(
                f"recipe={self.recipe!r} gives decoder rows {self.rule.decoder_norm} norms, with which {self.arch!r} "
                f"cannot be trained: allowed are {', '.join(fitting)}."
            )
        if self.resample_at and training.dead_latents != "resampling":
            raise ValueError(
                f"resample_at={self.resample_at} has no effect on {self.arch!r}: its loss revives dead latents. Leave "
                "it out."
            )
        if self.rule.decoder_norm == "unit" and self.decoder_init_norm not in (None, 1.0):
            raise ValueError(
                f"decoder_init_norm={self.decoder_init_norm} has no effect with the recipe {self.recipe!r}, "
                "whose decoder rows have unit norm. Leave it out, or train another recipe."
            )

    @property
    def training_recipe(self) -> Recipe:
        """The recipe by whose settings open ones are decided."""
        return KNOWN_RECIPES[self.recipe or training_of(self.arch).default_recipe]

    @property
    def rule(self) -> DecoderRule:
        """How the loss treats the decoder."""
        return self.training_recipe.rule

    @property
    def own_settings(self) -> Settings:
        """The architecture's own settings, complete."""
        return ARCHITECTURES[self.arch].settings_of(self.settings)

    @property
    def aimed_l0(self) -> float | None:
        """The mean number of firing latents that is asked for; None for a coefficient, which asks for no L0."""
        own_l0 = training_of(self.arch).own_l0
        return self.target_l0 if own_l0 is None else own_l0(self.own_settings)

    @property
    def folder(self) -> str:
        """The name, or one that tells this SAE from others."""
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
                f"{' and '.join(idle)} has no effect on {self.arch!r}: its own settings ({own}) decide how many "
                "latents fire. Leave it out."
            )
        if idle:
            raise ValueError(
                f"{' and '.join(idle)} cannot be given for {self.arch!r}, only for {', '.join(_taking(wrong[0]))} "
                f"(docs/training.md). Give one of {', '.join(allowed)}."
            )
        if allowed and len(given) != 1:
            raise ValueError(
                f"An SAE needs exactly one of {', '.join(name for name in aims if name in allowed)}, got "
                f"{' and '.join(given) or 'none'}. target_l0 is the easiest one to choose: the number of latents that "
                "fire per token, e.g. 32."
            )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    eval_tokens: int = 100_000
    """Held-out tokens to evaluate on (the paper uses more than a million)."""
    bootstrap: int = 1000
    """Resamples of the held-out sequences for the 95% intervals."""
    eval_seed: int = 0
    """Decides which held-out rows are used, and the bootstrap."""

    def __post_init__(self) -> None:
        _at_least("eval_tokens", self.eval_tokens, 1)
        _at_least("bootstrap", self.bootstrap, 10)
        _between("eval_seed", self.eval_seed, 0, MAX_SEED)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run. `saes` share one stream of activations, one forward pass for all."""

    saes: tuple[SAEConfig, ...]
    language_model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    resampling: ResamplingConfig = field(default_factory=ResamplingConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint_minutes: float = 10.0
    """Time between two checkpoints."""
    checkpoint_steps: int | None = None
    """Save every so many steps instead (used where the moment must be exact)."""
    keep_checkpoints: bool = False
    """Keep the last checkpoints of a finished run; they are removed once its SAEs are saved."""
    log_steps: int = 25
    """Steps between two rows of metrics.jsonl."""
    threads: int | None = None
    """CPU threads; all cores if left open. Written when the run starts: a resumed run must use as many."""

    def __post_init__(self) -> None:
        if not self.saes:
            raise ValueError("saes is empty: a run needs at least one SAE to train.")
        names = [sae.folder for sae in self.saes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"saes lists the same SAE twice: {', '.join(twice)}. Remove one, or change its seed.")
        _at_least("log_steps", self.log_steps, 1)
        _at_least("checkpoint_steps", self.checkpoint_steps, 1)
        _between("checkpoint_minutes", self.checkpoint_minutes, 0, 1e6)
        _at_least("threads", self.threads, 1)
        if self.num_steps < 1:
            raise ValueError(
                f"tokens={self.data.tokens} is less than one batch of batch_size="
                f"{self.optim.batch_size}. Raise tokens or lower batch_size."
            )
        for sae in self.saes:
            self._check_resampling(sae)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.data.tokens // self.optim.batch_size

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites to harvest, each once, in the order of the SAEs."""
        return tuple(dict.fromkeys(sae.site for sae in self.saes))

    def resampling_steps(self, sae: SAEConfig) -> tuple[int, ...]:
        """The steps at which an SAE's dead latents are resampled."""
        steps_per = {"share": self.num_steps, "steps": 1, "tokens": 1 / self.optim.batch_size}
        return tuple(round(moment * steps_per[self.resampling.unit]) for moment in sae.resample_at or ())

    def _check_resampling(self, sae: SAEConfig) -> None:
        for moment, step in zip(sae.resample_at or (), self.resampling_steps(sae), strict=True):
            if not 0 < step < self.num_steps:
                raise ValueError(
                    f"resample_at={moment:g} ({self.resampling.unit}) is step {step}, but the run has "
                    f"{self.num_steps} steps: it would have no effect. Choose a moment inside the run, and "
                    "check resampling.unit (share, steps or tokens)."
                )


def _taking(aim: str) -> list[str]:
    """The architectures that users may train with such an aim."""
    return [name for name in offered() if aim in training_of(name).aims]


def _in_name(value: Any) -> str:
    """A setting's value as part of a folder's name."""
    if isinstance(value, (list, tuple)):
        return "_".join(map(_in_name, value))
    return f"{value:g}" if isinstance(value, float) else re.sub(r"[^\w.+-]", "_", str(value))


def _at_least(name: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise ValueError(f"{name}={value} is out of range: it must be at least {low}.")


def _one_of(name: str, value: str, known: Container[str], offered: Iterable[str]) -> None:
    """Refuse what is not known, and name what is offered: not what ablations alone train."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known: allowed are {', '.join(sorted(offered))}.")


def _between(name: str, value: float | int | None, low: float | int, high: float | int) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name}={value} is out of range: allowed is {low:g} to {high:g}.")
