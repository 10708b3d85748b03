"""The convergence figure and tables, from the results file alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from search import SETTINGS, TARGET_L0, Point, Row, is_penstock, point, select, tuned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARCHS = {
    "Gated": ("penstock-gated", "saelens-gated", "dl-gated"),
    "ReLU": ("penstock-relu", "saelens-standard", "dl-relu"),
}
"""The arms of each architecture, ours first."""

LIBRARIES = {"penstock": "penstock", "saelens": "SAELens", "dl": "dictionary_learning"}

LOOKS = {"penstock": ("#0b6bb3", "o", "-"), "saelens": ("#c44e0a", "s", "--"), "dl": ("#007f5f", "^", ":")}
"""Colour, marker and dashes of each library; any one of the three is enough to tell them apart."""

_STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e3dc",
    "savefig.dpi": 200,
    # Fixed, so that the same results always give the same bytes.
    "svg.hashsalt": "penstock",
}


class Curve(NamedTuple):
    """What an arm reaches at the target L0, by length of run."""

    arm: str
    lrs: dict[int, str]
    """The learning rate of each length, or `rule`."""
    points: dict[int, Point]

    @property
    def library(self) -> str:
        """Key of LIBRARIES."""
        return self.arm.split("-")[0]


def curves(rows: Sequence[Row], setting: str, arms: Sequence[str]) -> list[Curve]:
    """The curves of some arms at one setting, a peer's at its best learning rate; arms without a point are left out."""
    found = []
    for arm in arms:
        best = None if is_penstock(arm) else tuned(rows, arm)
        if best is None and not is_penstock(arm):
            continue
        curve = Curve(arm, {}, {})
        for steps in sorted({row["steps"] for row in select(rows, setting=setting, arm=arm)}):
            lr = best.at(steps) if best else None
            reached = point(select(rows, setting=setting, arm=arm, steps=steps, lr=lr))
            if reached is not None:
                curve.lrs[steps] = "rule" if lr is None else f"{lr:g}"
                curve.points[steps] = reached
        if curve.points:
            found.append(curve)
    return found


def seconds_to_reach(curve: Curve, fvu: float) -> float | None:
    """Seconds of training after which a curve is as low as `fvu`, interpolated in logs between lengths of run.

    Returns:
        None if no run is that good; the shortest run's seconds if already that is.
    """
    reached = sorted(curve.points.items())
    if reached[0][1].fvu <= fvu:
        return reached[0][1].cpu_seconds
    for (_, worse), (_, better) in zip(reached, reached[1:], strict=False):
        if better.fvu <= fvu < worse.fvu:
            share = math.log(worse.fvu / fvu) / math.log(worse.fvu / better.fvu)
            return math.exp((1 - share) * math.log(worse.cpu_seconds) + share * math.log(better.cpu_seconds))
    return None


