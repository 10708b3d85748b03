"""Records as a flat CSV table: one row per SAE or control, nested values under dotted names."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.files import write_whole
from penstock.reports.data.run_data import read_records

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters that make a spreadsheet read a cell as a formula."""


def records_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Return all keys of all records as CSV text with a header row and `\\n` line ends.

    An interval becomes two columns, `intervals.l0.low` and `intervals.l0.high`. Other lists become JSON text, and a
    missing value an empty cell. Numbers keep all stored digits. A text that a spreadsheet would run as a formula gets
    an apostrophe in front.
    """
    rows = [{_inert(key): _inert(value) for key, value in _flat(record).items()} for record in records]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_records_csv(run_dir: Path) -> Path:
    """Write `pareto.csv`, the records of a run as a flat table, and return its path.

    Raises:
        FileNotFoundError: the run has no records.jsonl; names the command that makes it.
    """
    path = run_dir / "pareto.csv"
    write_whole(path, records_csv(read_records(run_dir)))
    return path


def _inert(value: Any) -> Any:
    """Return the value, with an apostrophe in front if a spreadsheet would read it as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def write_study_table(study_dir: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Writes `table.csv`, a row for each record of a study, into the study's folder and returns its path."""
    path = study_dir / "table.csv"
    write_whole(path, records_csv(records))
    return path


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in record.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            row |= _flat(value, f"{key}.")
        elif isinstance(value, list) and prefix == "intervals." and len(value) == 2:
            row |= {f"{key}.low": value[0], f"{key}.high": value[1]}
        elif isinstance(value, list):
            row[key] = json.dumps(value, ensure_ascii=False)
        else:
            row[key] = "" if value is None else value
    return row
