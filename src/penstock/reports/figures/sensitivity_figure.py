"""Figure of the sensitivity study: what a setting that is off by a factor costs each arm."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.charts.arm_looks import COLORS, SHAPES, Arm, find_arms
from penstock.charts.drawing import MARKERS
from penstock.charts.lines_by_l0 import LEVEL, not_measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTINGS = {
    "lr": "learning rate",
    "sparsity_coef": "sparsity coefficient",
    "d_sae": "width, d_sae",
    "warmup_share": "warm-up",
}

ROWS = {"lost_ratio": "loss not recovered,\nat equal L0", "l0_ratio": "L0"}

Records = Sequence[Mapping[str, Any]]


def draw_sensitivity(records: Records) -> "Figure":
    """The loss not recovered and L0 against the factor of each setting; drawn are the centres and what has one off."""
    from matplotlib.figure import Figure

    sites = list(dict.fromkeys(str(record["site"]) for record in records))
    arms = find_arms([{"arch": record["arch"]} for record in records])
    figure = Figure(figsize=(11, 2.4 * len(ROWS) * len(sites) + 0.8), layout="constrained")
    axes = figure.subplots(len(ROWS) * len(sites), len(SETTINGS), squeeze=False, sharey="row")
    rows = [(site, metric) for site in sites for metric in ROWS]
    for panels, (site, metric) in zip(axes, rows, strict=True):
        panels[0].set_ylabel(f"{ROWS[metric]}\n(centre = 1), {site}", fontsize=7.5, parse_math=False)
        for ax, (setting, title) in zip(panels, SETTINGS.items(), strict=True):
            ax.set_title(title)
            ax.set_xlabel("factor")
            measured = [r for r in records if r["site"] == site and (r[metric] or 0) > 0]
            if not measured:
                not_measured(ax)
                continue
            for arm in arms:
                _draw_line(ax, [r for r in measured if r["arch"] == arm.arch], arm, setting, metric)
            ax.axhline(1, **LEVEL)
            _powers_of_two(ax)
    handles, labels = axes[-1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(arms))
    return figure


def _draw_line(ax: "Axes", mine: Records, arm: Arm, setting: str, metric: str) -> None:
    factors = [{**dict.fromkeys(SETTINGS, 1.0), **record["factors"]} for record in mine]
    shown = [
        (off[setting], record)
        for off, record in zip(factors, mine, strict=True)
        if all(off[name] == 1 for name in SETTINGS if name != setting)
    ]
    shown.sort(key=lambda one: one[0])
    y = [record[metric] for _, record in shown]
    with_bars = metric == "lost_ratio"
    below = [value - (record["low"] or value) for value, (_, record) in zip(y, shown, strict=True)]
    above = [(record["high"] or value) - value for value, (_, record) in zip(y, shown, strict=True)]
    ax.errorbar(
        [factor for factor, _ in shown],
        y,
        yerr=[[max(0.0, value) for value in below], [max(0.0, value) for value in above]] if with_bars else None,
        color=COLORS[arm.slot % len(COLORS)],
        marker=MARKERS[SHAPES[arm.slot % len(SHAPES)]],
        linewidth=1.3,
        elinewidth=0.9,
        markersize=4.5,
        label=arm.label,
    )


def _powers_of_two(ax: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(base=2))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
