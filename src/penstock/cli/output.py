"""Helpers for several commands: printing records, naming written files, and errors of usage."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from penstock.charts.arm_looks import find_arms
from penstock.evaluation.sae_record import Records
from penstock.reports import PlotsNotInstalled, write_pareto_figure, write_report
from penstock.reports.data.run_data import read_run
from penstock.reports.wording import sentences as wording
from penstock.training.outcome import Outcome

MOST_LISTED = 3
"""The most texts printed for one kind of warning, and the most SAEs named for one text."""

Flat = tyro.conf.arg(name="")
"""Annotates a nested dataclass whose flags get no prefix."""


class Usage(Exception):
    """A command was called with options that are missing or do not fit together."""


def given(options: Any, blank: Any, prefix: str = "--") -> list[str]:
    """The flags of the settings in which the options differ from `blank`."""
    found = []
    for one in dataclasses.fields(options):
        value, other = getattr(options, one.name), getattr(blank, one.name)
        flag = prefix + one.name.rstrip("_").replace("_", "-")
        if dataclasses.is_dataclass(value):
            found += given(value, other, f"{flag}." if one.name == "resampling" else prefix)
        elif value != other:
            found.append(flag)
    return found


def comparison_sentences(run_dir: Path) -> list[str]:
    """One sentence for each comparison of two arms in the run's comparison.json."""
    data = read_run(run_dir)
    found = wording.comparisons(data, find_arms(data.records))
    return [f"{comparison.site}: {comparison.sentence}" for comparison in found]


def write_figures(run_dir: Path) -> None:
    """Write a run's report and figure, and print their paths."""
    print(f"report: {write_report(run_dir)}")
    try:
        files = write_pareto_figure(run_dir)
        print(f"figure: {files.png}")
    except PlotsNotInstalled as error:
        print(f"no pareto.png: {error}")


def print_records(records: Records) -> None:
    """Print the main numbers as a table, and the warnings on stderr, grouped by kind as in the report."""
    print(_table(records))
    sys.stdout.flush()
    pairs = [(str(record["name"]), text) for record in records for text in record["warnings"] or []]
    for title, items in wording.grouped_warnings(pairs):
        print(f"warning: {title}", file=sys.stderr)
        for line in _warning_lines(items):
            print(f"  {line}", file=sys.stderr)


def _warning_lines(items: Sequence[tuple[str, str]]) -> list[str]:
    """Lines with each text and the names of its SAEs. Only the number is given of those beyond MOST_LISTED."""
    names: dict[str, list[str]] = {}
    for name, text in items:
        names.setdefault(text, []).append(name)
    lines = [f"{text} ({_listed(own)})" for text, own in list(names.items())[:MOST_LISTED]]
    left = sum(len(own) for own in list(names.values())[MOST_LISTED:])
    return [*lines, f"and {left} more: see `warnings` in the records, or the report"] if left else lines


def _listed(names: Sequence[str]) -> str:
    left = len(names) - MOST_LISTED
    return ", ".join([*names[:MOST_LISTED], *([f"and {left} more"] if left > 0 else [])])


def print_saes(run_dir: Path, outcome: Outcome) -> None:
    """Print the folder of a run's SAEs, and the Python code that loads one of them."""
    if not outcome.finished:
        return
    first = run_dir / "saes" / outcome.finished[0]
    print(
        f"SAE: {first}" if len(outcome.finished) == 1 else f"SAEs: {run_dir / 'saes'} ({len(outcome.finished)} folders)"
    )
    print(f"load it in Python: sae, facts = penstock.load_sae({str(first)!r})")


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print texts as an aligned table, or "nothing to compare" if there are no rows."""
    print(_aligned([columns, *rows]) if rows else "nothing to compare")


def _table(records: Records) -> str:
    """An aligned table of the main numbers of each record."""
    columns = ("name", "l0", "loss_recovered", "delta_ce", "fvu", "reconstruction_bias", "frac_alive")
    return _aligned([columns, *(tuple(_measured(record, column) for column in columns) for record in records)])


def _measured(record: Mapping[str, Any], column: str) -> str:
    """A number as text; L0 and loss recovered are followed by their 95% interval, if there is one."""
    cell, bounds = _cell(record[column]), record["intervals"].get(column)
    if bounds is None or column not in ("l0", "loss_recovered"):
        return cell
    return f"{cell} [{_cell(bounds[0])}, {_cell(bounds[1])}]"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
