"""Records as a flat table."""

import csv
import json
from pathlib import Path

from fake_run import NASTY, write_fake_run, write_lines

from penstock.reports import write_records_csv


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with write_records_csv(run_dir).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_record_is_a_row_and_numbers_keep_every_digit(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path)
    rows = rows_of(tmp_path)
    assert [row["name"] for row in rows] == [record["name"] for record in records]
    assert float(rows[0]["delta_ce"]) == records[0]["delta_ce"]


def test_intervals_become_two_columns_and_lists_become_json(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path)
    row = rows_of(tmp_path)[0]
    low, high = records[0]["intervals"]["fvu"]
    assert (float(row["intervals.fvu.low"]), float(row["intervals.fvu.high"])) == (low, high)
    assert json.loads(row["density_histogram.counts"]) == records[0]["density_histogram"]["counts"]
    assert json.loads(row["warnings"]) == records[0]["warnings"]


def test_missing_values_are_empty_cells(tmp_path: Path) -> None:
    write_fake_run(tmp_path)
    control = rows_of(tmp_path)[-1]
    assert control["recipe"] == control["seed"] == control["intervals.fvu.low"] == ""


def test_quotes_and_line_breaks_in_names_survive(tmp_path: Path) -> None:
    write_fake_run(tmp_path, model=NASTY, seeds=(0,))
    assert {row["model"] for row in rows_of(tmp_path)} == {NASTY}


def test_a_text_that_a_spreadsheet_would_run_is_made_inert(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path, seeds=(0,), target_l0s=(8,))
    for name in ("=HYPERLINK(0)", "+1", "-1+2", "@SUM(1)", "\tx", "plain=1"):
        records[0] |= {"name": name, "=key": 1, "delta_ce": -0.5}
        write_lines(tmp_path / "records.jsonl", records)
        row = rows_of(tmp_path)[0]
        assert row["name"] == (name if name == "plain=1" else f"'{name}")
        assert row["'=key"] == "1"
        assert row["delta_ce"] == "-0.5"
