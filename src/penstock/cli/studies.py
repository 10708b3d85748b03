"""The studies of a finished run: each reads its SAEs, and leaves records, a table and a figure in RUN/studies/NAME."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from penstock.cli.output import Flat, print_records, print_rows
from penstock.reports import PlotsNotInstalled
from penstock.reports.reproduction_page import study_table
from penstock.reports.study_figure import write_study_figure, write_study_table
from penstock.studies.after_training import PruningConfig, PursuitConfig, RefitStudyConfig
from penstock.studies.cost import CostConfig
from penstock.studies.dictionaries import ConceptsConfig, DictionariesConfig
from penstock.studies.reproduction import STUDIES, study_run
from penstock.studies.stored import Record, study_folder


@dataclass(frozen=True, kw_only=True)
class Pursuit:
    """Measure the decoders of a run with the encoder replaced by gradient pursuit (paper, appendix A)."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    settings: Annotated[PursuitConfig, Flat] = field(default_factory=PursuitConfig)


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Drop the low activations of the SAEs of a run and redraw the frontier (paper, section 7)."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    settings: Annotated[PruningConfig, Flat] = field(default_factory=PruningConfig)


@dataclass(frozen=True, kw_only=True)
class Refit:
    """Refit the magnitudes of the ReLU SAEs of a run: is it enough to fix shrinkage? (paper, section 5.2)"""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    settings: Annotated[RefitStudyConfig, Flat] = field(default_factory=RefitStudyConfig)


@dataclass(frozen=True, kw_only=True)
class Dictionaries:
    """Say what the dictionaries of a run share, between arms and between seeds."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    settings: Annotated[DictionariesConfig, Flat] = field(default_factory=DictionariesConfig)


@dataclass(frozen=True, kw_only=True)
class Concepts:
    """Say which kinds of concept the latents of a run are, by rules over single tokens."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    settings: Annotated[ConceptsConfig, Flat] = field(default_factory=ConceptsConfig)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Time a training step and encoding for every SAE of a run, Gated beside its baseline."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    settings: Annotated[CostConfig, Flat] = field(default_factory=CostConfig)


Options = Pursuit | Pruning | Refit | Dictionaries | Concepts | Cost


def study(options: Options) -> None:
    """Make a study's records, print them, and write table and figure."""
    name = type(options).__name__.lower()
    records = study_run(options.run, name, options.settings)
    if STUDIES[name].of_saes:
        print_records(records)
    else:
        print_rows(*study_table(name, records))
    for line in write_study(options.run, name, records):
        print(line)


def write_study(run: Path, name: str, records: list[Record]) -> list[str]:
    """Write a study's table and figure; returns lines that say where."""
    folder = study_folder(run, name)
    lines = [f"table: {write_study_table(folder, records)}"]
    if STUDIES[name].of_saes:
        try:
            lines.append(f"figure: {write_study_figure(run, folder, records)}")
        except PlotsNotInstalled as error:
            lines.append(f"no figure.png: {error}")
    return lines
