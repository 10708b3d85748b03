"""`penstock train` and `penstock sweep`: train and evaluate a run, and write its report."""

import dataclasses
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from penstock.cli.architecture_options import aims_of, own_names
from penstock.cli.output import Flat, Usage, comparison_sentences, given, print_records, print_saes, write_figures
from penstock.devices import AUTO, resolve_device
from penstock.kernels.threads import cpu_threads
from penstock.language_models.loading import LanguageModel
from penstock.runs import sweep
from penstock.runs.load_model import load_language_model, load_model
from penstock.runs.run_evaluation import evaluate_run
from penstock.runs.run_lock import locked
from penstock.saes import ARCHITECTURES, BASELINE, DEFAULT_ARCH, training_of
from penstock.training.outcome import outcome_of
from penstock.training.settings import (
    DataConfig,
    EvalConfig,
    LanguageModelConfig,
    OptimConfig,
    ResamplingConfig,
    RunConfig,
    SAEConfig,
)
from penstock.training.settings.config_file import config_from_file, read_config
from penstock.training.trackers import TRACKERS, check_trackers

DEFAULT_L0 = (8.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The options that `train` and `sweep` have in common."""

    out: Path | None = None
    """A new directory for the run: settings, SAEs, records and report."""
    resume: Path | None = None
    """Continue the run in this directory. Other settings cannot be given."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Repeat the run of this config.json in a new --out. Other settings cannot be given."""
    language_model: Annotated[LanguageModelConfig, Flat] = field(default_factory=LanguageModelConfig)
    data: Annotated[DataConfig, Flat] = field(default_factory=DataConfig)
    optim: Annotated[OptimConfig, Flat] = field(default_factory=OptimConfig)
    resampling: ResamplingConfig = field(default_factory=ResamplingConfig)
    eval: Annotated[EvalConfig, Flat] = field(default_factory=EvalConfig)
    checkpoint_minutes: float | None = None
    """Minutes between two checkpoints; by default 10, unless --checkpoint-steps is given."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints, instead of --checkpoint-minutes."""
    keep_checkpoints: bool = False
    """Keep the last checkpoints after the SAEs are saved."""
    log_steps: int = 25
    """Steps between two rows in metrics.jsonl."""
    threads: int | None = None
    """CPU threads to use; by default all cores."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also log to TensorBoard or Weights & Biases; needs the extra of that name."""

    def settings(self, model: LanguageModel) -> RunConfig:
        """The run that these options describe."""
        names = [f.name for f in dataclasses.fields(RunConfig) if f.name != "saes"]
        return RunConfig(saes=self.saes(model), **{name: getattr(self, name) for name in names})

    def saes(self, model: LanguageModel) -> tuple[SAEConfig, ...]:
        """The SAEs that these options describe."""
        raise AssertionError("train and sweep override this method")


@dataclass(frozen=True, kw_only=True)
class Train(_Run):
    """Train one SAE, evaluate it on held-out tokens, and write its report."""

    arch: str = DEFAULT_ARCH
    """Architecture of the SAE."""
    site: str | None = None
    """Site in the language model (see `penstock info --model NAME`); by default the residual stream in the middle."""
    d_sae: int | None = None
    """Number of latents; by default 8 times the width of the site."""
    recipe: str | None = None
    """Training recipe (docs/training.md); by default the architecture's."""
    target_l0: float | None = None
    """Mean number of firing latents per token, which training steers to; by default 32."""
    sparsity_coef: float | None = None
    """Weight of the sparsity penalty, instead of --target-l0."""
    paper_lambda: float | None = None
    """Weight of the penalty in the paper's units: raw activations, and errors divided by d_in (docs/training.md)."""
    seed: int = 0
    """Seed of the initial weights."""
    lr: float | None = None
    """Learning rate; by default chosen by a rule (docs/training.md)."""
    beta1: float | None = None
    """Decay of Adam's first moment; by default the recipe's."""
    grad_clip: float | None = None
    """Largest gradient norm, 0 for no limit; by default the recipe's."""
    decoder_init_norm: float | None = None
    """Norm of the decoder rows at the start; by default the recipe's."""
    resample_at: tuple[float, ...] | None = None
    """When to resample dead latents, in the unit of --resampling.unit; by default the recipe's."""

    def saes(self, model: LanguageModel) -> tuple[SAEConfig, ...]:
        site = self.site or model.middle_site
        aims = (self.target_l0, self.sparsity_coef, self.paper_lambda)
        steered = aims == (None, None, None) and "target_l0" in training_of(self.arch).aims
        target = 32.0 if steered else self.target_l0
        own = (
            "arch",
            "sparsity_coef",
            "paper_lambda",
            "seed",
            "lr",
            "beta1",
            "grad_clip",
            "decoder_init_norm",
            "resample_at",
        )
        settings = {name: getattr(self, name) for name in own}
        settings["settings"] = {name: value for name, value in _own_values(self).items() if value is not None}
        d_sae = 8 * model.d_in(site) if self.d_sae is None else self.d_sae
        return (SAEConfig(site=site, d_sae=d_sae, recipe=self.recipe, target_l0=target, **settings),)


@dataclass(frozen=True, kw_only=True)
class Sweep(_Run):
    """Train SAEs with every combination of the given values on one stream, evaluate them, and write a report."""

    arch: tuple[str, ...] = (DEFAULT_ARCH, BASELINE)
    """Architectures of the SAEs."""
    site: tuple[str, ...] = ()
    """Sites in the language model (see `penstock info --model NAME`); by default the residual stream in the middle."""
    d_sae: tuple[int, ...] = ()
    """Numbers of latents; by default 8 times the width of the site."""
    recipe: tuple[str, ...] = ()
    """Training recipes (docs/training.md); by default each architecture's own."""
    target_l0: tuple[float, ...] = ()
    """Mean numbers of firing latents per token, which training steers to; by default 8 16 32 64."""
    sparsity_coef: tuple[float, ...] = ()
    """Weights of the sparsity penalty, instead of --target-l0."""
    paper_lambda: tuple[float, ...] = ()
    """Weights of the penalty in the paper's units: raw activations, and errors divided by d_in (docs/training.md). Only
    for Gated SAEs; ReLU SAEs use the --target-l0 or --sparsity-coef given as well."""
    seed: tuple[int, ...] = (0,)
    """Seeds of the initial weights."""
    lr: tuple[float, ...] = ()
    """Learning rates; by default a rule chooses one for each SAE (docs/training.md)."""

    def saes(self, model: LanguageModel) -> tuple[SAEConfig, ...]:
        self._check_effects()
        return tuple(
            SAEConfig(
                arch=arch,
                settings=settings,
                recipe=recipe,
                site=site,
                d_sae=d_sae,
                seed=seed,
                lr=lr,
                **aim,
            )
            for site in self.site or (model.middle_site,)
            for d_sae in self.d_sae or (8 * model.d_in(site),)
            for arch in self.arch
            for settings, recipe, aim, seed, lr in product(
                self._settings(arch),
                self.recipe or (None,),
                aims_of(arch, self._aims, {"target_l0": DEFAULT_L0}),
                self.seed,
                self.lr or (None,),
            )
        )

    @property
    def _aims(self) -> dict[str, tuple[float, ...]]:
        return {
            "target_l0": self.target_l0,
            "sparsity_coef": self.sparsity_coef,
            "paper_lambda": self.paper_lambda,
        }

    def _settings(self, arch: str) -> list[dict[str, Any]]:
        """All combinations of the values given for an architecture's own settings."""
        own = ARCHITECTURES[arch].settings.names()
        given = {name: values for name, values in _own_values(self).items() if name in own and values}
        return [dict(zip(given, values, strict=True)) for values in product(*given.values())]

    def _check_effects(self) -> None:
        """Raise ValueError for options that none of the architectures takes."""
        taken = {
            name for arch in self.arch for name in (*ARCHITECTURES[arch].settings.names(), *training_of(arch).aims)
        }
        given = [name for name, values in {**_own_values(self), **self._aims}.items() if values]
        idle = [f"--{name.replace('_', '-')}" for name in given if name not in taken]
        if idle:
            raise ValueError(
                f"{', '.join(idle)} has no effect on {', '.join(self.arch)}. Leave it out, or train an architecture "
                "that takes it."
            )


def _own_values(options: Train | Sweep) -> dict[str, Any]:
    """The given values of architectures' own settings, by name."""
    return {name: getattr(options, name) for name in own_names() if hasattr(options, name)}


def train_and_evaluate(options: Train | Sweep) -> None:
    check_trackers(options.track)
    folder, model = _prepared(options)
    trackers = tuple(TRACKERS[name](folder) for name in options.track)
    with locked(folder), cpu_threads(read_config(folder).threads):
        sweep.train(folder, model, trackers)
        records = evaluate_run(folder, model)
        print_records(records)
        for sentence in comparison_sentences(folder):
            print(sentence)
        write_figures(folder)
        print_saes(folder, outcome_of(read_config(folder), folder))


def _prepared(options: Train | Sweep) -> tuple[Path, LanguageModel]:
    """The directory of a run that is ready to train, and its language model.

    Raises:
        Usage: the settings cannot be trained with, or the directory cannot be used.
    """
    trusted, device = options.language_model.trust_remote_code, options.language_model.device
    try:
        if options.resume is not None:
            _alone(options, "--resume")
            config = read_config(options.resume)
            if device != AUTO:
                config = config.on_device(resolve_device(device))
            with locked(options.resume):
                # Raises before the model is loaded if another process works on the run.
                pass
            return options.resume, load_model(config, trust_remote_code=trusted)
        if options.from_ is not None:
            _alone(options, "--from", "--out")
        if options.out is None:
            raise Usage("--out is missing. Give a directory for this run, e.g. --out runs/first.")
        sweep.check_run_dir(options.out)
        if options.from_ is not None:
            config = config_from_file(options.from_)
            if device != AUTO:
                config = replace(config, language_model=config.language_model.on_device(device))
            model = load_model(config, trust_remote_code=trusted)
        else:
            model = load_language_model(options.language_model)
            config = options.settings(model)
        sweep.prepare(config, options.out, model)
    except (ValueError, FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise Usage(str(error)) from error
    return options.out, model


_OF_THIS_COMMAND = ("--track", "--trust-remote-code", "--device")
"""Flags that --resume and --from allow: they are not stored in a run's config.json, or may differ from it."""


def _alone(options: Train | Sweep, flag: str, *allowed: str) -> None:
    """Raise Usage for settings given with --resume or --from, where they would have no effect."""
    idle = [name for name in given(options, type(options)()) if name not in (flag, *allowed, *_OF_THIS_COMMAND)]
    if idle:
        raise Usage(
            f"{flag} takes every setting from the run's config.json, so {', '.join(idle)} would have no effect. "
            f"Leave them out, or start a new run without {flag}."
        )
