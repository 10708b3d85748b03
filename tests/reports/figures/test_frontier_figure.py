"""Figure and table of a study, beside the frontier of its run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_run import write_fake_run

from penstock.reports.data.records_csv import write_study_table
from penstock.reports.data.run_data import read_records
from penstock.reports.figures import frontier_figure
from penstock.reports.figures.study_figure import write_study_figure
from penstock.studies import STUDIES

SOME = replace(STUDIES["pursuit"], name="some")


def figure_of(run: Path, records: list[dict[str, Any]]) -> Path:
    path = write_study_figure(run, SOME, records)
    assert path is not None
    return path


@pytest.fixture
def studied(tmp_path: Path) -> tuple[Path, Path, list[dict[str, Any]]]:
    """A run, its study's folder, and records made from two of its SAEs."""
    saes = [r for r in write_fake_run(tmp_path, seeds=(0,), metrics=False) if r["seed"] is not None]
    records = [
        {**sae, "name": f"{sae['name']}-{step}", "of": sae["name"], "series": series, "l0": sae["l0"] / step}
        | {"curve": f"{series} at {step}"}
        for sae in saes[:2]
        for series in ("harsh", "mild")
        for step in (2, 3)
    ]
    folder = tmp_path / "studies" / "some"
    folder.mkdir(parents=True)
    return tmp_path, folder, records


def test_figure_and_table_hold_every_record(studied: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    run, folder, records = studied
    png = figure_of(run, records)
    assert png.read_bytes().startswith(b"\x89PNG")
    table = write_study_table(folder, records).read_text().splitlines()
    assert len(table) == 1 + len(records)
    assert {"series", "of", "intervals.l0.low"} <= set(table[0].split(","))


def test_a_figure_has_two_panels_for_each_site_and_is_the_same_every_time(
    studied: tuple[Path, Path, list[dict[str, Any]]],
) -> None:
    run, folder, records = studied
    first = figure_of(run, records).with_suffix(".svg").read_text()
    assert first.count('id="axes_') == 2
    assert figure_of(run, records).with_suffix(".svg").read_text() == first


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """The L0s of every line that is drawn."""
    from matplotlib.axes import Axes

    found: list[list[float]] = []
    original = Axes.plot

    def watched(self: Axes, *args: Any, **kwargs: Any) -> Any:
        found.append(list(args[0]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", watched)
    return found


def test_a_line_joins_what_was_made_in_the_same_way(
    studied: tuple[Path, Path, list[dict[str, Any]]], drawn: list[list[float]]
) -> None:
    run, folder, records = studied
    figure_of(run, records)
    # Per panel two arms of four SAEs, then for each of two series two curves through the two SAEs.
    assert sorted(map(len, drawn)) == sorted(2 * [4, 4, 2, 2, 2, 2])
    curve = [record["l0"] for record in records if record["curve"] == "mild at 3"]
    assert sorted(curve) in drawn


def test_what_is_done_to_many_arms_has_a_row_for_each(
    studied: tuple[Path, Path, list[dict[str, Any]]], drawn: list[list[float]]
) -> None:
    run, folder, records = studied
    run_records = [record for record in read_records(run) if record["seed"] is not None]
    others = {record["arch"]: record for record in run_records}
    names = ("one", "two", "three", "four", "five")
    many = [
        {**records[0], **{key: sae[key] for key in ("arch", "d_sae")}, "of": sae["name"], "series": name, "curve": name}
        for sae in others.values()
        for name in names
    ]
    figure = frontier_figure.draw_frontier(run_records, many)
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]
    assert len(titles) == 4 and [title.split(", ")[-1] for title in titles[::2]] == ["Gated", "ReLU"]
    # Both arms as trained in each panel, and one line for each series of the row's arm.
    assert sorted(map(len, drawn)) == sorted(4 * [4, 4, 1, 1, 1, 1, 1])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["Gated, as trained", "ReLU, as trained", *names]
    # Few enough for one panel: the architecture is in the legend.
    figure = frontier_figure.draw_frontier(run_records, [record for record in many if record["series"] in names[:4]])
    assert len(figure.axes) == 2
    assert "ReLU: four" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_an_undefined_metric_leaves_a_gap(studied: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    run, folder, records = studied
    for record in records:
        record["loss_recovered"] = None
    assert figure_of(run, records).exists()


def test_what_has_collapsed_is_named_and_not_drawn(studied: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    run, folder, records = studied
    far = [{**record, "l0": 1e-3} if record["series"] == "mild" else record for record in records]
    run_records = [r for r in read_records(run) if r["seed"] is not None]
    ax = frontier_figure.draw_frontier(run_records, far).axes[0]
    assert ax.get_xlim()[0] > 0.1
    labels = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert any("mild" in label and "off the axis" in label for label in labels)
    assert not any("harsh" in label and "off the axis" in label for label in labels)
