"""`eval`, `report` and `info`: what looks at a run, an SAE or a model that is there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from penstock.cli.output import Flat, Usage, given, print_records, write_figures
from penstock.formats import load_sae
from penstock.language_models.loading import LanguageModel
from penstock.runs import sweep as study
from penstock.runs.environment import versions
from penstock.runs.run_lock import locked
from penstock.training.config import EvalConfig
from penstock.training.outcome import outcome_of


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


def evaluate(options: Eval) -> None:
    if not options.path:
        raise Usage("There is nothing to evaluate: give a run's directory or folders of SAEs.")
    run = options.path[0]
    if len(options.path) == 1 and (run / "config.json").exists():
        idle = given(options, Eval(path=options.path))
        if idle:
            raise Usage(
                f"A run is evaluated as its config.json says, so {', '.join(idle)} would have no effect. Give "
                f"the folders of its SAEs ({run}/saes/NAME) to evaluate them in another way."
            )
        config = study.read_config(run)
        with locked(run):
            records = study.evaluate_run(run, study.load_model(config))
            write_figures(run)
    else:
        names = ("model", "dtype", "device", "text", "text_field")
        settings = {name: getattr(options, name) for name in names}
        records = study.evaluate_saes(options.path, options.eval, **settings)
    print_records(records)


def report(options: Report) -> None:
    write_figures(options.run)


def info(options: Info) -> None:
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
        diverged = outcome_of(config, options.path).diverged
        for sae in config.saes:
            print(f"  {sae.folder}  lr {sae.lr:g} ({sae.lr_rule}){'  diverged' if sae.folder in diverged else ''}")
    else:
        sae, facts = load_sae(options.path)
        print(f"{options.path}: {sae.arch}, d_in {sae.d_in}, d_sae {sae.d_sae}")
        _print_pairs({"format": facts.format, **facts.settings.to_json(), **facts.metadata})


def _print_pairs(pairs: dict[str, Any]) -> None:
    for key, value in pairs.items():
        print(f"  {key}: {value}")
