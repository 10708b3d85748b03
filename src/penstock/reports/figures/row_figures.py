"""Figures of the studies whose records are rows of their own kind."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.charts.arm_looks import COLORS, SHAPES, find_arms
from penstock.charts.drawing import MARKERS, drawn
from penstock.charts.lines_by_l0 import (
    GREY,
    LEVEL,
    Records,
    Series,
    Value,
    arm_series,
    at_site,
    draw_lines,
    grid,
    legend,
    line_of,
    mean_of,
    not_measured,
    pair_series,
    set_ticks,
    sites_of,
)
from penstock.reports.figures.sensitivity_figure import draw_sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND_COLUMNS = 4
"""Kinds of concept side by side."""

_RATIO_TICKS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 5.0, 10.0)


def write_row_figure(study: str, folder: Path, records: Records) -> Path | None:
    """Writes `figure.png` and `figure.svg` into a study's folder and returns the first.

    Args:
        study: Its name.
        folder: The study's folder.
        records: Of the study; those of the kind `difference` belong in a table. A value that is missing or None is
            left out, and a panel without any says "not measured".

    Returns:
        None, and nothing is written, for other studies and where there is nothing to show.

    Raises:
        PlotsNotInstalled: matplotlib is missing; names the extra to install.
    """
    shown = [record for record in records if record.get("kind") != "difference"]
    if study not in _FIGURES or not shown:
        return None
    return drawn(lambda: _FIGURES[study](shown), folder / "figure")


def _shrinkage(records: Records) -> "Figure":
    pairs = [record for record in records if record["kind"] == "pair"]
    figure, axes = grid(max(1, len(sites_of(pairs))), 3, width=11.5)
    _draw_toy(axes[0][0], [record for record in records if record["kind"] == "toy"])
    for ax in axes[1:, 0]:
        ax.set_axis_off()
    for (_, ratios, medians), site in zip(axes, sites_of(pairs) or ["no pair of SAEs"], strict=True):
        series = pair_series(at_site(pairs, site), "compared")
        ratios.set_title(f"Magnitudes of shared latents, {site}")
        _draw_ratios(ratios, series)
        medians.set_title(f"Median ratio, {site}")
        medians.set_ylabel("magnitude ratio b / a")
        median, low, high = (lambda record, key=key: record.get(key) for key in ("median", "low", "high"))
        lines = [line_of(one, median, low, high) for one in series]
        draw_lines(medians, lines)
        if any(line.points for line in lines):
            medians.axhline(1, **LEVEL)
    legend(figure, axes[0][1:])
    return figure


def _draw_toy(ax: "Axes", toy: Records) -> None:
    ax.set_title("Toy: one latent, x = 1")
    ax.set_xlabel("sparsity coefficient λ")
    ax.set_ylabel("magnitude")
    if not toy:
        not_measured(ax)
        return
    for arm in find_arms([{"arch": record["arch"]} for record in toy]):
        mine = sorted((r for r in toy if r["arch"] == arm.arch), key=lambda r: r["sparsity_coef"])
        coefs, color = [record["sparsity_coef"] for record in mine], COLORS[arm.slot % len(COLORS)]
        ax.plot(coefs, [record["exact"] for record in mine], color=color, linewidth=1.4, label=f"{arm.label}, exact")
        marker = MARKERS[SHAPES[arm.slot % len(SHAPES)]]
        trained = [record["magnitude"] for record in mine]
        ax.plot(coefs, trained, color=color, linestyle="", marker=marker, label=f"{arm.label}, trained")
    ax.set_ylim(0, 1.12)
    ax.legend(loc="lower left", fontsize=7.5)


def _draw_ratios(ax: "Axes", series: Sequence["Series"]) -> None:
    """For each series the share of latents up to each ratio, on a logarithmic axis that 98 of 100 latents lie on."""
    ax.set_xlabel("magnitude ratio b / a")
    ax.set_ylabel("share of latents below")
    pooled = [sorted(ratio for record in one.records for ratio in record.get("ratios") or []) for one in series]
    far = sorted(abs(math.log(ratio)) for ratios in pooled for ratio in ratios if ratio > 0)
    if not far:
        not_measured(ax)
        return
    for one, ratios in zip(series, pooled, strict=True):
        shares = [(place + 1) / len(ratios) for place in range(len(ratios))]
        ax.step(ratios, shares, where="post", color=one.color, linestyle=one.dashes, linewidth=1.4)
    reach = max(0.5, far[math.ceil(0.98 * len(far)) - 1])
    ax.set_xscale("log")
    ax.set_xlim(math.exp(-reach), math.exp(reach))
    ax.set_ylim(0, 1)
    set_ticks(ax.xaxis, [tick for tick in _RATIO_TICKS if abs(math.log(tick)) <= reach])
    ax.axvline(1, **LEVEL)


def _dictionaries(records: Records) -> "Figure":
    figure, axes = grid(len(sites_of(records)), 2, width=8.4)
    for (cosine, matched), site in zip(axes, sites_of(records), strict=True):
        mine = at_site(records, site)
        series = pair_series(mine, "kind")
        chance = Series("cosine of random directions", GREY, "", "-", True, mine)
        cosine.set_title(f"Mean max cosine, {site}")
        both = [line_of(one, mean_of("mean_max_cosine_a_to_b", "mean_max_cosine_b_to_a")) for one in series]
        draw_lines(cosine, [*both, line_of(chance, mean_of("null_mean_a_to_b", "null_mean_b_to_a"))])
        matched.set_title(f"Share of latents matched, {site}")
        draw_lines(matched, [line_of(one, mean_of("matched_share_a", "matched_share_b")) for one in series])
        for ax in (cosine, matched):
            ax.set_ylim(0, 1)
    legend(figure, axes.flat)
    return figure


def _concepts(records: Records) -> "Figure":
    kinds = list(dict.fromkeys(kind for record in records for kind in record["kinds"]))
    rows = math.ceil(len(kinds) / KIND_COLUMNS)
    figure, axes = grid(len(sites_of(records)) * rows, KIND_COLUMNS, width=11.5, height=2.6)
    for number, site in enumerate(sites_of(records)):
        series = arm_series(at_site(records, site))
        panels = list(axes[number * rows : (number + 1) * rows].flat)
        for ax, kind in zip(panels, kinds, strict=False):
            share, low, high = (
                lambda record, key=key, kind=kind: (record["kinds"].get(kind) or {}).get(key)
                for key in ("share", "low", "high")
            )
            ax.set_title(f"{kind}, {site}")
            draw_lines(ax, [line_of(one, share, low, high) for one in series])
            ax.set_ylim(bottom=0)
            ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        for ax in panels[len(kinds) :]:
            ax.set_axis_off()
    legend(figure, axes.flat)
    return figure


def _cost(records: Records) -> "Figure":
    figure, axes = grid(len(sites_of(records)), 2, width=8.4)
    for (step, encode), site in zip(axes, sites_of(records), strict=True):
        series = arm_series(at_site(records, site))
        exported = [
            one._replace(label=f"{one.label}, exported to JumpReLU", dashes="--", filled=False)
            for one in series
            if any(record.get("encode_seconds_as_jumprelu") is not None for record in one.records)
        ]
        step.set_title(f"Training step, {site}")
        draw_lines(step, [line_of(one, _milliseconds("step_seconds")) for one in series])
        encode.set_title(f"Encoding, {site}")
        lines = [line_of(one, _milliseconds("encode_seconds")) for one in series]
        draw_lines(encode, lines + [line_of(one, _milliseconds("encode_seconds_as_jumprelu")) for one in exported])
        for ax in (step, encode):
            ax.set_ylabel("milliseconds per batch")
            ax.set_ylim(bottom=0)
    legend(figure, axes.flat)
    return figure


_FIGURES: dict[str, Callable[[Records], "Figure"]] = {
    "shrinkage": _shrinkage,
    "dictionaries": _dictionaries,
    "concepts": _concepts,
    "cost": _cost,
    "sensitivity": draw_sensitivity,
}


def _milliseconds(key: str) -> Value:
    return lambda record: None if record.get(key) is None else 1000 * record[key]
