"""`penstock reproduce`: trains, evaluates and studies a preset of the paper's experiments, and writes one page."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

from penstock.cli.output import Usage, write_figures
from penstock.cli.studies import write_study
from penstock.devices import AUTO
from penstock.paper.preset import Cited, Preset, SitePreset
from penstock.paper.presets import PRESETS
from penstock.paper.reproduction import Plan, foreseen, reproduce
from penstock.reports.pages.published import write_published
from penstock.reports.pages.reproduction_page import write_reproduction_page
from penstock.runs.estimate import Estimate, estimate
from penstock.runs.splitting import GIB
from penstock.studies import STUDIES
from penstock.training.settings import ResolvedRun
from penstock.training.trainer import DivergenceError

SPEEDS = {
    "2 CPU cores, see benchmarks/README.md (scaling, batch 4096); small SAEs take several times as long": 1.5e11,
    "one H100 at the peak of its datasheet (bfloat16, dense), not measured": 9.9e14,
}
"""Operations per second of the machines for which a dry run estimates times."""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Run the paper's experiments on a model and write one page. The same command continues a stopped reproduction."""

    preset: Annotated[Literal["embedded", "gelu-1l", "pythia-2.8b", "gemma-7b"], tyro.conf.Positional]
    """The experiments, by language model; `embedded` needs no network."""
    out: Path | None = None
    """Directory of the reproduction; by default runs/reproduce-PRESET."""
    quick: bool = False
    """Use one site, the lowest and highest L0, and few steps: enough to see that it works, too few for conclusions."""
    dry_run: bool = False
    """Only print the SAEs that would be trained, with tokens, memory and a lower bound of the time."""
    model: str | None = None
    """Another path of the same language model, e.g. a local folder."""
    device: str = AUTO
    """Device of the language model and the SAEs: cpu, cuda or cuda:1; auto is cuda on a machine with a GPU."""
    memory: float | None = None
    """Memory limit in GiB (see --dry-run). Runs and studies that need more to train are trained in parts, one after the
    other. Evaluation holds as many SAEs at once as fit next to the language model."""

    def __post_init__(self) -> None:
        if self.memory is not None and not self.memory > 0:
            raise ValueError(f"memory={self.memory} is out of range: it must be above 0, in GiB.")


def run_preset(options: Reproduce) -> None:
    """Reproduce a preset and write its pages, or, in a dry run, only print the plan."""
    preset = PRESETS[options.preset]
    preset = preset.quick() if options.quick else preset
    max_bytes = None if options.memory is None else round(options.memory * GIB)
    plans = preset.plans(model=options.model, device=options.device, max_bytes=max_bytes)
    if options.preset == "gelu-1l" and options.model is None and not options.dry_run:
        raise Usage(
            "GELU-1L is not published in a Hugging Face format. Convert it with `penstock convert-gelu-1l FOLDER OUT` "
            "(see docs/studies.md), and give --model OUT."
        )
    if options.dry_run:
        _tell(preset, plans, options.memory)
        return
    out = options.out or Path("runs") / f"reproduce-{preset.name}"
    sites = {site.name: site for site in preset.sites}
    studies: dict[str, tuple[str, ...]] = {}
    for number, (name, plan) in enumerate(plans.items(), start=1):
        print(f"run {number} of {len(plans)}: {out / name}", flush=True)
        try:
            made = reproduce(plan, out / name)
        except DivergenceError as error:
            # Training is deterministic. Stopping here would stop every call at this point, before the other sites.
            print(f"warning: {out / name} is left out. {error}", file=sys.stderr)
            continue
        studies[name] = tuple(made)
        write_published(out / name, sites[name])
        write_figures(out / name)
        for study, records in made.items():
            for line in write_study(out / name, STUDIES[study], records):
                print(line)
    title = f"Gated sparse autoencoders: the paper's experiments, {preset.name}"
    page = write_reproduction_page(out, studies, title, sites)
    print(f"page: {page}")


class _Cost(NamedTuple):
    """The estimated cost of a run."""

    config: ResolvedRun
    whole: Estimate
    parts: Sequence[Estimate]
    """The costs of its parts; only `whole` if the run is not divided or cannot be divided."""
    too_large: str = ""
    """The reason why it cannot be divided into parts that fit."""


