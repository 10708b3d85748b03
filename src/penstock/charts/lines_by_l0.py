"""Drawing a study's records as lines against L0: grouping records into lines, averaging over seeds, styles."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.charts.arm_looks import COLORS, SHAPES, ArmLook, arm_index, find_arms, looks_of, place_of
from penstock.charts.drawing import MARKERS
from penstock.evaluation.arms import Arm
from penstock.evaluation.sae_record import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Value = Callable[[Record], float | None]

SAME_LEVEL = 1.25
"""SAEs of a series whose L0s differ by at most this factor are averaged, as seeds with the same target."""

INK, GREY = "#24292e", "#6b7178"
REFERENCE_LINE = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (2, 3)), "zorder": 1}
"""The style of a line that marks a reference value, e.g. 1."""

_DASHES = ("-", ":", "-.", (0, (1, 1)))


class _Point(NamedTuple):
    l0: float
    y: float
    below: float
    """The length of the error bar below the point."""
    above: float
    """The length of the error bar above the point."""


class Series(NamedTuple):
    """The records of one line, and its style."""

    label: str
    color: str
    marker: str
    dashes: Any
    filled: bool
    records: Records
    points: Sequence[_Point] = ()
    """The points of the line, filled in by `line_of`."""


def arm_series(records: Records) -> list[Series]:
    """Return one series per arm, with its architecture's colour and marker."""
    rows = [dict(record) for record in records]
    arms = find_arms(rows)
    return [_look(arm, arm.label, [row for row in rows if arm_index(row, arms) == n]) for n, arm in enumerate(arms)]


def pair_series(records: Records, compared: str) -> list[Series]:
    """Return one series per pair of arms, all in the same colour, and one per arm whose seeds are compared.

    Args:
        records: Records about pairs of SAEs, a and b.
        compared: The key that says whether a record compares `arms` or `seeds`.
    """
    sides = [(Arm.at_side(record, "a"), Arm.at_side(record, "b")) for record in records]
    arms = looks_of([arm for side in sides for arm in side])
    groups: dict[tuple[str, int, int], list[Record]] = {}
    for record, (a, b) in zip(records, sides, strict=True):
        key = (record[compared], place_of(a, arms), place_of(b, arms))
        groups.setdefault(key, []).append(record)
    found = []
    for (kind, a, b), mine in sorted(groups.items(), key=lambda group: group[0]):
        if kind == "seeds":
            found.append(_look(arms[a], f"seeds of {arms[a].label}", mine))
        else:
            place = len(found)
            label = f"{arms[b].label} (b) against {arms[a].label} (a)" if a != b else f"two arms of {arms[a].label}"
            marker = MARKERS[SHAPES[(place + 2) % len(SHAPES)]]
            found.append(Series(label, INK, marker, _DASHES[place % len(_DASHES)], place % 2 == 0, mine))
    return found


def _look(arm: ArmLook, label: str, records: Records) -> Series:
    dashes, marker = _DASHES[arm.variant % len(_DASHES)], MARKERS[SHAPES[arm.slot % len(SHAPES)]]
    return Series(label, COLORS[arm.slot % len(COLORS)], marker, dashes, arm.variant % 2 == 0, records)


def line_of(series: Series, y: Value, low: Value | None = None, high: Value | None = None) -> Series:
    """Return the series with its points in ascending order of L0, averaged over SAEs at about the same L0.

    Args:
        series: The series.
        y: Returns the value of a record, or None to leave it out.
        low: Returns the lower end of the error bar.
        high: Returns the upper end of the error bar.
    """
    found = []
    for record in series.records:
        l0, value = _mean([record.get(key) for key in ("l0", "l0_a", "l0_b")]), y(record)
        if l0 is None or l0 <= 0 or value is None:
            continue
        ends = [end(record) if end else None for end in (low, high)]
        bottom, top = (value if end is None else end for end in ends)
        # A bootstrap interval need not contain the point itself; a bar cannot have negative length.
        found.append(_Point(l0, value, max(0.0, value - bottom), max(0.0, top - value)))
    levels: list[list[_Point]] = []
    for point in sorted(found):
        if levels and point.l0 <= SAME_LEVEL * levels[-1][0].l0:
            levels[-1].append(point)
        else:
            levels.append([point])
    means = [_Point(*(sum(values) / len(level) for values in zip(*level, strict=True))) for level in levels]
    return series._replace(points=means)


def draw_lines(ax: "Axes", lines: Sequence[Series]) -> None:
    """Draw points against L0 on a logarithmic axis; series with error bars are shifted a little to avoid overlap."""
    lines = [line for line in lines if line.points]
    ax.set_xlabel("L0, firing latents per token")
    if not lines:
        not_measured(ax)
        return
    with_bars = any(point.below or point.above for line in lines for point in line.points)
    for place, line in enumerate(lines):
        shift = 2 ** (0.05 * (place - (len(lines) - 1) / 2)) if with_bars else 1
        ax.errorbar(
            [shift * point.l0 for point in line.points],
            [point.y for point in line.points],
            yerr=[[point.below for point in line.points], [point.above for point in line.points]]
            if with_bars
            else None,
            color=line.color,
            linestyle=line.dashes,
            marker=line.marker,
            markerfacecolor=line.color if line.filled else "white",
            linewidth=1.2,
            elinewidth=0.9,
            markersize=4.5,
            label=line.label,
        )
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    powers = [2.0**n for n in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    inside = [power for power in powers if low <= power <= high]
    # A narrow axis may contain no power of two. Then the ticks are at the points.
    set_ticks(ax.xaxis, inside if len(inside) > 1 else sorted({point.l0 for line in lines for point in line.points}))


def grid(rows: int, columns: int, *, width: float, height: float = 3.4) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * rows + 0.8), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def legend(figure: "Figure", panels: Any) -> None:
    """Draw one legend for all panels below them, with each label once."""
    handles = {}
    for ax in panels:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=7.5, handlelength=3
        )


def set_ticks(axis: "Axis", ticks: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def not_measured(ax: "Axes") -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(0.5, 0.5, "not measured", ha="center", transform=ax.transAxes, color=GREY)


def sites_of(records: Records) -> list[str]:
    return list(dict.fromkeys(str(record["site"]) for record in records))


def at_site(records: Records, site: str) -> list[Record]:
    return [record for record in records if record["site"] == site]


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def mean_of(*keys: str) -> Value:
    return lambda record: _mean([record.get(key) for key in keys])
