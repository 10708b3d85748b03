"""Reads a finished run directory for the report and the figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.evaluation.sae_record import SAERecord, checked_record
from penstock.evaluation.stored_comparisons import read_comparison
from penstock.json_files import (
    COUNT,
    OBJECT,
    TEXT,
    Kind,
    Rows,
    check_keys,
    or_null,
    read_list,
    read_object,
    read_rows,
)
from penstock.training.metrics_log import read_metrics

PUBLISHED_FILE = "published.json"
"""File with the paper's runs at a run's site, to draw next to ours."""

_ABSENT = {
    "config.json": "config.json is missing: the settings of this run cannot be shown.",
    "environment.json": "environment.json is missing: hardware, versions and command cannot be shown.",
    "metrics.jsonl": "metrics.jsonl is missing: there are no training curves.",
    "comparison.json": "comparison.json is missing: no arm is compared with its baseline.",
}


_KINDS: dict[str, dict[str, Kind]] = {
    "config.json": {"data": OBJECT},
    "environment.json": {
        **dict.fromkeys(("penstock", "python", "torch", "transformers", "platform", "cpu", "device"), or_null(TEXT)),
        **dict.fromkeys(("git_commit", "started", "command"), or_null(TEXT)),
        "threads": or_null(COUNT),
    },
}
"""Required types of the values that the report reads, by file and key."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Contents of a run directory."""

    name: str
    """Name of the directory."""
    config: dict[str, Any]
    """Resolved settings, nested; empty if the file is missing."""
    environment: dict[str, Any]
    """Versions, hardware, command; empty if the file is missing."""
    metrics: list[dict[str, Any]]
    """Training log, one row per SAE and logged step, in the order written; empty if the file is missing."""
    records: list[SAERecord]
    """One record per SAE or control, never empty; numbers that are not finite were replaced by None."""
    comparison: dict[str, Any] | None
    """comparison.json, or None if it is missing."""
    notes: list[str]
    """Notes for the reader of the report on missing files and on repairs while reading."""


def read_run(run_dir: Path) -> RunData:
    """Read every file of a run directory that the report needs.

    Only records.jsonl is required. Any other missing file becomes a note in the report.

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


def read_records(run_dir: Path) -> list[SAERecord]:
    """Read the records of a run, one per SAE or control, with numbers that are not finite as None.

    Raises:
        FileNotFoundError: `run_dir` or its records.jsonl does not exist.
        ValueError: records.jsonl is empty or not valid JSON.
    """
    return _read_records(run_dir, [])


def read_published(run_dir: Path) -> list[SAERecord]:
    """Read the paper's runs to draw next to those of a run; empty if there are none (see `write_published`)."""
    path = run_dir / PUBLISHED_FILE
    if not path.is_file():
        return []
    return [checked_record(run, f"{path}, run {number}") for number, run in enumerate(read_list(path), start=1)]


def _read_records(run_dir: Path, notes: list[str]) -> list[SAERecord]:
    path = run_dir / "records.jsonl"
    remedy = (
        f"`penstock eval {run_dir}` evaluates the SAEs of a trained run and writes it; "
        "`penstock sweep --out DIR` trains, evaluates and reports in one go."
    )
    if not run_dir.is_dir():
        raise FileNotFoundError(f"There is no run directory {run_dir}. {remedy}")
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} has no records.jsonl, which the report needs. {remedy}")
    rows = _noted(read_rows(path), path, notes)
    records = [checked_record(row, f"{path}, record {number}") for number, row in enumerate(rows, start=1)]
    if not records:
        raise ValueError(f"{path} is empty: there is nothing to report. {remedy}")
    return records


def _read_metrics(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        notes.append(_ABSENT[path.name])
        return []
    return _noted(read_metrics(path), path, notes)


def _read_json(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        notes.append(_ABSENT[path.name])
        return None
    content = read_comparison(path) if path.name == "comparison.json" else read_object(path)
    check_keys(content, _KINDS.get(path.name, {}), str(path), needed=())
    return content


def _noted(found: Rows, path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Return the rows of a file, and note repairs made while reading."""
    if found.cut_off:
        notes.append(f"The last line of {path.name} is incomplete and was left out.")
    if found.not_finite:
        notes.append(f"Not finite in {path.name}, shown as missing: {found.not_finite} values.")
    return found.rows
