"""Reads a finished run directory for the report and the figures."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PUBLISHED_FILE = "published.json"
"""The paper's runs at a run's site, to be drawn beside ours."""

_ABSENT = {
    "config.json": "config.json is missing: the settings of this run cannot be shown.",
    "environment.json": "environment.json is missing: hardware, versions and command cannot be shown.",
    "metrics.jsonl": "metrics.jsonl is missing: there are no training curves.",
    "comparison.json": "comparison.json is missing: no arm is compared with its baseline.",
}


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run directory holds, as it was read."""

    name: str
    """Name of the directory."""
    config: dict[str, Any]
    """Resolved settings, nested; empty if the file is missing."""
    environment: dict[str, Any]
    """Versions, hardware, command; empty if the file is missing."""
    metrics: list[dict[str, Any]]
    """Training log, one row per SAE and logged step, as they were written; empty if the file is missing."""
    records: list[dict[str, Any]]
    """One record per SAE or control, never empty; numbers that are not finite were replaced by None."""
    comparison: dict[str, Any] | None
    """comparison.json, or None if it is missing."""
    notes: list[str]
    """What is missing or was repaired while reading, in words for the reader of the report."""


def read_run(run_dir: Path) -> RunData:
    """Reads every file of a run directory that the report is made from.

    Only records.jsonl is required. A missing file becomes a note, so that the report can say so.

    Args:
        run_dir: A run directory.

    Raises:
        FileNotFoundError: `run_dir` or its records.jsonl does not exist.
        ValueError: records.jsonl is empty, or a file is not valid JSON; names the file and line.
    """
    notes: list[str] = []
    records = _read_records(run_dir, notes)
    return RunData(
        name=run_dir.resolve().name,
        config=_read_json(run_dir / "config.json", notes) or {},
        environment=_read_json(run_dir / "environment.json", notes) or {},
        metrics=_read_metrics(run_dir / "metrics.jsonl", notes),
        records=records,
        comparison=_read_json(run_dir / "comparison.json", notes),
        notes=notes,
    )


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run, one per SAE or control, with numbers that are not finite as None.

    Raises:
        FileNotFoundError: `run_dir` or its records.jsonl does not exist.
        ValueError: records.jsonl is empty or not valid JSON.
    """
    return _read_records(run_dir, [])


def read_published(run_dir: Path) -> list[dict[str, Any]]:
    """The paper's runs that are to be drawn beside those of a run; empty if it has none (`write_published`)."""
    path = run_dir / PUBLISHED_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _read_records(run_dir: Path, notes: list[str]) -> list[dict[str, Any]]:
    path = run_dir / "records.jsonl"
    remedy = (
        f"`penstock eval {run_dir}` evaluates the SAEs of a trained run and writes it; "
        "`penstock sweep --out DIR` trains, evaluates and reports in one go."
    )
    if not run_dir.is_dir():
        raise FileNotFoundError(f"There is no run directory {run_dir}. {remedy}")
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} has no records.jsonl, which the report is made from. {remedy}")
    records = _json_lines(path, notes)
    if not records:
        raise ValueError(f"{path} is empty: there is nothing to report. {remedy}")
    return records


def _read_metrics(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        notes.append(_ABSENT[path.name])
        return []
    return _json_lines(path, notes)


def _read_json(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        notes.append(_ABSENT[path.name])
        return None
    broken: list[str] = []
    content = _parse(path.read_text(encoding="utf-8"), str(path), broken)
    notes += _not_finite(path, broken)
    return content


def _json_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    rows, broken = [], []
    for number, line in enumerate(lines, start=1):
        # Only the last line can lack its newline and its end: the mark of a run killed while writing.
        if number == len(lines) and line and not line.endswith("}"):
            notes.append(f"The last line of {path.name} was cut off while it was written, and is left out.")
        elif line.strip():
            rows.append(_parse(line, f"{path}, line {number},", broken))
    notes += _not_finite(path, broken)
    return rows


def _parse(text: str, where: str, broken: list[str]) -> dict[str, Any]:
    """A JSON object with NaN and infinities as None; `broken` collects one entry for each."""
    try:
        # append returns None, which takes the constant's place.
        content = json.loads(text, parse_constant=broken.append)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON ({error}). Restore it or delete it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds a {type(content).__name__}, expected an object. Delete it.")
    return content


def _not_finite(path: Path, broken: list[str]) -> list[str]:
    found = ", ".join(sorted(set(broken)))
    return [f"Not finite in {path.name}, shown as missing: {len(broken)} values ({found})."] if broken else []