def _tell(preset: Preset, plans: Mapping[str, Plan], memory: float | None) -> None:
    """Print the plan of a preset, without loading a model."""
    _tell_training(preset, plans, memory)
    print("deviations from the paper:")
    for deviation in preset.deviations:
        print(f"  - {deviation}")
    unstated = preset.unstated()
    stated = {path: cited for path, cited in preset.cited().items() if path not in unstated}
    _tell_settings("not stated in the paper, chosen here:", unstated)
    _tell_settings("stated in the paper or ours, each with its source:", stated)


def _tell_settings(heading: str, settings: Mapping[str, Cited]) -> None:
    """Print each setting with its source, but not the paper's results. Prints nothing if there are no settings."""
    shown = {path: cited for path, cited in settings.items() if not path.endswith(".published")}
    if shown:
        print(heading)
    for path, cited in shown.items():
        print(f"  {path}: {cited.value}  [{cited.source}]")


def _tell_training(preset: Preset, plans: Mapping[str, Plan], memory: float | None) -> None:
    """Print the SAEs that each run and study would train, the memory they need, and the total time."""
    number = "one run" if len(plans) == 1 else f"{len(plans)} runs, one for each site"
    print(f"{preset.name}: {preset.language_model['model'].value}, {number}")
    parts: list[Estimate] = []
    weights = []
    for site in preset.sites:
        run, studies = _costs(preset, site, plans[site.name])
        print(
            f"  {site.name:<14} d_in {site.d_in.value}, {_saes(run.config)}, "
            f"{run.whole.tokens:,} tokens in {run.whole.steps:,} steps, {_memory(run, memory)}"
        )
        for name, cost in studies.items():
            print(f"    {name:<12} trains {_saes(cost.config)}, on as many tokens each, {_memory(cost, memory)}")
        parts += [part for cost in (run, *studies.values()) for part in cost.parts]
        largest = max(cost.whole.bytes_parameters for cost in (run, *studies.values()))
        weights.append(run.whole.bytes_language_model + largest)
    for machine, speed in SPEEDS.items():
        hours = sum(part.hours(speed) for part in parts)
        print(f"  training: at least {_time(hours)} at {speed:.2g} operations a second ({machine})")
    held = f"all SAEs of a run or study at once (weights: up to {max(weights) / GIB:.3g} GiB, or less with --memory)"
    if memory is not None:
        held = "as many SAEs at once as fit"
    print(f"  not included: evaluation, which holds {held}, and the other studies, such as refits")


def _costs(preset: Preset, site: SitePreset, plan: Plan) -> tuple[_Cost, dict[str, _Cost]]:
    """The costs of a site's run, and of the SAEs that each of its studies trains."""
    widths = {site.name: site.d_in.value}

    def estimated(config: ResolvedRun) -> Estimate:
        return estimate(config, widths, preset.model_parameters.value, preset.num_layers.value)

    def cost(config: ResolvedRun) -> _Cost:
        whole = estimated(config)
        try:
            parts = plan.divide(config)
        except ValueError as error:
            return _Cost(config, whole, [whole], str(error))
        return _Cost(config, whole, [estimated(part) for part in parts])

    run, studies = foreseen(plan, preset.planned_model())
    return cost(run), {name: cost(config) for name, config in studies.items()}


def _saes(config: ResolvedRun) -> str:
    *others, widest = (f"{d_sae:,}" for d_sae in sorted({sae.d_sae for sae in config.saes}))
    widths = f"{', '.join(others)} and {widest}" if others else widest
    return f"{len(config.saes)} SAEs of {widths} latents"


def _time(hours: float) -> str:
    """A time as text, in a suitable unit."""
    for unit, length, least in (("years", 24 * 365, 2), ("days", 24, 2), ("hours", 1, 1)):
        if hours >= least * length:
            return f"{hours / length:.3g} {unit}"
    return f"{hours * 60:.3g} minutes"


def _memory(cost: _Cost, limit: float | None) -> str:
    """The memory that training needs, and the parts into which a limit in GiB divides it."""
    needed = f"at most {cost.whole.bytes_total / GIB:.3g} GiB of memory on its device"
    if limit is None:
        return needed
    if cost.too_large:
        return f"{needed}. It cannot be trained: {cost.too_large}"
    if len(cost.parts) == 1:
        return f"{needed}, in one piece"
    largest = max(part.bytes_total for part in cost.parts)
    return f"{needed}, in {len(cost.parts)} parts of at most {largest / GIB:.3g} GiB"
