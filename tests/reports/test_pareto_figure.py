"""PNG, SVG and CSV of the Pareto figure."""

import sys
from pathlib import Path

import matplotlib
import pytest
from fake_run import write_fake_run, write_lines

from penstock.reports import PlotsNotInstalled, write_pareto_figure


def small_run(run_dir: Path, sites: tuple[str, ...] = ("resid_post.2",)) -> Path:
    write_fake_run(run_dir, sites=sites, seeds=(0,), target_l0s=(8, 16, 32), metrics=False)
    return run_dir


def test_three_files_are_written(tmp_path: Path) -> None:
    files = write_pareto_figure(small_run(tmp_path))
    assert files.png.read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in files.svg.read_text()
    assert files.csv.read_text().startswith("name,")
    assert {path.parent for path in files} == {tmp_path}


def test_the_svg_is_the_same_bytes_every_time_whatever_the_readers_settings(tmp_path: Path) -> None:
    small_run(tmp_path)
    first = write_pareto_figure(tmp_path).svg.read_bytes()
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.labelcolor": "red"}):
        second = write_pareto_figure(tmp_path).svg.read_bytes()
        assert matplotlib.rcParams["font.size"] == 30
    assert first == second
    assert b"dc:date" not in first


def test_several_sites_take_a_row_each_and_dollar_signs_in_names_are_no_mathematics(tmp_path: Path) -> None:
    svg = write_pareto_figure(small_run(tmp_path, sites=("$x_", "a$b$\nc"))).svg.read_text()
    # Every axes is a group of its own: four metrics for each site.
    assert svg.count('id="axes_') == 8


def test_missing_metrics_intervals_and_l0_leave_gaps_not_errors(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path, seeds=(0,), target_l0s=(8, 16), metrics=False)
    records[0]["l0"] = 0.0
    records[1]["intervals"] = None
    for record in records:
        record["fvu"] = None
    # A bootstrap interval beside its point would give a bar of negative length.
    records[2]["intervals"]["l0"] = [records[2]["l0"] * 1.01, records[2]["l0"] * 1.02]
    write_lines(tmp_path / "records.jsonl", records)
    assert write_pareto_figure(tmp_path).png.exists()


def test_without_matplotlib_the_error_names_the_extra_and_the_csv_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotsNotInstalled, match=r"pip install 'penstock\[plots\]'"):
        write_pareto_figure(small_run(tmp_path))
    assert (tmp_path / "pareto.csv").exists()
    assert not (tmp_path / "pareto.png").exists()
