"""`penstock study`: makes a study of a finished run, and writes records, table and figure to RUN/studies/NAME."""

from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from penstock.cli.output import Flat, print_records, print_rows
from penstock.evaluation.sae_record import Records
from penstock.reports import PlotsNotInstalled
from penstock.reports.data.records_csv import write_study_table
from penstock.reports.figures.study_figure import write_study_figure
from penstock.reports.pages.study_tables import comparison_table, difference_table, study_table
from penstock.runs.finished_run import FinishedRun
from penstock.studies import STUDIES
from penstock.studies.shared.declaration import Study
from penstock.studies.shared.ratios_to_run import comparisons_of
from penstock.studies.shared.study_records import study_folder
from penstock.studies.study_run import study_run

_TRUST = "Run code that comes with the run's language model, if the run needed it. Only for sources you trust."
_DEVICE = "Device of the language model and the SAEs; by default the one that they were trained on."


@dataclass(frozen=True, kw_only=True)
class StudyCommand:
    """Make a study of a finished run: one of the paper's experiments, or of ours (docs/studies.md)."""


def study_commands() -> dict[str, tuple[type, Callable[[Any], None]]]:
    """The subcommands of `penstock study`, one for each of STUDIES."""
    return {name: (_options_of(study), make_study) for name, study in STUDIES.items()}


def _options_of(study: Study) -> type:
    """The options class of a study: the run, and the study's own settings."""
    run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="The run's directory.", metavar="RUN")]
    settings = Annotated[study.settings, Flat]
    trust = Annotated[bool, tyro.conf.arg(help=_TRUST)]
    device = Annotated[str | None, tyro.conf.arg(help=_DEVICE)]
    fields = [
        ("run", run),
        ("settings", settings, field(default_factory=study.settings)),
        ("device", device, field(default=None)),
        ("trust_remote_code", trust, field(default=False)),
    ]
    options = make_dataclass(study.name, fields, frozen=True, kw_only=True, namespace={"declaration": study})
    options.__doc__ = _description(study)
    return options


def _description(study: Study) -> str:
    return f"{study.question} (paper: {study.source})" if study.source else study.question


def make_study(options: Any) -> None:
    """Make a study, print its records, and write its table and figure."""
    study, run_dir = options.declaration, options.run
    load = partial(FinishedRun.load, device=options.device, trust_remote_code=options.trust_remote_code)
    records = study_run(run_dir, study.name, options.settings, load)
    if study.measures_saes:
        print_records(records)
        print_rows(*comparison_table(comparisons_of(run_dir, study.name)))
    else:
        print_rows(*study_table(study, records))
        differences = difference_table(records)
        if differences.rows:
            print_rows(*differences)
    for line in write_study(run_dir, study, records):
        print(line)


def write_study(run_dir: Path, study: Study, records: Records) -> list[str]:
    """Write a study's table and figure, and return lines with their paths."""
    lines = [f"table: {write_study_table(study_folder(run_dir, study.name), records)}"]
    try:
        figure = write_study_figure(run_dir, study, records)
    except PlotsNotInstalled as error:
        return [*lines, f"no figure.png: {error}"]
    return lines if figure is None else [*lines, f"figure: {figure}"]