def tables(rows: Sequence[Row]) -> str:
    """Every point, and for every peer what penstock needs to come as far, as Markdown."""
    lines = [
        f"| setting | arm | lr | steps | FVU at L0 {TARGET_L0:g} | loss recovered | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    bars = [
        "| setting | peer | its steps | its seconds | its FVU | penstock's seconds to that FVU | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting in SETTINGS:
        for arms in ARCHS.values():
            drawn = curves(rows, setting, arms)
            for curve in drawn:
                lines += [
                    f"| {setting} | {curve.arm} | {curve.lrs[steps]} | {steps:,} | {at.fvu:.3f} | "
                    f"{at.loss_recovered:.3f} | {at.cpu_seconds:.1f} |"
                    for steps, at in curve.points.items()
                ]
            own = [curve for curve in drawn if is_penstock(curve.arm)]
            bars += [_bar(setting, curve, own[0]) for curve in drawn if own and not is_penstock(curve.arm)]
    peers = [arm for arms in ARCHS.values() for arm in arms if not is_penstock(arm)]
    edges = [f"{arm} ({best.lr:g})" for arm in peers if (best := tuned(rows, arm)) and best.is_edge]
    note = f"\nBest rate at the edge of those tried (add some with --peer-lrs): {', '.join(edges)}." if edges else ""
    return "\n".join([*lines, "", *bars]) + note


def _bar(setting: str, peer: Curve, own: Curve) -> str:
    """One peer's longest run against ours."""
    steps, final = max(peer.points.items())
    ours = seconds_to_reach(own, final.fvu)
    if ours is None:
        reached, share = "not reached", ""
    else:
        at_most = "at most " if ours == min(own.points.items())[1].cpu_seconds else ""
        reached, share = f"{at_most}{ours:.1f}", f"{at_most}1/{final.cpu_seconds / ours:.1f}"
    return f"| {setting} | {peer.arm} | {steps:,} | {final.cpu_seconds:.1f} | {final.fvu:.3f} | {reached} | {share} |"


def draw(rows: Sequence[Row], path: Path) -> list[Path]:
    """Draw every setting and architecture that has points: FVU against steps and seconds, loss recovered beside it.

    Args:
        rows: The results.
        path: Of the figures, without a suffix.

    Returns:
        The files written, PNG and SVG; none if there is nothing to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(setting, arch, curves(rows, setting, arms)) for setting in SETTINGS for arch, arms in ARCHS.items()]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return []
    with pyplot.rc_context(_STYLE):
        figure, grid = pyplot.subplots(len(panels), 3, figsize=(10, 2.7 * len(panels)), squeeze=False)
        for line, (setting, arch, drawn) in zip(grid, panels, strict=True):
            d_sae = SETTINGS[setting].d_sae
            for axes, (x_name, y_name) in zip(line, _AXES, strict=True):
                _panel(axes, drawn, x_name, y_name)
                axes.set_title(f"{arch}, {d_sae} latents")
        figure.tight_layout()
        files = [path.with_suffix(".png"), path.with_suffix(".svg")]
        for file in files:
            figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
        pyplot.close(figure)
    return files


_AXES = (("steps", "fvu"), ("seconds", "fvu"), ("seconds", "loss_recovered"))
"""What the panels of a line show."""

_NAMES = {
    "steps": "steps",
    "seconds": "seconds of training (one thread)",
    "fvu": f"FVU at L0 {TARGET_L0:g}",
    "loss_recovered": f"loss recovered at L0 {TARGET_L0:g}",
}


def _panel(axes: "Axes", drawn: Sequence[Curve], x_name: str, y_name: str) -> None:
    """One panel: a line per library, named at its right end."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ends = []
    for curve in drawn:
        color, marker, dashes = LOOKS[curve.library]
        xs = [steps if x_name == "steps" else at.cpu_seconds for steps, at in curve.points.items()]
        ys = [getattr(at, y_name) for at in curve.points.values()]
        axes.plot(xs, ys, color=color, marker=marker, linestyle=dashes, linewidth=1.6, markersize=4.5)
        ends.append((ys[-1], xs[-1], LIBRARIES[curve.library], color))
    axes.set_xscale("log")
    axes.set_xlabel(_NAMES[x_name])
    axes.set_ylabel(_NAMES[y_name])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.05, y=0.12)
    # Room for the names.
    low, high = axes.get_xlim()
    axes.set_xlim(low, low * (high / low) ** 1.55)
    _name_ends(axes, sorted(ends))


def _name_ends(axes: "Axes", ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its last mark, moved apart where two would overlap."""
    low, high = axes.get_ylim()
    apart = 0.09 * (high - low)
    at = -math.inf
    for y, x, name, color in ends:
        at = max(y, at + apart)
        lift = (at - y) / (high - low) * axes.bbox.height * 72 / axes.figure.dpi
        offset = (6.0, lift)
        axes.annotate(name, (x, y), offset, textcoords="offset points", color=color, fontsize=8, va="center")
