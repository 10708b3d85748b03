"""The figure of settings that are off."""

from pathlib import Path
from typing import Any

from penstock.charts.drawing import drawn
from penstock.studies.sensitivity import SETTINGS, draw_sensitivity


def row(arch: str, lost: float | None, **off: float) -> dict[str, Any]:
    factors = {**dict.fromkeys(SETTINGS, 1.0), **off}
    low, high = (None, None) if lost is None else (0.9 * lost, 1.1 * lost)
    return {"arch": arch, "site": "s.0", "factors": factors, "l0_ratio": 1.5, "lost_ratio": lost} | {
        "low": low,
        "high": high,
    }


ROWS = [
    *(row(arch, 1.0) for arch in ("gated", "relu")),
    *(row("gated", 1.25 * factor, lr=factor) for factor in (4.0, 0.25)),
    row("gated", None, d_sae=2.0),
    row("gated", 3.0, d_sae=2.0, lr=4.0),
]


def test_the_figure_is_written_the_same_each_time(tmp_path: Path) -> None:
    path = drawn(lambda: draw_sensitivity(ROWS), tmp_path / "figure")
    assert (tmp_path / "figure.svg").is_file()
    first = path.read_bytes()
    drawn(lambda: draw_sensitivity(ROWS), tmp_path / "figure")
    assert first.startswith(b"\x89PNG") and path.read_bytes() == first


def test_a_panel_without_a_number_says_so() -> None:
    figure = draw_sensitivity([row("gated", None), row("gated", None, lr=2.0)])
    texts = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert texts == [["not measured"]] * len(SETTINGS) + [[]] * len(SETTINGS)


def test_what_diverged_has_no_place_in_the_figure() -> None:
    unmeasured = dict.fromkeys(("l0", "l0_ratio", "loss_recovered", "lost_ratio", "low", "high"))
    diverged = {**row("gated", None, lr=2.0), **unmeasured, "diverged": "It is NaN."}
    figures = [draw_sensitivity([*ROWS, *more]) for more in ((), (diverged,))]
    lines = [[line.get_xydata().tolist() for ax in figure.axes for line in ax.get_lines()] for figure in figures]
    assert lines[0] == lines[1]


def test_each_panel_has_what_is_off_in_its_setting_alone() -> None:
    figure = draw_sensitivity(ROWS)
    panels = figure.axes[: len(SETTINGS)]
    lines = {setting: ax.get_lines()[0] for setting, ax in zip(SETTINGS, panels, strict=True)}
    assert list(lines["lr"].get_xdata()) == [0.25, 1.0, 4.0]
    assert list(lines["lr"].get_ydata()) == [0.3125, 1.0, 5.0]
    assert list(lines["d_sae"].get_xdata()) == [1.0], "no value, and two settings off, are not drawn"
    assert len(figure.legends) == 1
