"""The command line: the only place that parses arguments or prints."""

import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from penstock.formats.native import load_sae
from penstock.language_models.loading import LanguageModel
from penstock.reports import PlotsNotInstalled, write_pareto_figure, write_report
from penstock.studies import sweep as study
from penstock.studies.environment import versions
from penstock.training.checkpoint import CheckpointError
from penstock.training.config import (
    DataConfig,
    EvalConfig,
    LanguageModelConfig,
    OptimConfig,
    ResamplingConfig,
    RunConfig,
    SAEConfig,
)
from penstock.training.defaults import DEFAULT_RECIPE
from penstock.training.trackers import TRACKERS
from penstock.training.trainer import DivergenceError

RecipeName = Literal["paper_clipped", "paper", "norm_weighted", "norm_weighted_frozen"]
Flat = tyro.conf.arg(name="")

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
    """Firing latents per token to steer to; 32 if neither this nor --sparsity-coef is given."""
    sparsity_coef: float | None = None
    """Weight of the sparsity penalty instead of a target."""
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
        site = self.site or _middle(model)
        target = 32.0 if self.target_l0 is None and self.sparsity_coef is None else self.target_l0
        own = (
            "arch",
            "sparsity_coef",
            "seed",
            "lr",
            "beta1",
            "grad_clip",
            "decoder_init_norm",
            "resample_at",
        )
        settings = {name: getattr(self, name) for name in own}
        d_sae = 8 * model.d_in(site) if self.d_sae is None else self.d_sae
        recipe = self.recipe or DEFAULT_RECIPE[self.arch]
        return (SAEConfig(site=site, d_sae=d_sae, recipe=recipe, target_l0=target, **settings),)


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
    """Firing latents per token to steer to; 8 16 32 64 if neither this nor --sparsity-coef is given."""
    sparsity_coef: tuple[float, ...] = ()
    """Weights of the sparsity penalty instead of targets."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the initial weights."""
    lr: tuple[float, ...] = ()
    """Learning rates to try; each arm's rule chooses one if left open."""

    def saes(self, model: LanguageModel) -> tuple[SAEConfig, ...]:
        targets = self.target_l0 or (() if self.sparsity_coef else DEFAULT_L0)
        aims = [*((t, None) for t in targets), *((None, c) for c in self.sparsity_coef)]
        return tuple(
            SAEConfig(
                arch=arch,
                recipe=recipe,
                site=site,
                d_sae=d_sae,
                target_l0=target,
                sparsity_coef=coef,
                seed=seed,
                lr=lr,
            )
            for site in self.sites or (_middle(model),)
            for d_sae in self.d_sae or (8 * model.d_in(site),)
            for arch in self.archs
            for recipe, (target, coef), seed, lr in product(
                self.recipes or (DEFAULT_RECIPE[arch],), aims, self.seeds, self.lr or (None,)
            )
        )


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Evaluate saved SAEs, or all SAEs of a run again, on held-out tokens."""

    path: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """A run's directory, or the folders of SAEs (runs/demo/saes/NAME) of one language model."""
    model: str | None = None
    """Another language model than the SAEs were trained on."""
    dtype: str = "float32"
    """Precision of the language model."""
    device: str = "cpu"
    """Where the language model and the SAEs live: cpu, cuda, cuda:1, mps."""
    text: str | None = None
    """Another text than the SAEs were trained on."""
    text_field: str | None = None
    """Column of the text in .jsonl, .parquet and datasets; as in training, or `text`."""
    eval: Annotated[EvalConfig, Flat] = field(default_factory=EvalConfig)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write report.html, pareto.png, pareto.svg and pareto.csv of a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """Say what a model, a run or a saved SAE is; without arguments, what penstock is."""

    path: Annotated[Path | None, tyro.conf.Positional] = None
    """A run's directory or an SAE's folder."""
    model: str | None = None
    """A language model, to list its sites."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 failed on the way, 2 settings that cannot be."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    commands = {"sweep": Sweep, "train": Train, "eval": Eval, "report": Report, "info": Info}
    try:
        parsed: Any = tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="penstock",
            description=_PROGRAM,
            args=arguments,
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
    except ValueError as error:
        # A single setting out of range, or two that exclude each other: the dataclasses check themselves.
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        _ACTIONS[type(parsed)](parsed)
    except _Usage as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, ImportError, CheckpointError, DivergenceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # While training, the loop itself answers; here there was nothing to save.
        print("error: stopped by Ctrl-C.", file=sys.stderr)
        return 1
    return 0


_PROGRAM = "Train, evaluate and compare sparse autoencoders on the activations of language models."


class _Usage(Exception):
    """The options do not fit together."""


def _train(options: Train | Sweep) -> None:
    folder, model = _prepared(options)
    trackers = tuple(TRACKERS[name](folder) for name in options.track)
    study.train(folder, model, trackers)
    records = study.evaluate_run(folder, model)
    _print_records(records)
    _write_report(folder)


def _prepared(options: Train | Sweep) -> tuple[Path, LanguageModel]:
    """The directory of a run that can be trained, and its model; settings that cannot be are a usage error."""
    try:
        if options.resume is not None:
            _alone(options, "--resume")
            return options.resume, study.load_model(study.read_config(options.resume))
        if options.from_ is not None:
            _alone(options, "--from", "--out")
        if options.out is None:
            raise _Usage("--out is missing: give the directory that this run shall have, e.g. --out runs/first.")
        if options.from_ is not None:
            config = study.config_from_file(options.from_)
            model = study.load_model(config)
        else:
            model = study.load_language_model(options.language_model)
            config = options.settings(model)
        study.prepare(config, options.out, model)
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        raise _Usage(str(error)) from error
    return options.out, model


def _alone(options: Train | Sweep, flag: str, *allowed: str) -> None:
    """Refuse settings beside --resume or --from, where they would have no effect."""
    given = [name for name in _given(options, type(options)()) if name not in (flag, *allowed, "--track")]
    if given:
        raise _Usage(
            f"{flag} takes every setting from the run's config.json, so {', '.join(given)} would have no effect. "
            f"Leave them out, or start a new run without {flag}."
        )


def _given(options: Any, blank: Any, prefix: str = "--") -> list[str]:
    """The flags of the settings in which the options differ from `blank`."""
    found = []
    for one in dataclasses.fields(options):
        value, other = getattr(options, one.name), getattr(blank, one.name)
        flag = prefix + one.name.rstrip("_").replace("_", "-")
        if dataclasses.is_dataclass(value):
            found += _given(value, other, f"{flag}." if one.name == "resampling" else prefix)
        elif value != other:
            found.append(flag)
    return found


def _eval(options: Eval) -> None:
    if not options.path:
        raise _Usage("There is nothing to evaluate: give a run's directory or folders of SAEs.")
    run = options.path[0]
    if len(options.path) == 1 and (run / "config.json").exists():
        given = _given(options, Eval(path=options.path))
        if given:
            raise _Usage(
                f"A run is evaluated as its config.json says, so {', '.join(given)} would have no effect. Give "
                f"the folders of its SAEs ({run}/saes/NAME) to evaluate them in another way."
            )
        config = study.read_config(run)
        records = study.evaluate_run(run, study.load_model(config))
        _write_report(run)
    else:
        names = ("model", "dtype", "device", "text", "text_field")
        settings = {name: getattr(options, name) for name in names}
        records = study.evaluate_saes(options.path, options.eval, **settings)
    _print_records(records)


def _report(options: Report) -> None:
    _write_report(options.run)


def _write_report(run: Path) -> None:
    print(f"report: {write_report(run)}")
    try:
        files = write_pareto_figure(run)
        print(f"figure: {files.png}")
    except PlotsNotInstalled as error:
        print(f"no pareto.png: {error}")


def _info(options: Info) -> None:
    if options.model is not None:
        model = LanguageModel.load(options.model)
        print(f"{options.model}: {model.num_layers} layers, context {model.context}, vocabulary {model.vocab_size}")
        for site in model.site_names:
            print(f"  {site:<16} d_in {model.d_in(site)}")
        print("  and the .input or .output of any module, e.g. model.layers.0.mlp.output")
    if options.path is None:
        if options.model is None:
            _print_pairs(versions())
    elif (options.path / "config.json").exists():
        config = study.read_config(options.path)
        print(f"{options.path}: a run of {len(config.saes)} SAEs, {config.num_steps:,} steps")
        for sae in config.saes:
            print(f"  {sae.folder}  lr {sae.lr:g} ({sae.lr_rule})")
    else:
        sae, metadata = load_sae(options.path)
        print(f"{options.path}: {sae.arch}, d_in {sae.d_in}, d_sae {sae.d_sae}")
        _print_pairs(metadata)


_ACTIONS: dict[type, Callable[[Any], None]] = {
    Train: _train,
    Sweep: _train,
    Eval: _eval,
    Report: _report,
    Info: _info,
}


def _print_records(records: Sequence[dict[str, Any]]) -> None:
    print(_table(records))
    for record in records:
        for warning in record["warnings"]:
            print(f"warning: {record['name']}: {warning}", file=sys.stderr)


def _table(records: Sequence[dict[str, Any]]) -> str:
    """The main numbers of each record, aligned."""
    columns = ("name", "l0", "loss_recovered", "delta_ce", "fvu", "reconstruction_bias", "frac_alive")
    rows = [columns, *(tuple(_cell(record[column]) for column in columns) for record in records)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_pairs(pairs: dict[str, Any]) -> None:
    for key, value in pairs.items():
        print(f"  {key}: {value}")


def _middle(model: LanguageModel) -> str:
    return f"resid_post.{model.num_layers // 2}"


def run() -> None:
    """Entry point of the `penstock` command."""
    sys.exit(main())
