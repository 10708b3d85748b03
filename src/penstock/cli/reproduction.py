"""`reproduce`: a preset of the paper's experiments, from its runs to one page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from penstock.cli.output import write_figures
from penstock.cli.studies import write_study
from penstock.reports.published import published_records
from penstock.reports.reproduction_page import write_reproduction_page
from penstock.studies.estimate import estimate
from penstock.studies.preset import Cited, Preset
from penstock.studies.presets import PRESETS
from penstock.studies.reproduction import reproduce, study_run
from penstock.training.config import RunConfig

GIB = 2**30

SPEEDS = {
    "2 CPU cores, as in benchmarks/README.md (scaling, batch 4096); small SAEs take several times as long": 1.5e11,
    "one H100 at the most that its datasheet gives (bfloat16, dense), not measured": 9.9e14,
}
"""Operations a second that the times of a dry run assume, by what they are."""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Run the paper's experiments on a model and write one page; the same command goes on where it was stopped."""

    preset: Annotated[Literal["embedded", "gelu-1l", "pythia-2.8b", "gemma-7b"], tyro.conf.Positional]
    """Which experiments; `embedded` needs no network."""
    out: Path | None = None
    """Directory of the reproduction; runs/reproduce-PRESET if left open."""
    quick: bool = False
    """One site, the ends of the range of L0, few steps: to see it work, not to conclude from."""
    dry_run: bool = False
    """Only say what would be trained, on how many tokens, in how much memory and about how long."""
    model: str | None = None
    """Another place of the same language model, e.g. a local folder."""
    device: str = "cpu"
    """Where the language model and the SAEs live: cpu, cuda, cuda:1."""
    memory: float | None = None
    """GiB that training a run may need (--dry-run tells); larger runs are trained in parts, one after the other.
    Evaluation, and studies that train, still take all their SAEs at once."""

    def __post_init__(self) -> None:
        if self.memory is not None and not self.memory > 0:
            raise ValueError(f"memory={self.memory} is out of range: it must be above 0, in GiB.")


def run_preset(options: Reproduce) -> None:
    """Train, study and write; or, for a dry run, say what would be."""
    preset = PRESETS[options.preset]
    preset = preset.quick() if options.quick else preset
    max_bytes = None if options.memory is None else round(options.memory * GIB)
    plans = preset.plans(model=options.model, device=options.device, max_bytes=max_bytes)
    if options.dry_run:
        _tell(preset, {name: plan.run for name, plan in plans.items()})
        return
    out = options.out or Path("runs") / f"reproduce-{preset.name}"
    reproduce(plans, out)
    sites = {site.name: site for site in preset.sites}
    for name, plan in plans.items():
        write_figures(out / name, published_records(sites[name]) or ())
        for study, settings in plan.studies.items():
            for line in write_study(out / name, study, study_run(out / name, study, settings)):
                print(line)
    studies = {name: tuple(plan.studies) for name, plan in plans.items()}
    title = f"Gated sparse autoencoders: the paper's experiments, {preset.name}"
    page = write_reproduction_page(out, studies, title, sites)
    print(f"page: {page}")


def _tell(preset: Preset, configs: dict[str, RunConfig]) -> None:
    """What a preset would do, without its weights."""
    print(f"{preset.name}: {preset.language_model['model'].value}, {len(configs)} runs, a run for each site")
    hours = dict.fromkeys(SPEEDS, 0.0)
    for site in preset.sites:
        config = configs[site.name]
        found = estimate(config, {site.name: site.d_in.value}, preset.model_parameters.value, preset.num_layers.value)
        print(
            f"  {site.name:<14} d_in {site.d_in.value}, {len(config.saes)} SAEs of "
            f"{' and '.join(f'{d_sae:,}' for d_sae in sorted({sae.d_sae for sae in config.saes}))} latents, "
            f"{found.tokens:,} tokens in {found.steps:,} steps, at most {found.bytes_total / GIB:.3g} GiB of memory"
        )
        for machine, speed in SPEEDS.items():
            hours[machine] += found.hours(speed)
    for machine, speed in SPEEDS.items():
        print(f"  training: at least {hours[machine]:.3g} hours at {speed:.2g} operations a second ({machine})")
    print("  not counted: what the studies train themselves (ablations, sensitivity), and evaluation")
    print("deviations from the paper:")
    for deviation in preset.deviations:
        print(f"  - {deviation}")
    unstated = preset.unstated()
    stated = {path: cited for path, cited in preset.cited().items() if path not in unstated}
    _tell_settings("not stated in the paper, chosen here:", unstated)
    _tell_settings("stated, or ours, and where they come from:", stated)


def _tell_settings(heading: str, settings: Mapping[str, Cited]) -> None:
    """Each setting with its source, without the paper's runs; nothing at all where there is none."""
    shown = {path: cited for path, cited in settings.items() if not path.endswith(".published")}
    if shown:
        print(heading)
    for path, cited in shown.items():
        print(f"  {path}: {cited.value}  [{cited.source}]")
