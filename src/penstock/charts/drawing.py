"""Markers, scales and style of all figures, and saving as PNG and SVG. Needs the optional extra `plots`."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {
    **{"circle": "o", "square": "s", "triangle": "^", "diamond": "D"},
    **{"down": "v", "hexagon": "h", "star": "*"},
}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f95",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e3dc",
    "xtick.color": "#4a5057",
    "ytick.color": "#4a5057",
    "legend.frameon": False,
    "savefig.dpi": 200,
    # A fixed salt gives equal bytes for equal records, so that the SVG can be committed.
    "svg.hashsalt": "penstock",
    "svg.fonttype": "path",
}


class PlotsNotInstalled(ImportError):
    """matplotlib, which draws the figure, is not installed."""


def drawn(draw: Callable[[], "Figure"], path: Path) -> Path:
    """Save a figure as PNG and SVG, and return the path of the PNG. Equal numbers give equal bytes.

    Args:
        draw: Makes the figure; called in the style of all figures.
        path: The path of the files without their suffixes.

    Raises:
        PlotsNotInstalled: matplotlib is missing.
    """
    try:
        import matplotlib
        import matplotlib.style
    except ImportError as error:
        raise PlotsNotInstalled(
            f"{path.name}.png and {path.name}.svg need matplotlib, which is not installed. Install it with "
            "pip install 'penstock[plots]'. Reports and tables do not need it."
        ) from error
    png, svg = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")
    # "default" first, because the user's matplotlibrc must not change the figure.
    with matplotlib.style.context(["default", STYLE]):
        figure = draw()
        figure.savefig(png, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return png


def set_scales(ax: "Axes", saes: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Make the L0 axis logarithmic, and the metric's axis too if its values differ by more than a factor of 6."""
    from matplotlib.axis import Axis
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    values = [record[metric] for record in saes]
    low, high = min(values), max(values)
    log_axes: list[Axis] = [ax.xaxis]
    ax.set_xscale("log")
    if metric != "reconstruction_bias" and low > 0 and high / low > 6:
        ax.set_yscale("log")
        log_axes.append(ax.yaxis)
    for axis in log_axes:
        ends = axis.get_view_interval()
        octaves = math.log2(ends[1] / ends[0])
        if axis is ax.xaxis and 2.5 <= octaves <= 8:
            # Powers of two are the usual steps of a sweep over sparsity.
            axis.set_major_locator(LogLocator(base=2))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if octaves < 7 else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
