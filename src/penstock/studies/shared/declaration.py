"""The declaration of a study: its question, settings, records, table and figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.evaluation.sae_record import Records
from penstock.runs.finished_run import FinishedRun
from penstock.studies.shared.variants import CoefOf, Variant
from penstock.training.settings import ResolvedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Table(NamedTuple):
    """The columns of a study's records that the page shows; table.csv has all columns."""

    columns: Sequence[str]
    rows: list[list[Any]]
    """The values of each record, as text or numbers; None for a missing value."""


def columns(*names: str) -> Callable[[Records], Table]:
    """A function that makes a table of these keys from records."""
    return lambda records: Table(names, [[record.get(name) for name in names] for record in records])


MEASURED_COLUMNS = columns("series", "of", "l0", "loss_recovered", "delta_ce", "fvu", "reconstruction_bias")
"""The table of a study whose records are SAEs, measured in the same way as the run's."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment on a finished run.

    Each study's module ends with one of these, called `STUDY`, and `penstock.studies.STUDIES` lists them. The command
    line, reproductions, reports and docs/studies.md read these declarations.
    """

    name: str
    """The name of the command `penstock study NAME RUN` and of the folder RUN/studies/NAME."""
    title: str
    """The heading of the study's section in a reproduction."""
    question: str
    """The question that the study answers, in one or two sentences."""
    source: str
    """The place in the paper that asks the question; empty for a question of ours."""
    reading: str
    """An explanation of the figure and the table."""
    settings: type[Any]
    """The dataclass of the study's settings, which all have defaults."""
    records: Callable[[FinishedRun, Any], Records]
    """Makes the study's records from a run and the study's settings."""
    measures_saes: bool = False
    """Whether every record belongs to an SAE that was measured like those of the run (see `measured_records`). Such a
    study is also compared with the run's arms."""
    trains: Callable[[ResolvedRun, Any, CoefOf], Sequence[Variant]] | None = None
    """Returns the SAEs that the study trains, for estimates and dry runs; None if it does not train any."""
    table: Callable[[Records], Table] = MEASURED_COLUMNS
    """Makes the table that is printed and shown. It does not get records of the kind `difference`, which have a table
    of their own."""
    figure: "Callable[[Records], Figure] | None" = None
    """Draws the records, except those of the kind `difference`. If None, SAEs that the study measured are drawn with
    the run's frontier, and other records are not drawn."""
