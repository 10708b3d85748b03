"""The Pareto figure of a run as PNG and SVG, for papers and READMEs; needs the optional extra `plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.charts.arm_looks import COLORS, SHAPES, ArmLook, arch_and_width, arm_index, find_arms
from penstock.charts.drawing import MARKERS, drawn, set_scales
from penstock.evaluation.arms import CONTROLS, is_control
from penstock.evaluation.sae_record import SAERecord
from penstock.reports.data.records_csv import write_records_csv
from penstock.reports.data.run_data import RunData, read_published, read_run
from penstock.reports.wording import sentences as wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SAERecords = Sequence[SAERecord]

PANELS = {
    "loss_recovered": "Loss recovered",
    "delta_ce": "Delta CE (nats per token)",
    "fvu": "Fraction of variance unexplained",
    "reconstruction_bias": "Reconstruction bias γ",
}

MAX_SENTENCES = 3
"""Most comparisons that are described above the figure."""

_DASHES = ("-", "--", ":", "-.")
_GREY = "#5c636b"


class ParetoFiles(NamedTuple):
    """Paths of the files that `write_pareto_figure` wrote."""

    png: Path
    svg: Path
    csv: Path


def write_pareto_figure(run_dir: Path) -> ParetoFiles:
    """Write `pareto.csv`, `pareto.png` and `pareto.svg` into a run directory, and return their paths.

    The CSV is written first and needs no plotting library, so it exists even if PlotsNotInstalled is raised.

    If the run has a `published.json`, the paper's runs at the run's sites are drawn next to ours.

    Raises:
        FileNotFoundError: records.jsonl is missing; names the command that makes it.
        PlotsNotInstalled: matplotlib is missing; names the extra to install.
    """
    csv = write_records_csv(run_dir)
    png = drawn(lambda: _draw(read_run(run_dir), read_published(run_dir)), run_dir / "pareto")
    return ParetoFiles(png, png.with_suffix(".svg"), csv)


def _draw(run: RunData, published: SAERecords) -> "Figure":
    """Draw one site in a 2 by 2 grid, or several sites in one row each."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    sites = list(dict.fromkeys(str(record.get("site")) for record in run.records))
    arms = find_arms(run.records)
    # A published run with only an L0 appears in no panel, so it must not be in the legend.
    published = [one for one in published if one["site"] in sites and any(one.get(key) is not None for key in PANELS)]
    rows, columns = (2, 2) if len(sites) == 1 else (len(sites), len(PANELS))
    size = (7.2, 6.3) if len(sites) == 1 else (12.5, 2.7 * rows + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.09, w_pad=0.09)  # type: ignore[union-attr]
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, site in enumerate(sites):
        records = [record for record in run.records if str(record.get("site")) == site]
        panels = axes.flat if len(sites) == 1 else axes[row]
        for ax, (metric, title) in zip(panels, PANELS.items(), strict=True):
            if row == 0:
                ax.set_title(title)
            theirs = [one for one in published if one["site"] == site and one.get(metric) is not None]
            _draw_panel(ax, records, theirs, arms, metric)
        if len(sites) > 1:
            axes[row][0].set_ylabel(site, fontsize=7.5, parse_math=False)
    figure.suptitle(_title(run, sites), x=0.015, ha="left", fontsize=8.5, parse_math=False)
    handles = [_arm_handle(arm) for arm in arms]
    handles += [Line2D([], [], **look) for _, look in _published_looks(published, arms)]
    # The paper's names are long.
    in_a_row = min(3 if published else 4, max(1, len(handles)))
    figure.legend(handles=handles, loc="outside lower center", ncols=in_a_row)
    return figure


