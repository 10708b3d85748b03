"""Settings of a run: `RunConfig` as users give them, and `ResolvedRun` with every default filled in.

In a `RunConfig`, None stands for a default that is not filled in yet. `RunConfig.resolve` fills them in when a run
starts, by the rules in `defaults.py`. It returns a `ResolvedRun`, which is stored in the run's config.json. Sizes are
in tokens unless the name says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from penstock.activations.settings import DataConfig, ResolvedData
from penstock.evaluation.settings import EvalConfig
from penstock.language_models.settings import LanguageModelConfig
from penstock.settings import at_least, between, values_of
from penstock.training.settings.defaults import (
    DEFAULT_BUFFER_TOKENS,
    LONGEST_CONTEXT,
    ModelFacts,
    default_dip_steps,
    default_window_tokens,
)
from penstock.training.settings.optim_config import OptimConfig, ResolvedOptim
from penstock.training.settings.resampling_config import ResamplingConfig, ResolvedResampling
from penstock.training.settings.sae_config import ResolvedSAE, SAEConfig, resolve_sae

CHECKPOINT_MINUTES = 10.0
"""The default number of minutes between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of a run. All `saes` share one stream of activations, and so one forward pass of the model."""

    saes: tuple[SAEConfig, ...]
    language_model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    resampling: ResamplingConfig = field(default_factory=ResamplingConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint_minutes: float | None = None
    """Minutes between two checkpoints; by default 10, unless `checkpoint_steps` is given."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints, instead of `checkpoint_minutes`."""
    keep_checkpoints: bool = False
    """Whether to keep the last checkpoints after the SAEs are saved."""
    log_steps: int = 25
    """Steps between two rows of metrics.jsonl."""
    threads: int | None = None
    """CPU threads; by default all cores. Stored when the run starts, because a resumed run must use the same number."""

    def __post_init__(self) -> None:
        if not self.saes:
            raise ValueError("saes is empty. Give at least one SAE to train.")
        names = [sae.folder for sae in self.saes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"saes lists the same SAE twice: {', '.join(twice)}. Remove one, or change its seed.")
        at_least("log_steps", self.log_steps, 1)
        at_least("checkpoint_steps", self.checkpoint_steps, 1)
        between("checkpoint_minutes", self.checkpoint_minutes, 0, 1e6)
        at_least("threads", self.threads, 1)
        if self.num_steps < 1:
            raise ValueError(
                f"tokens={self.data.tokens} is less than one batch of batch_size="
                f"{self.optim.batch_size}. Raise tokens or lower batch_size."
            )
        for sae in self.saes:
            self._check_resampling(sae)

    @property
    def num_steps(self) -> int:
        """The number of optimiser steps."""
        return self.data.tokens // self.optim.batch_size

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites to harvest, without repetition, in the order of the SAEs."""
        return tuple(dict.fromkeys(sae.site for sae in self.saes))

    def resampling_steps(self, sae: SAEConfig) -> tuple[int, ...]:
        """The steps at which an SAE's dead latents are resampled."""
        steps_per = {"share": self.num_steps, "steps": 1, "tokens": 1 / self.optim.batch_size}
        return tuple(round(moment * steps_per[self.resampling.unit]) for moment in sae.resample_at or ())

    def resolve(self, model: ModelFacts) -> "ResolvedRun":
        """Fill in every default, and check that all settings fit together.

        Args:
            model: The language model of the run, or its facts.

        Raises:
            ValueError: settings do not fit the model or each other, or would have no effect.
        """
        if self.checkpoint_minutes is not None and self.checkpoint_steps is not None:
            raise ValueError(
                f"checkpoint_minutes={self.checkpoint_minutes:g} has no effect with checkpoint_steps="
                f"{self.checkpoint_steps}. Leave one of them out."
            )
        located = replace(self, language_model=self.language_model.resolve(model.device), data=self.data.located())
        decided = decide(located, model)
        if decided.data.context > model.context:
            raise ValueError(
                f"context={decided.data.context} is more than the {model.context} positions of {model.name}. Lower it."
            )
        if decided.data.buffer_tokens < self.optim.batch_size and self.data.cache_tokens is None:
            raise ValueError(
                f"buffer_tokens={decided.data.buffer_tokens} is less than batch_size={self.optim.batch_size}, but a "
                "batch must fit into the buffer. Raise buffer_tokens or lower batch_size."
            )
        _check_window(decided)
        if any(sae.resample_at for sae in decided.saes):
            _check_dip(decided)
        else:
            _check_no_resampling(decided)
        return decided

    def _check_resampling(self, sae: SAEConfig) -> None:
        for moment, step in zip(sae.resample_at or (), self.resampling_steps(sae), strict=True):
            if not 0 < step < self.num_steps:
                raise ValueError(
                    f"resample_at={moment:g} ({self.resampling.unit}) is step {step}, but the run has "
                    f"{self.num_steps} steps, so it would have no effect. Choose a moment inside the run, and "
                    "check resampling.unit (share, steps or tokens)."
                )


