"""Reading a run directory: what is required, and what a broken file is answered with."""

from pathlib import Path

import pytest
from fake_run import write_fake_run

from penstock.evaluation.sae_record import SAERecord
from penstock.reports.data.run_data import read_run


def test_a_directory_without_records_names_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no records.jsonl.*`penstock eval {tmp_path}`"):
        read_run(tmp_path)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run directory .*/nowhere"):
        read_run(tmp_path / "nowhere")


def test_empty_records_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="records.jsonl is empty.*penstock eval"):
        read_run(tmp_path)


def test_a_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    write_fake_run(tmp_path)
    path = tmp_path / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{broken}\n", *lines[1:]]))
    with pytest.raises(ValueError, match="records.jsonl, line 2 is not valid JSON"):
        read_run(tmp_path)


def test_a_row_that_is_no_object_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("[1, 2]\n")
    with pytest.raises(ValueError, match="line 1 must be an object, found .1, 2."):
        read_run(tmp_path)


def test_broken_comparison_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    write_fake_run(tmp_path)
    (tmp_path / "comparison.json").write_text('{"comparisons": [')
    with pytest.raises(ValueError, match="comparison.json is not valid JSON"):
        read_run(tmp_path)


def test_a_last_line_cut_off_by_a_kill_is_left_out_and_noted(tmp_path: Path) -> None:
    write_fake_run(tmp_path, seeds=(0,))
    path = tmp_path / "metrics.jsonl"
    whole = len(read_run(tmp_path).metrics)
    path.write_text(path.read_text()[:-20])
    run = read_run(tmp_path)
    assert len(run.metrics) == whole - 1
    assert run.notes == ["The last line of metrics.jsonl is incomplete and was left out."]


def test_a_whole_last_line_without_newline_counts(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path)
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    run = read_run(tmp_path)
    assert run.records == records
    assert run.notes == []


def test_a_key_that_a_record_lacks_is_none(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"name": "a", "arch": "relu", "site": "resid_post.2", "mine": 1}\n')
    (record,) = read_run(tmp_path).records
    assert record["l0"] is None and record["warnings"] is None
    assert set(record) == {*SAERecord.__required_keys__, "mine"}
