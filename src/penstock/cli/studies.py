"""The studies of a finished run: each reads its SAEs, and leaves records, a table and a figure in RUN/studies/NAME."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from penstock.cli.output import Flat, print_records, print_rows
from penstock.reports import PlotsNotInstalled
from penstock.reports.figures.row_figures import write_row_figure
from penstock.reports.figures.study_figure import write_study_figure, write_study_table
from penstock.reports.pages.reproduction_page import comparison_table, difference_table, study_table
from penstock.runs.finished_run import FinishedRun
from penstock.studies import STUDIES
from penstock.studies.ablations import AblationsConfig
from penstock.studies.concepts import ConceptsConfig
from penstock.studies.cost import CostConfig
from penstock.studies.dictionaries import DictionariesConfig
from penstock.studies.pruning import PruningConfig
from penstock.studies.pursuit import PursuitConfig
from penstock.studies.refit import RefitStudyConfig
from penstock.studies.sensitivity import SensitivityConfig
from penstock.studies.shared.ratios_to_run import comparisons_of
from penstock.studies.shared.study_records import Record, study_folder
from penstock.studies.shrinkage import ShrinkageConfig
from penstock.studies.study_run import study_run


@dataclass(frozen=True, kw_only=True)
class _OfRun:
    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    trust_remote_code: bool = False
    """Run code that comes with the run's language model, where the run was made with it. Only for sources you trust."""


@dataclass(frozen=True, kw_only=True)
class Shrinkage(_OfRun):
    """Say how much the penalty shrinks: the one-latent toy, and matched latents of two arms (paper, figure 2)."""

    settings: Annotated[ShrinkageConfig, Flat] = field(default_factory=ShrinkageConfig)


@dataclass(frozen=True, kw_only=True)
class Ablations(_OfRun):
    """Train the Gated SAEs of a run once more with one part of the method changed (paper, figure 8)."""

    settings: Annotated[AblationsConfig, Flat] = field(default_factory=AblationsConfig)


@dataclass(frozen=True, kw_only=True)
class Refit(_OfRun):
    """Refit the magnitudes of SAEs of a run: is it enough to fix shrinkage? (paper, section 5.2)"""

    settings: Annotated[RefitStudyConfig, Flat] = field(default_factory=RefitStudyConfig)


@dataclass(frozen=True, kw_only=True)
class Pursuit(_OfRun):
    """Measure the decoders of a run with the encoder replaced by gradient pursuit (paper, appendix A)."""

    settings: Annotated[PursuitConfig, Flat] = field(default_factory=PursuitConfig)


@dataclass(frozen=True, kw_only=True)
class Pruning(_OfRun):
    """Drop the low activations of the SAEs of a run and redraw the frontier (paper, section 7)."""

    settings: Annotated[PruningConfig, Flat] = field(default_factory=PruningConfig)


@dataclass(frozen=True, kw_only=True)
class Cost(_OfRun):
    """Time a training step and encoding for every SAE of a run, Gated beside its baseline."""

    settings: Annotated[CostConfig, Flat] = field(default_factory=CostConfig)


@dataclass(frozen=True, kw_only=True)
class Sensitivity(_OfRun):
    """Train SAEs of a run once more with a setting off by a factor, and say what that costs."""

    settings: Annotated[SensitivityConfig, Flat] = field(default_factory=SensitivityConfig)


@dataclass(frozen=True, kw_only=True)
class Dictionaries(_OfRun):
    """Say what the dictionaries of a run share, between arms and between seeds."""

    settings: Annotated[DictionariesConfig, Flat] = field(default_factory=DictionariesConfig)


@dataclass(frozen=True, kw_only=True)
class Concepts(_OfRun):
    """Say which kinds of concept the latents of a run are, by rules over single tokens."""

    settings: Annotated[ConceptsConfig, Flat] = field(default_factory=ConceptsConfig)


Options = Shrinkage | Ablations | Refit | Pursuit | Pruning | Cost | Sensitivity | Dictionaries | Concepts


def study(options: Options) -> None:
    """Make a study's records, print them, and write table and figure."""
    name = type(options).__name__.lower()
    load = partial(FinishedRun.load, trust_remote_code=options.trust_remote_code)
    records = study_run(options.run, name, options.settings, load)
    if STUDIES[name].of_saes:
        print_records(records)
        print_rows(*comparison_table(comparisons_of(options.run, name)))
    else:
        print_rows(*study_table(name, records))
        differences = difference_table(records)
        if differences.rows:
            print_rows(*differences)
    for line in write_study(options.run, name, records):
        print(line)


def write_study(run: Path, name: str, records: list[Record]) -> list[str]:
    """Write a study's table and figure; returns lines that say where."""
    folder = study_folder(run, name)
    lines = [f"table: {write_study_table(folder, records)}"]
    try:
        if STUDIES[name].of_saes:
            figure = write_study_figure(run, folder, records)
        else:
            figure = write_row_figure(name, folder, records)
        lines.append(f"figure: {figure}")
    except PlotsNotInstalled as error:
        lines.append(f"no figure.png: {error}")
    return lines
