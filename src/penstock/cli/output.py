"""What several commands share: how records are printed, files named, and misuse said."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from penstock.charts.arm_looks import find_arms
from penstock.reports import PlotsNotInstalled, write_pareto_figure, write_report
from penstock.reports.data.run_data import read_run
from penstock.reports.wording import sentences as wording
from penstock.training.outcome import Outcome

MOST_LISTED = 3
"""Texts of one kind of warning, and names of one text, that are printed in full."""

Flat = tyro.conf.arg(name="")
"""For a section of settings whose flags get no prefix."""


class Usage(Exception):
    """The options do not fit together."""


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


def comparison_sentences(run: Path) -> list[str]:
    """What comparison.json says of each pair of arms, in words."""
    data = read_run(run)
    found = wording.comparisons(data, find_arms(data.records))
    return [f"{comparison.site}: {comparison.sentence}" for comparison in found]


def write_figures(run: Path) -> None:
    """The report and the figure of a run."""
    print(f"report: {write_report(run)}")
    try:
        files = write_pareto_figure(run)
        print(f"figure: {files.png}")
    except PlotsNotInstalled as error:
        print(f"no pareto.png: {error}")


def print_records(records: Sequence[dict[str, Any]]) -> None:
    """The main numbers as a table, and the warnings on stderr, those of one kind together as in the report."""
    print(_table(records))
    sys.stdout.flush()
    pairs = [(str(record["name"]), text) for record in records for text in record["warnings"]]
    for title, items in wording.grouped_warnings(pairs):
        print(f"warning: {title}", file=sys.stderr)
        for line in _warning_lines(items):
            print(f"  {line}", file=sys.stderr)


def _warning_lines(items: Sequence[tuple[str, str]]) -> list[str]:
    """Each text once, with the names of its SAEs; what is too many only as a number."""
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
    """Where the SAEs of a run lie, and how to load one."""
    if not outcome.finished:
        return
    first = run_dir / "saes" / outcome.finished[0]
    print(
        f"SAE: {first}" if len(outcome.finished) == 1 else f"SAEs: {run_dir / 'saes'} ({len(outcome.finished)} folders)"
    )
    print(f"load it in Python: sae, facts = penstock.load_sae({str(first)!r})")


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Return an aligned table of texts, or a sentence if it has no rows."""
    print(_aligned([columns, *rows]) if rows else "nothing to compare")


def _table(records: Sequence[dict[str, Any]]) -> str:
    """The main numbers of each record, aligned."""
    columns = ("name", "l0", "loss_recovered", "delta_ce", "fvu", "reconstruction_bias", "frac_alive")
    return _aligned([columns, *(tuple(_measured(record, column) for column in columns) for record in records)])


def _measured(record: dict[str, Any], column: str) -> str:
    """A number; L0 and loss recovered with their 95% interval, where they have one."""
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
