"""`penstock eval`, `report` and `info`: commands for existing runs, SAEs and models."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from penstock.cli.output import Flat, Usage, given, print_records, write_figures
from penstock.devices import AUTO
from penstock.formats import load_sae
from penstock.language_models.loading import NO_LIMIT, LanguageModel
from penstock.reports.data.run_data import read_records
from penstock.runs.environment import versions
from penstock.runs.load_model import config_to_measure, load_model
from penstock.runs.run_evaluation import evaluate_run, evaluate_saes
from penstock.runs.run_lock import is_locked, locked
from penstock.shell import quoted, resume_command
from penstock.training.metrics_log import read_metrics
from penstock.training.outcome import Outcome, outcome_of
from penstock.training.settings import EvalConfig
from penstock.training.settings.config_file import read_config


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Evaluate saved SAEs, or all SAEs of a run again, on held-out tokens."""

    path: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """A run's directory, or the folders of SAEs (runs/demo/saes/NAME) of one language model."""
    model: str | None = None
    """Language model; by default the one that the SAEs were trained on."""
    dtype: str = "float32"
    """Precision of the language model."""
    device: str | None = None
    """Device of the language model and the SAEs: cpu, cuda or cuda:1. The default for runs is the device that they were
    trained on, and for folders of SAEs cuda on a machine with a GPU."""
    text: str | None = None
    """Text; by default the one that the SAEs were trained on."""
    text_field: str | None = None
    """Column of the text in .jsonl, .parquet and datasets; by default the same as in training, or `text`."""
    trust_remote_code: bool = False
    """Run code that comes with the language model. Only for sources you trust."""
    eval: Annotated[EvalConfig, Flat] = field(default_factory=EvalConfig)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write report.html, pareto.png, pareto.svg and pareto.csv of a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """Describe a language model, a run or a saved SAE. Without arguments, print the versions of packages."""

    path: Annotated[Path | None, tyro.conf.Positional] = None
    """A run's directory, an SAE's folder or a language model's folder."""
    model: str | None = None
    """A language model, to list its sites: `embedded`, a local folder, or a name on the Hugging Face Hub."""
    dtype: str = "float32"
    """Precision of the language model."""
    device: str = "cpu"
    """Device of the language model: cpu, cuda or cuda:1."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Run code that comes with the language model. Only for sources you trust."""


def evaluate_again(options: Eval) -> None:
    if not options.path:
        raise Usage("PATH is missing. Give a run's directory or folders of SAEs to evaluate.")
    run = options.path[0]
    if len(options.path) == 1 and (run / "config.json").exists():
        idle = given(
            options, Eval(path=options.path, device=options.device, trust_remote_code=options.trust_remote_code)
        )
        if idle:
            raise Usage(
                f"A run is evaluated with the settings in its config.json, so {', '.join(idle)} would have no effect. "
                f"Give the folders of its SAEs ({run}/saes/NAME) to evaluate them with other settings."
            )
        config = config_to_measure(run, options.device)
        with locked(run):
            model = load_model(config, trust_remote_code=options.trust_remote_code)
            records = evaluate_run(run, model)
            write_figures(run)
    else:
        names = ("model", "dtype", "text", "text_field", "trust_remote_code")
        settings = {name: getattr(options, name) for name in names}
        records = evaluate_saes(options.path, options.eval, device=options.device or AUTO, **settings)
    print_records(records)


def report(options: Report) -> None:
    write_figures(options.run)


def info(options: Info) -> None:
    path = options.path
    model = options.model
    if path is not None and model is None and _is_model(path):
        model, path = str(path), None
    if model is not None:
        _print_model(model, options)
    else:
        blank = Info(path=options.path)
        idle = given(options, blank)
        if idle:
            raise Usage(f"{', '.join(idle)} would have no effect without a language model. Give one with --model.")
    if path is None:
        if model is None:
            _print_pairs(versions())
    elif (path / "config.json").exists():
        _print_run(path)
    else:
        sae, facts = load_sae(path)
        print(f"{path}: {sae.arch}, d_in {sae.d_in}, d_sae {sae.d_sae}")
        _print_pairs({"format": facts.format, **facts.settings.to_json(), **facts.metadata})


def _print_run(run_dir: Path) -> None:
    """Print a run's state, and the L0 of each SAE from its evaluation, or otherwise from the training log."""
    config = read_config(run_dir)
    outcome = outcome_of(config, run_dir)
    records = {one["name"]: one for one in read_records(run_dir)} if (run_dir / "records.jsonl").exists() else {}
    log = run_dir / "metrics.jsonl"
    logged = {row["sae"]: row for row in read_metrics(log).rows} if log.exists() else {}
    step = max((int(row["step"]) for row in logged.values()), default=0)
    print(f"{run_dir}: a run of {len(config.saes)} SAEs, {config.num_steps:,} steps")
    print(f"state: {_state(run_dir, outcome, is_evaluated=bool(records), step=step)}")
    for sae in config.saes:
        name = sae.folder
        if name in outcome.diverged:
            l0 = "diverged"
        elif name in records:
            l0 = f"L0 {_number(records[name]['l0'])}"
        else:
            l0 = f"L0 {_number(logged[name]['l0'])} in training" if name in logged else "L0 not measured yet"
        print(f"  {name}  {l0}  lr {sae.lr:g} ({sae.lr_rule})")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _state(run_dir: Path, outcome: Outcome, *, is_evaluated: bool, step: int) -> str:
    if is_locked(run_dir):
        return f"running, {'evaluation' if not outcome.missing else f'step {step:,} or later'}"
    if outcome.missing:
        return f"stopped, step {step:,} is the last one logged. Continue with: {resume_command(run_dir)}"
    if not outcome.finished:
        return "diverged"
    if not is_evaluated:
        return f"trained, not evaluated. Evaluate with: {quoted(['penstock', 'eval', str(run_dir)])}"
    return "finished" if not outcome.diverged else f"finished, {len(outcome.diverged)} of its SAEs diverged"


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a language model. A run has a config.json as well."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "saes" not in config and bool({"model_type", "architectures"} & set(config))


def _print_model(name: str, options: Info) -> None:
    model = LanguageModel.load(
        name,
        dtype=options.dtype,
        device=options.device,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    context = "not stated" if model.context >= NO_LIMIT else f"{model.context:,}"
    print(f"{name}: {model.num_layers} layers, context {context}, vocabulary {model.vocab_size:,}")
    for site in model.site_names:
        print(f"  {site:<16} {_width(model, site)}")
    print(f"  and the input or output of any module, for example {model.example_site}")


def _width(model: LanguageModel, site: str) -> str:
    try:
        return f"d_in {model.d_in(site)}"
    except ValueError as error:
        return f"cannot be used: {error}"


def _print_pairs(pairs: dict[str, Any]) -> None:
    for key, value in pairs.items():
        print(f"  {key}: {value}")
