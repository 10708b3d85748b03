"""What a study is: an experiment on a finished run, from its settings to its records, its table and its figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.runs.finished_run import FinishedRun
from penstock.studies.shared.study_records import Record
from penstock.studies.shared.variants import CoefOf, Variant
from penstock.training.settings import ResolvedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]


class Table(NamedTuple):
    """Columns of a study's records that the page shows; table.csv has all."""

    columns: Sequence[str]
    rows: list[list[Any]]
    """For each record its values, as text or numbers; None where there is none."""


def columns(*names: str) -> Callable[[Records], Table]:
    """Makes a table of these keys of every record."""
    return lambda records: Table(names, [[record.get(name) for name in names] for record in records])


MEASURED_COLUMNS = columns("series", "of", "l0", "loss_recovered", "delta_ce", "fvu", "reconstruction_bias")
"""The table of a study whose records are SAEs, measured as those of the run."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment on a finished run.

    Its file ends in one of these, called `STUDY`, and `penstock.studies.STUDIES` lists them. The command line,
    reproductions, reports and docs/studies.md take everything they say of a study from here.
    """

    name: str
    """The name of its command and of its folder: `penstock study NAME RUN`, RUN/studies/NAME."""
    title: str
    """Heading of its section in a reproduction."""
    question: str
    """What it asks, in one sentence."""
    source: str
    """Where the paper asks it; empty for a question of ours."""
    reading: str
    """How to read its figure and its table."""
    settings: type[Any]
    """The dataclass of its settings; called without arguments it gives the defaults."""
    records: Callable[[FinishedRun, Any], list[Record]]
    """Makes its records from a run and its settings."""
    measures_saes: bool = False
    """Whether each record is an SAE's, measured as those of the run (`measured_records`): then the study is compared
    with the run's arms, too. Otherwise records are rows of their own kind."""
    trains: Callable[[ResolvedRun, Any, CoefOf], Sequence[Variant]] | None = None
    """The SAEs that it trains itself, from the decided settings of a run and its own; None if it trains none. Estimates
    and dry runs ask for them."""
    table: Callable[[Records], Table] = MEASURED_COLUMNS
    """What is printed and shown of its records; it is not given those of the kind `difference`, which have a table of
    their own."""
    figure: "Callable[[Records], Figure] | None" = None
    """Draws the study's records, without those of the kind `difference`. If None, SAEs that it measured are drawn with
    the frontier of the run, and other rows are not drawn."""
