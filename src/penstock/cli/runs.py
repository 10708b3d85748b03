"""`train` and `sweep`: from options to a run, its records and its report."""

import dataclasses
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from penstock.cli.output import Flat, Usage, comparison_sentences, given, print_records, write_figures
from penstock.kernels.threads import cpu_threads
from penstock.language_models.loading import LanguageModel
from penstock.runs import sweep as study
from penstock.runs.run_lock import locked
from penstock.training.config import (
    DataConfig,
    EvalConfig,
    LanguageModelConfig,
    OptimConfig,
    ResamplingConfig,
    RunConfig,
    SAEConfig,
)
from penstock.training.trackers import TRACKERS, check_trackers

RecipeName = Literal["paper_clipped", "paper", "norm_weighted", "norm_weighted_frozen"]

DEFAULT_L0 = (8.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What `train` and `sweep` have in common."""

    out: Path | None = None
    """Directory of the run."""
    resume: Path | None = None
    """Continue the run in this directory from its last checkpoint; takes no other setting."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Run the settings of this config.json again, with a new --out; takes no other setting."""
    language_model: Annotated[LanguageModelConfig, Flat] = field(default_factory=LanguageModelConfig)
    data: Annotated[DataConfig, Flat] = field(default_factory=DataConfig)
    optim: Annotated[OptimConfig, Flat] = field(default_factory=OptimConfig)
    resampling: ResamplingConfig = field(default_factory=ResamplingConfig)
    eval: Annotated[EvalConfig, Flat] = field(default_factory=EvalConfig)
    checkpoint_minutes: float = 10.0
    """Time between two checkpoints."""
    checkpoint_steps: int | None = None
    """Checkpoint every so many steps instead."""
    keep_checkpoints: bool = False
    """Keep the last checkpoints when the SAEs are saved."""
    log_steps: int = 25
    """Steps between two rows of metrics.jsonl."""
    threads: int | None = None
    """CPU threads; all cores if left open."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also log to these (optional extras)."""

    def settings(self, model: LanguageModel) -> RunConfig:
        """The run these options describe."""
        names = [f.name for f in dataclasses.fields(RunConfig) if f.name != "saes"]
        return RunConfig(saes=self.saes(model), **{name: getattr(self, name) for name in names})

    def saes(self, model: LanguageModel) -> tuple[SAEConfig, ...]:
        """The SAEs these options describe."""
        raise AssertionError("train and sweep each say which SAEs they mean")


@dataclass(frozen=True, kw_only=True)
class Train(_Run):
    """Train one SAE, evaluate it on held-out tokens, and write its report."""

    arch: Literal["gated", "relu"] = "gated"
    """Architecture."""
    site: str | None = None
    """Where in the language model; the residual stream in the middle if left open. See `penstock info`."""
    d_sae: int | None = None
    """Number of latents; 8 times the site's width if left open."""
    recipe: RecipeName | None = None
    """Training recipe; the arm's default if left open (docs/training.md)."""
    target_l0: float | None = None
    """Firing latents per token to steer to; 32 if neither this nor --sparsity-coef nor --paper-lambda is given."""
    sparsity_coef: float | None = None
    """Weight of the sparsity penalty instead of a target."""
    paper_lambda: float | None = None
    """The same as the paper states it, for raw activations and errors divided by d_in (docs/training.md)."""
    seed: int = 0
    """Seed of the initial weights."""
    lr: float | None = None
    """Learning rate; chosen by the arm's rule if left open."""
    beta1: float | None = None
    """Adam's first-moment decay; the recipe's if left open."""
    grad_clip: float | None = None
    """Largest gradient norm, 0 for none; the recipe's if left open."""
    decoder_init_norm: float | None = None
    """Norm of the decoder rows at the start; the recipe's if left open."""
    resample_at: tuple[float, ...] | None = None
    """When to resample dead latents, in --resampling.unit; the recipe's if left open."""

    def saes(self, model: LanguageModel) -> tuple[SAEConfig, ...]:
        site = self.site or model.middle_site
        aims = (self.target_l0, self.sparsity_coef, self.paper_lambda)
        target = 32.0 if aims == (None, None, None) else self.target_l0
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
        d_sae = 8 * model.d_in(site) if self.d_sae is None else self.d_sae
        return (SAEConfig(site=site, d_sae=d_sae, recipe=self.recipe, target_l0=target, **settings),)


@dataclass(frozen=True, kw_only=True)
class Sweep(_Run):
    """Train every combination of the given values on one stream, evaluate, compare, and write a report."""

    archs: tuple[Literal["gated", "relu"], ...] = ("gated", "relu")
    """Architectures."""
    sites: tuple[str, ...] = ()
    """Sites; the residual stream in the middle if left open. See `penstock info --model NAME`."""
    d_sae: tuple[int, ...] = ()
    """Numbers of latents; 8 times the site's width if left open."""
    recipes: tuple[RecipeName, ...] = ()
    """Training recipes; each arm's default if left open (docs/training.md)."""
    target_l0: tuple[float, ...] = ()
    """Firing latents per token to steer to; 8 16 32 64 if neither this nor --sparsity-coef nor --paper-lambda is given.
    """
    sparsity_coef: tuple[float, ...] = ()
    """Weights of the sparsity penalty instead of targets."""
    paper_lambda: tuple[float, ...] = ()
    """The same as the paper states them, for raw activations and errors divided by d_in (docs/training.md); Gated SAEs
    alone have them, and ReLU SAEs the targets or weights given besides."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the initial weights."""
    lr: tuple[float, ...] = ()
    """Learning rates to try; each arm's rule chooses one if left open."""

    def saes(self, model: LanguageModel) -> tuple[SAEConfig, ...]:
        return tuple(
            SAEConfig(
                arch=arch,
                recipe=recipe,
                site=site,
                d_sae=d_sae,
                seed=seed,
                lr=lr,
                **aim,
            )
            for site in self.sites or (model.middle_site,)
            for d_sae in self.d_sae or (8 * model.d_in(site),)
            for arch in self.archs
            for recipe, aim, seed, lr in product(
                self.recipes or (None,), self._aims(arch), self.seeds, self.lr or (None,)
            )
        )

    def _aims(self, arch: str) -> list[dict[str, Any]]:
        """How sparse the SAEs of an architecture shall be; the paper's lambdas are a Gated SAE's alone."""
        targets = self.target_l0 or (() if self.sparsity_coef or self.paper_lambda else DEFAULT_L0)
        lambdas = () if arch == "relu" and (targets or self.sparsity_coef) else self.paper_lambda
        given = {"target_l0": targets, "sparsity_coef": self.sparsity_coef, "paper_lambda": lambdas}
        return [{name: value} for name, values in given.items() for value in values]


def train(options: Train | Sweep) -> None:
    check_trackers(options.track)
    folder, model = _prepared(options)
    trackers = tuple(TRACKERS[name](folder) for name in options.track)
    with locked(folder), cpu_threads(study.read_config(folder).threads):
        study.train(folder, model, trackers)
        records = study.evaluate_run(folder, model)
        print_records(records)
        for sentence in comparison_sentences(folder):
            print(sentence)
        write_figures(folder)


def _prepared(options: Train | Sweep) -> tuple[Path, LanguageModel]:
    """The directory of a run that can be trained, and its model; settings that cannot be are a usage error."""
    trusted = options.language_model.trust_remote_code
    try:
        if options.resume is not None:
            _alone(options, "--resume")
            config = study.read_config(options.resume)
            with locked(options.resume):
                # Refused before the model is loaded, if another process works on it.
                pass
            return options.resume, study.load_model(config, trust_remote_code=trusted)
        if options.from_ is not None:
            _alone(options, "--from", "--out")
        if options.out is None:
            raise Usage("--out is missing: give the directory that this run shall have, e.g. --out runs/first.")
        study.check_run_dir(options.out)
        if options.from_ is not None:
            config = study.config_from_file(options.from_)
            model = study.load_model(config, trust_remote_code=trusted)
        else:
            model = study.load_language_model(options.language_model)
            config = options.settings(model)
        study.prepare(config, options.out, model)
    except (ValueError, FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise Usage(str(error)) from error
    return options.out, model


_OF_THIS_COMMAND = ("--track", "--trust-remote-code")
"""Flags that are no settings of the run, or that its config.json cannot give."""


def _alone(options: Train | Sweep, flag: str, *allowed: str) -> None:
    """Refuse settings beside --resume or --from, where they would have no effect."""
    idle = [name for name in given(options, type(options)()) if name not in (flag, *allowed, *_OF_THIS_COMMAND)]
    if idle:
        raise Usage(
            f"{flag} takes every setting from the run's config.json, so {', '.join(idle)} would have no effect. "
            f"Leave them out, or start a new run without {flag}."
        )