@dataclass(frozen=True, kw_only=True)
class ResolvedRun(RunConfig):
    """`RunConfig` with every default filled in."""

    saes: tuple[ResolvedSAE, ...] = field()
    data: ResolvedData = field()
    optim: ResolvedOptim = field()
    resampling: ResolvedResampling = field()
    threads: int = field()

    def resolve(self, model: ModelFacts) -> "ResolvedRun":
        """Return the same settings, which are resolved already."""
        return self

    def on_device(self, device: str) -> "ResolvedRun":
        """The same settings, with language model and SAEs on another device."""
        return replace(self, language_model=self.language_model.on_device(device))

    def with_saes(self, saes: Sequence[SAEConfig], model: ModelFacts) -> "ResolvedRun":
        """The same settings with other SAEs, whose defaults are filled in.

        Raises:
            ValueError: two SAEs have the same name, or an SAE resamples outside the run.
        """
        return replace(self, saes=tuple(_resolve_sae(self, sae, model) for sae in saes))


def decide(config: RunConfig, model: ModelFacts) -> ResolvedRun:
    """Fill in every default. Unlike `RunConfig.resolve`, this does not check that every setting has an effect."""
    optim, resampling = config.optim, config.resampling
    precision = "bfloat16" if config.language_model.device.startswith("cuda") else "float32"
    window_tokens = resampling.window_tokens or default_window_tokens(config.data.tokens)
    lr_dip_steps = resampling.lr_dip_steps or default_dip_steps(config.num_steps)
    # Activations beyond `tokens` would never be used.
    buffer_tokens = max(2, min(DEFAULT_BUFFER_TOKENS, config.data.tokens))
    minutes = CHECKPOINT_MINUTES if config.checkpoint_minutes is None else config.checkpoint_minutes
    decided = values_of(
        config,
        saes=tuple(_resolve_sae(config, sae, model) for sae in config.saes),
        data=config.data.resolve(lambda: min(model.context, LONGEST_CONTEXT), buffer_tokens=buffer_tokens),
        optim=ResolvedOptim(**values_of(optim, encoder_precision=optim.encoder_precision or precision)),
        resampling=ResolvedResampling(**values_of(resampling, window_tokens=window_tokens, lr_dip_steps=lr_dip_steps)),
        threads=config.threads or torch.get_num_threads(),
        checkpoint_minutes=None if config.checkpoint_steps else minutes,
    )
    return ResolvedRun(**decided)


def _resolve_sae(config: RunConfig, sae: SAEConfig, model: ModelFacts) -> ResolvedSAE:
    return resolve_sae(
        sae, model, num_steps=config.num_steps, warmup_share=config.optim.warmup_share, unit=config.resampling.unit
    )


def _check_window(run: ResolvedRun) -> None:
    """Raise ValueError if no latent can count as dead, or none can when dead latents are resampled."""
    window, batch, unit = run.resampling.window_tokens, run.optim.batch_size, run.resampling.unit
    tokens = run.num_steps * batch
    if window >= tokens:
        raise ValueError(
            f"resampling.window_tokens={window} is not below the {tokens} tokens of the run, so no latent would ever "
            f"count as dead. Lower it (default: {default_window_tokens(tokens)}), or raise tokens."
        )
    for sae in run.saes:
        steps = run.resampling_steps(sae)
        for moment, step in zip(sae.resample_at, steps, strict=True):
            if step * batch < window:
                raise ValueError(
                    f"resample_at={moment:g} ({unit}) is after {step * batch} tokens. Latents can count as dead only "
                    f"after resampling.window_tokens={window}, so nothing would be resampled. Choose a later moment or "
                    "a smaller window."
                )
            if steps.count(step) > 1:
                raise ValueError(
                    f"resample_at={moment:g} ({unit}) has no effect, because another moment is the same step {step}. "
                    "Leave one of them out."
                )


def _check_dip(run: ResolvedRun) -> None:
    """Raise ValueError if lr_dip_steps is set although the learning rate does not dip."""
    steps = run.resampling.lr_dip_steps
    if run.resampling.lr_dip == 1 and steps != default_dip_steps(run.num_steps):
        raise ValueError(
            f"resampling.lr_dip_steps={steps} has no effect with resampling.lr_dip=1, which does not change the "
            "learning rate. Leave one of them out."
        )


def _check_no_resampling(run: ResolvedRun) -> None:
    """Raise ValueError for settings of resampling that never happens, except `window_tokens`, which has another use."""
    settings = run.resampling
    idle = ResolvedResampling(window_tokens=settings.window_tokens, lr_dip_steps=default_dip_steps(run.num_steps))
    changed = [
        f"resampling.{name}={value!r}" for name, value in values_of(settings).items() if value != getattr(idle, name)
    ]
    if changed:
        raise ValueError(
            f"{', '.join(changed)} has no effect: no SAE of this run resamples its dead latents. Leave it out, or set "
            "resample_at."
        )
