"""Figure of a study that changes the SAEs of a run: its points together with the run's own frontier."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.charts.arm_looks import COLORS, SHAPES, ArmLook, arch_name, arm_index, find_arms
from penstock.charts.drawing import MARKERS, set_scales
from penstock.evaluation.arms import Arm
from penstock.evaluation.sae_record import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONTIER_PANELS = {"loss_recovered": "Loss recovered", "reconstruction_bias": "Reconstruction bias γ"}

OFF_AXIS = 0.02
"""Points are not drawn below this share of the run's smallest L0."""

LONG_LABEL = 45
"""Labels with at least this many characters are set two per row of the legend."""

MOST_SERIES = 8
"""Most arms times series in one panel."""


def draw_frontier(run_records: Records, records: Records) -> "Figure":
    """Draw a study's SAEs together with the frontier of the run, which is one line for each arm.

    Args:
        run_records: Records of the run's SAEs.
        records: Records of the study. Those with the same `series` look alike, those with the same `curve` are joined,
            and `of` names the original SAE.
    """
    from matplotlib.figure import Figure

    arms = find_arms([dict(record) for record in run_records])
    by_arm = _is_crowded(records)
    looks = _looks(run_records, records, arms, by_arm)
    rows = _rows(run_records, records, arms, by_arm)
    figure = Figure(figsize=(8.4, 3.2 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots(len(rows), len(FRONTIER_PANELS), squeeze=False)
    for row, (title, at_site, shown) in zip(axes, rows, strict=True):
        for ax, (metric, name) in zip(row, FRONTIER_PANELS.items(), strict=True):
            # The name of a site and an arm is long, so only the first panel of a row has it.
            ax.set_title(f"{name}, {title}" if ax is row[0] else name)
            _draw_panel(ax, at_site, shown, metric, arms, looks)
    legend = {label: handle for ax in axes[:, 0] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    in_a_row = 3 if max(map(len, legend)) < LONG_LABEL else 2
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=in_a_row, fontsize=7.5, handlelength=3.2
    )
    return figure


def _is_crowded(records: Records) -> bool:
    """Return whether the same series occur for several arms, and for more arms than fit in one panel."""
    arms = {Arm.of(record) for record in records}
    names = {record["series"] for record in records}
    return bool(_shared(records)) and len(arms) * len(names) > MOST_SERIES


def _shared(records: Records) -> set[str]:
    """Return the names of series that occur for more than one architecture."""
    archs: dict[str, set[str]] = {}
    for record in records:
        archs.setdefault(str(record["series"]), set()).add(str(record["arch"]))
    return {name for name, found in archs.items() if len(found) > 1}


def _rows(
    run_records: Records, records: Records, arms: Sequence[ArmLook], by_arm: bool
) -> list[tuple[str, Records, Records]]:
    """Return the title of each row of panels, the run's SAEs at its site, and the study's records in it."""
    arm_of = {str(record["name"]): arms[arm_index(dict(record), arms) or 0].label for record in run_records}
    found: list[tuple[str, Records, Records]] = []
    for site in dict.fromkeys(str(record["site"]) for record in records):
        at_site, shown = _at(run_records, site), _at(records, site)
        if not by_arm:
            found.append((site, at_site, shown))
            continue
        by_label: dict[str, list[Mapping[str, Any]]] = {}
        for record in shown:
            by_label.setdefault(arm_of[str(record["of"])], []).append(record)
        found += [(f"{site}, {label}", at_site, mine) for label, mine in by_label.items()]
    return found


def _looks(
    run_records: Records, records: Records, arms: Sequence[ArmLook], by_arm: bool
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the look of each architecture's series, the same in every panel.

    Colour distinguishes series, or architectures if several share a panel.
    """
    slots = {arm.arch: arm.slot for arm in arms}
    free = [color for slot, color in enumerate(COLORS) if slot not in slots.values()]
    series = list(dict.fromkeys((str(record["arch"]), str(record["series"])) for record in records))
    names = list(dict.fromkeys(name for _, name in series))
    left = _left_end(run_records)
    off_axis = {str(record["series"]) for record in records if (record.get("l0") or 0) < left}
    shared = set() if by_arm else _shared(records)
    looks = {}
    for place, (arch, name) in enumerate(series):
        number = names.index(name) if by_arm else place
        label = f"{arch_name(arch)}: {name}" if name in shared else name
        label += f" (some with L0 below {left:.2g}, off the axis)" if name in off_axis else ""
        looks[arch, name] = {
            "color": COLORS[slots.get(arch, len(arms)) % len(COLORS)] if shared else free[number % len(free)],
            "marker": MARKERS[SHAPES[(number + 2) % len(SHAPES)]],
            "linestyle": ("--", ":", "-.")[number % 3],
            "label": label,
        }
    return looks


def _left_end(run_records: Records) -> float:
    """Return the L0 below which nothing is drawn; collapsed SAEs would squeeze all other points to one side."""
    return OFF_AXIS * min((r["l0"] for r in run_records if (r.get("l0") or 0) > 0), default=0.0)


def _draw_panel(
    ax: "Axes",
    run_records: Records,
    records: Records,
    metric: str,
    arms: Sequence[ArmLook],
    looks: Mapping[tuple[str, str], dict[str, Any]],
) -> None:
    ax.set_xlabel("L0, firing latents per token")
    for place, arm in enumerate(arms):
        mine = [r for r in run_records if arm_index(dict(r), arms) == place]
        for number, seed in enumerate(dict.fromkeys(r["seed"] for r in mine)):
            ax.plot(
                *zip(*_drawable([r for r in mine if r["seed"] == seed], metric), strict=True),
                color=COLORS[arm.slot % len(COLORS)],
                marker=MARKERS[SHAPES[arm.slot % len(SHAPES)]],
                linestyle=("-", "--", ":", "-.")[arm.variant % 4],
                linewidth=1.6,
                label=None if number else f"{arm.label}, as trained",
            )
    left = _left_end(run_records)
    records = [{**record, "l0": None} if (record.get("l0") or 0) < left else record for record in records]
    for (arch, name), look in looks.items():
        mine = [record for record in records if (record["arch"], record["series"]) == (arch, name)]
        for number, line in enumerate(_curves(mine)):
            points = zip(*_drawable(line, metric), strict=True)
            named: dict[str, Any] = {**look, "label": None if number else look["label"]}
            ax.plot(*points, **named, markerfacecolor="white", linewidth=0.9, markersize=4.5)
    both = (*run_records, *records)
    shown = [dict(record) for record in both if record.get(metric) is not None and record.get("l0") is not None]
    if shown:
        set_scales(ax, shown, metric)
    if metric == "reconstruction_bias":
        ax.axhline(1.0, color="#5c636b", linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)


def _curves(series: Records) -> list[list[Mapping[str, Any]]]:
    """Group the records that were made in the same way from SAEs of one arm and seed."""
    lines: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in series:
        key = (Arm.of(record), record["curve"], record["seed"])
        lines.setdefault(key, []).append(record)
    return list(lines.values())


def _at(records: Records, site: str) -> list[Mapping[str, Any]]:
    return [record for record in records if record["site"] == site]


def _drawable(records: Records, metric: str) -> list[tuple[float, float]]:
    """Return L0 and metric of the records that have both, in the order of L0; never empty."""
    points = sorted((r["l0"], r[metric]) for r in records if r.get(metric) is not None and (r.get("l0") or 0) > 0)
    return points or [(float("nan"), float("nan"))]