def _draw_panel(ax: "Axes", records: SAERecords, published: SAERecords, arms: Sequence[ArmLook], metric: str) -> None:
    saes = [
        record
        for record in records
        if not is_control(record) and record.get(metric) is not None and (record.get("l0") or 0) > 0
    ]
    ax.set_xlabel("L0, firing latents per token")
    if not saes and not published:
        ax.text(0.5, 0.5, "not measured", ha="center", transform=ax.transAxes, color=_GREY)
        return
    for theirs, look in _published_looks(published, arms):
        ax.plot([_value(record, "l0") for record in theirs], [_value(record, metric) for record in theirs], **look)
    for seed_records in _lines(saes, arms):
        arm = arms[arm_index(seed_records[0], arms) or 0]
        color = COLORS[arm.slot % len(COLORS)]
        x, y = [_value(r, "l0") for r in seed_records], [_value(r, metric) for r in seed_records]
        ax.plot(x, y, _DASHES[arm.variant % len(_DASHES)], color=color, linewidth=1, alpha=0.55)
        ax.errorbar(
            x,
            y,
            xerr=_error_bars(seed_records, "l0"),
            yerr=_error_bars(seed_records, metric),
            fmt=MARKERS[SHAPES[arm.slot % len(SHAPES)]],
            color=color,
            markersize=4.5,
            markerfacecolor=color if arm.variant % 2 == 0 else "white",
            elinewidth=1,
        )
    set_scales(ax, [*saes, *published], metric)
    if metric == "reconstruction_bias":
        ax.axhline(1.0, color=_GREY, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
    else:
        _draw_levels(ax, records, metric)


def _value(record: Mapping[str, Any], metric: str) -> float:
    """A metric of a record that has it."""
    return record[metric]


def _draw_levels(ax: "Axes", records: SAERecords, metric: str) -> None:
    """Draw controls without components as dashed levels, if they fit the scale that the SAEs need."""
    low, high = ax.get_ylim()
    middle = 0.5 * (low + high)
    for record in records:
        value = record.get(metric)
        if not is_control(record) or record["arch"] == "pca" or value is None or not low <= value <= high:
            continue
        ax.axhline(value, color=_GREY, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
        ax.annotate(
            CONTROLS[record["arch"]],
            # Curves of quality rise to the right, so the upper left and lower right corners are free.
            (0.01, value) if value > middle else (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, -2 if value > middle else 2),
            textcoords="offset points",
            ha="left" if value > middle else "right",
            va="top" if value > middle else "bottom",
            fontsize=7.5,
            color=_GREY,
        )
    ax.set_ylim(low, high)


def _lines(saes: SAERecords, arms: Sequence[ArmLook]) -> list[list[SAERecord]]:
    """Group records by arm and seed, in the order of L0 within a group; arms keep their order."""
    groups: dict[tuple[int, str], list[SAERecord]] = {}
    for record in sorted(saes, key=lambda record: _value(record, "l0")):
        groups.setdefault((arm_index(record, arms) or 0, str(record.get("seed"))), []).append(record)
    return [groups[key] for key in sorted(groups)]


def _error_bars(records: SAERecords, metric: str) -> list[list[float]]:
    """Return the distances below and above each point; 0 if no interval is recorded."""
    below, above = [], []
    for record in records:
        low, high = (record.get("intervals") or {}).get(metric) or (_value(record, metric), _value(record, metric))
        # A bootstrap interval need not contain the point itself; a bar cannot have negative length.
        below.append(max(0.0, _value(record, metric) - low))
        above.append(max(0.0, high - _value(record, metric)))
    return [below, above]


def _title(run: RunData, sites: Sequence[str]) -> str:
    """Return model and site, then the first comparisons in words, wrapped."""
    import textwrap

    width = 104 if len(sites) == 1 else 180
    model = next((str(record["model"]) for record in run.records if record.get("model")), "a language model")
    # A name may contain line breaks of any kind; the title is one line.
    lines = [" ".join(f"Sparse autoencoders on {wording.model_words(model)}, {', '.join(sites)}".split())]
    comparisons = wording.comparisons(run, find_arms(run.records))
    # If there is little room, comparisons with a ratio come first.
    comparisons.sort(key=lambda comparison: comparison.ratio is None)
    for comparison in comparisons[:MAX_SENTENCES]:
        prefix = f"{comparison.site}: " if len(sites) > 1 else ""
        lines += textwrap.wrap(prefix + comparison.sentence, width)
    if len(comparisons) > MAX_SENTENCES:
        lines.append(f"{len(comparisons) - MAX_SENTENCES} more comparisons are in report.html.")
    return "\n".join(lines)


def _arm_handle(arm: ArmLook) -> "Line2D":
    from matplotlib.lines import Line2D

    color = COLORS[arm.slot % len(COLORS)]
    return Line2D(
        [],
        [],
        color=color,
        linestyle=_DASHES[arm.variant % len(_DASHES)],
        marker=MARKERS[SHAPES[arm.slot % len(SHAPES)]],
        markerfacecolor=color if arm.variant % 2 == 0 else "white",
        linewidth=1,
        markersize=5,
        label=arm.label,
    )


def _published_looks(published: SAERecords, arms: Sequence[ArmLook]) -> list[tuple[SAERecords, dict[str, Any]]]:
    """Return the paper's runs by arm and their look: hollow, larger than ours, no line; grey if we lack the arm."""
    looks = []
    theirs = find_arms(published)
    for place, arm in enumerate(theirs):
        mine = [record for record in published if arm_index(record, theirs) == place]
        is_ours = any((one.arch, one.key.d_sae) == (arm.arch, arm.key.d_sae) for one in arms)
        look = {
            "color": COLORS[arm.slot % len(COLORS)] if is_ours else _GREY,
            "linestyle": "",
            "marker": MARKERS[SHAPES[arm.slot % len(SHAPES)]],
            "markerfacecolor": "none",
            "markeredgewidth": 0.8,
            "markersize": 7,
            "label": f"paper: {arch_and_width(arm.arch, mine[0]['d_sae'] or 0)}",
        }
        looks.append((mine, look))
    return looks
