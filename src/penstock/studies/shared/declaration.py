"""What a study is: an experiment on a finished run, from its settings to its records."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from penstock.runs.finished_run import FinishedRun
from penstock.studies.shared.study_records import Record
from penstock.studies.shared.variants import CoefOf, Variant
from penstock.training.config import ResolvedRun


class Study(NamedTuple):
    """A study of a finished run."""

    settings: Callable[[], Any]
    """Its settings' dataclass; called without arguments it gives the defaults."""
    records: Callable[[FinishedRun, Any], list[Record]]
    """Makes its records."""
    of_saes: bool
    """Whether each record is an SAE's, measured as those of the run; else rows of their own kind."""
    trains: Callable[[ResolvedRun, Any, CoefOf], Sequence[Variant]] | None = None
    """The SAEs that it trains itself, from the decided settings of a run and its own; None if it trains none."""
