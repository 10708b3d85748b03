"""PNG, SVG and CSV of the Pareto figure."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import pytest
from fake_run import write_fake_run, write_lines

from penstock.charts import drawing
from penstock.charts.arm_looks import COLORS
from penstock.reports import PlotsNotInstalled, write_pareto_figure
from penstock.reports.data.run_data import PUBLISHED_FILE, read_run
from penstock.reports.figures import pareto_figure


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


def papers(arch: str, d_sae: int, l0: float, recovered: float | None, gamma: float | None) -> dict[str, Any]:
    where = {"name": arch, "arch": arch, "d_sae": d_sae, "site": "resid_post.2"}
    return {**where, "l0": l0, "loss_recovered": recovered, "reconstruction_bias": gamma}


# Our SAEs have 1,024 latents and L0s of 8 to 32; both the lowest and the highest numbers are the paper's here.
PUBLISHED = [
    papers("gated", 1024, 0.5, 0.5, 1.5),
    papers("gated", 1024, 900.0, 0.9999, None),
    papers("relu", 1024, 70.0, None, 0.3),
    papers("relu", 1536, 20.0, 0.875, 0.75),
]


def panels_of(run: Path, published: list[dict[str, Any]]) -> dict[str, Any]:
    figure = pareto_figure._draw(read_run(run), published)
    return dict(zip(pareto_figure.PANELS, figure.axes, strict=True))


def hollow(ax: Any) -> dict[str, tuple[str, list[tuple[float, float]]]]:
    """Colour and points of what is named after the paper in a panel; all of it is hollow and unconnected."""
    lines = [line for line in ax.lines if str(line.get_label()).startswith("paper")]
    assert all(line.get_linestyle() == "None" and line.get_markerfacecolor() == "none" for line in lines)
    return {line.get_label(): (line.get_color(), [tuple(point) for point in line.get_xydata()]) for line in lines}


def test_the_papers_points_lie_hollow_in_the_panels_that_it_has(tmp_path: Path) -> None:
    panels = panels_of(small_run(tmp_path), PUBLISHED)
    gated, relu, wide = (f"paper: {arm} latents" for arm in ("Gated, 1,024", "ReLU, 1,024", "ReLU, 1,536"))
    grey = pareto_figure._GREY
    assert hollow(panels["loss_recovered"]) == {
        gated: (COLORS[0], [(0.5, 0.5), (900.0, 0.9999)]),
        wide: (grey, [(20.0, 0.875)]),
    }
    assert hollow(panels["reconstruction_bias"]) == {
        gated: (COLORS[0], [(0.5, 1.5)]),
        relu: (COLORS[1], [(70.0, 0.3)]),
        wide: (grey, [(20.0, 0.75)]),
    }
    assert not hollow(panels["delta_ce"]) and not hollow(panels["fvu"])
    legend = [text.get_text() for text in panels["fvu"].figure.legends[0].get_texts()]
    assert legend == ["Gated", "ReLU", gated, relu, wide]


def test_the_axes_hold_the_papers_points_and_ours(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    saes = [record for record in read_run(run).records if record["seed"] is not None]
    for metric, ax in panels_of(run, PUBLISHED).items():
        points = [(one["l0"], one[metric]) for one in [*saes, *PUBLISHED] if one.get(metric) is not None]
        for (low, high), values in zip((ax.get_xlim(), ax.get_ylim()), zip(*points, strict=True), strict=True):
            assert low < min(values) and max(values) < high


def test_the_legend_fits_the_figure_with_the_papers_names(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path, archs=("gated", "relu", "relu"), seeds=(0,), target_l0s=(8,), metrics=False)
    for record, d_sae in zip(records, (131_072, 131_072, 196_608), strict=False):
        record["d_sae"] = d_sae
    write_lines(tmp_path / "records.jsonl", records)
    published = [papers("gated", 131_072, 8.0, 0.9, 1.0), papers("relu", 196_608, 8.0, 0.9, 1.0)]
    with matplotlib.style.context(["default", drawing.STYLE]):
        figure = pareto_figure._draw(read_run(tmp_path), published)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        assert len(legend.get_texts()) == 5
        box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_what_the_paper_has_elsewhere_or_without_a_number_changes_nothing(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    alone = [path.read_bytes() for path in write_pareto_figure(run)]
    elsewhere = [{**one, "site": "resid_post.3"} for one in PUBLISHED]
    empty = papers("gated", 1024, 8.0, None, None)
    file = run / PUBLISHED_FILE
    file.write_text(json.dumps([*elsewhere, empty]))
    assert [path.read_bytes() for path in write_pareto_figure(run)] == alone
    file.write_text(json.dumps(PUBLISHED))
    assert write_pareto_figure(run).svg.read_bytes() != alone[1]


def test_the_papers_points_stand_alone_where_ours_were_not_measured(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path, seeds=(0,), target_l0s=(8, 16), metrics=False)
    write_lines(tmp_path / "records.jsonl", [{**record, "loss_recovered": None} for record in records])
    panels = panels_of(tmp_path, PUBLISHED)
    assert hollow(panels["loss_recovered"]) and not panels["loss_recovered"].texts
    (text,) = panels_of(tmp_path, [])["loss_recovered"].texts
    assert text.get_text() == "not measured"


def test_without_matplotlib_the_error_names_the_extra_and_the_csv_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotsNotInstalled, match=r"pip install 'penstock\[plots\]'"):
        write_pareto_figure(small_run(tmp_path))
    assert (tmp_path / "pareto.csv").exists()
    assert not (tmp_path / "pareto.png").exists()
