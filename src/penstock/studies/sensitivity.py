"""Sensitivity to wrong settings: learning rate, coefficient, width and warm-up multiplied by known factors.

One SAE of each architecture of a run is the centre, and is retrained with every factor. All SAEs except those with
another coefficient are steered to the centre's L0. A remaining difference in L0 is corrected along the arm's own
frontier, where log(1 - loss recovered) is close to linear in log L0 (see `comparison.py`).
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from penstock.charts.arm_looks import COLORS, SHAPES, ArmLook, find_arms
from penstock.charts.drawing import MARKERS
from penstock.charts.lines_by_l0 import REFERENCE_LINE, not_measured
from penstock.evaluation.arms import Arm
from penstock.evaluation.comparison import Point
from penstock.evaluation.frontier import Frontier, frontier_of, log_lost, ratio_with_interval
from penstock.evaluation.sae_record import Records
from penstock.runs.finished_run import FinishedRun
from penstock.runs.splitting import from_sparse_to_dense
from penstock.saes import training_of
from penstock.studies.shared.declaration import Study, Table, columns
from penstock.studies.shared.ratios_to_run import own_points
from penstock.studies.shared.variants import CoefOf, Variant, train_variants
from penstock.training.settings import ResolvedRun, ResolvedSAE, SAEConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTING_TITLES = {
    "lr": "learning rate",
    "sparsity_coef": "sparsity coefficient",
    "d_sae": "width, d_sae",
    "warmup_share": "warm-up",
}

SHOWN_METRICS = {"lost_ratio": "loss not recovered,\nat equal L0", "l0_ratio": "L0"}

logger = logging.getLogger(__name__)

SETTINGS = ("lr", "sparsity_coef", "d_sae", "warmup_share")

REACH = 1.25
"""The factor by which an arm's frontier is extrapolated beyond its own L0s."""

Factors = Mapping[str, float]
"""The factor of each of SETTINGS."""


@dataclass(frozen=True, kw_only=True)
class SensitivityConfig:
    lr: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    """Factors on the learning rate."""
    sparsity_coef: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    """Factors on the final sparsity coefficient of the centre."""
    d_sae: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    """Factors on the number of latents."""
    warmup_share: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    """Factors on the share of the steps over which the learning rate rises."""
    grid: Literal["one_at_a_time", "full"] = "one_at_a_time"
    """Change one setting at a time, or train all combinations of the factors, including 1."""
    target_l0: float | None = None
    """Target L0 of the SAE of each arm that is the centre; by default the one in the middle."""

    def __post_init__(self) -> None:
        for name in SETTINGS:
            wrong = [factor for factor in getattr(self, name) if not 0 < factor < math.inf or factor == 1]
            if wrong:
                raise ValueError(
                    f"{name}={wrong[0]} is out of range: it must be a factor above 0 other than 1, which is the centre."
                )


def sensitivity(run: FinishedRun, config: SensitivityConfig) -> Records:
    """Retrain the centre of each architecture with changed settings, and measure the loss that this costs.

    Returns:
        A record for each SAE, including the centres, with these keys.
        `factors`: the factor of every setting; `setting` and `factor` if only one setting is changed.
        `l0_ratio`: L0 divided by the centre's.
        `lost_ratio`: 1 - loss recovered, divided by the centre's at equal L0; `low` and `high` are its paired 95%
        interval over held-out sequences. `shown`: whether the interval is on one side of 1.
        `of_best`: `lost_ratio` divided by the arm's lowest at the centre's coefficient.
        `diverged`: the message of an SAE that diverged, which has no numbers, otherwise None.
        Ratios are None if they are undefined, or if L0 is beyond the arm's own frontier by more than REACH.

    Raises:
        ValueError: no SAE has that target, or a changed setting is out of range.
        DivergenceError: all retrained SAEs diverged.
    """
    own = own_points(run.run_dir)
    variants = sensitivity_variants(run.config, config, run.coef_of)
    trained = train_variants(run, "sensitivity", [variant.sae for variant in variants])
    measured = run.measure(trained.described())
    points = {record["name"]: (record, point) for record, point in zip(measured.records, measured.points, strict=True)}
    records: list[dict[str, Any]] = []
    for centre in _centres(run.config, config):
        reference = own[centre.folder]
        frontier = frontier_of([own[sae.folder] for sae in _arm(run.config, centre) if sae.seed == centre.seed])
        rows = [_row(run.about[centre.folder], reference, reference, frontier, dict.fromkeys(SETTINGS, 1.0))]
        rows += [
            _row(*points[sae.folder], reference, frontier, factors)
            if sae.folder in points
            else _diverged(sae, factors, trained.diverged[sae.folder])
            for sae, of, factors in variants
            if of == centre.folder
        ]
        # Another coefficient moves an SAE along the frontier. It is neither a better nor a worse setting.
        same = [row for row in rows if row["factors"]["sparsity_coef"] == 1]
        least = min((row["lost_ratio"] for row in same if row["lost_ratio"] is not None), default=None)
        for row in rows:
            row["of_best"] = None if row["lost_ratio"] is None or least is None else row["lost_ratio"] / least
        records += rows
    return records


def sensitivity_variants(run: ResolvedRun, config: SensitivityConfig, coef_of: CoefOf) -> list[Variant]:
    """The SAEs that the study trains, with their factors as the change. Centres are not retrained.

    Raises:
        ValueError: see `sensitivity`.
    """
    centres = _centres(run, config)
    _check_warmup(run, centres, config)
    found: dict[str, Variant] = {}
    for centre in centres:
        for factors in _grid(config):
            if factors["sparsity_coef"] != 1 and not training_of(centre.arch).aims:
                # The architecture's own settings decide how many latents fire, so it has no coefficient to change.
                continue
            sae = _with(centre, factors, coef_of(centre.folder))
            found[sae.folder] = Variant(sae, centre.folder, factors)
    return list(found.values())


def _check_warmup(run: ResolvedRun, centres: Sequence[ResolvedSAE], config: SensitivityConfig) -> None:
    decay = run.optim.decay_share
    for sae in centres:
        for factor in config.warmup_share:
            share = factor * sae.warmup_share
            if not 0 < share <= min(0.9, 1 - decay):
                raise ValueError(
                    f"warmup_share={factor:g} gives {sae.folder} a warm-up of {share:g} of its steps: it must be above "
                    f"0 and, together with the decay over {decay:g} of them, at most 1. Choose other factors, or none "
                    "(--warmup-share)."
                )


def _arm(run: ResolvedRun, centre: ResolvedSAE) -> list[ResolvedSAE]:
    """The SAEs of the run that differ from the centre only in L0 and seed."""
    return [sae for sae in run.saes if _key(sae) == _key(centre)]


def _key(sae: SAEConfig) -> tuple[str, Arm]:
    return sae.site, Arm.of(vars(sae))


def _centres(run: ResolvedRun, config: SensitivityConfig) -> list[ResolvedSAE]:
    """The SAE of the target L0 for each site and architecture, with the first width, recipe, rate and seed."""
    firsts: dict[tuple[str, str], list[ResolvedSAE]] = {}
    for sae in run.saes:
        group = firsts.setdefault((sae.site, sae.arch), [])
        if not group or (_key(sae), sae.seed) == (_key(group[0]), group[0].seed):
            group.append(sae)
    if config.target_l0 is None:
        return [sorted(group, key=from_sparse_to_dense)[(len(group) - 1) // 2] for group in firsts.values()]
    centres = []
    for (site, arch), group in firsts.items():
        centre = next((sae for sae in group if sae.target_l0 == config.target_l0), None)
        if centre is None:
            # It may have diverged. The other arms are studied all the same.
            logger.warning("No %s SAE of target L0 %g at %s. That arm is left out.", arch, config.target_l0, site)
        else:
            centres.append(centre)
    if not centres:
        allowed = sorted({sae.target_l0 for sae in run.saes if sae.target_l0 is not None})
        raise ValueError(
            f"target_l0={config.target_l0:g} is not a target of any arm of the run. Its targets are "
            f"{', '.join(f'{target:g}' for target in allowed) or 'none'}. Choose one of them, or leave target_l0 out."
        )
    return centres


def _grid(config: SensitivityConfig) -> Iterator[Factors]:
    """The factors of every SAE except the centre."""
    centre = dict.fromkeys(SETTINGS, 1.0)
    if config.grid == "one_at_a_time":
        for name in SETTINGS:
            yield from ({**centre, name: factor} for factor in getattr(config, name))
        return
    for factors in product(*((1.0, *getattr(config, name)) for name in SETTINGS)):
        if any(factor != 1 for factor in factors):
            yield dict(zip(SETTINGS, factors, strict=True))


def _with(centre: ResolvedSAE, factors: Factors, coef: float) -> ResolvedSAE:
    """The centre with its settings multiplied by factors; steered to its L0 unless the coefficient is changed, too."""
    off = "-".join(f"{name}_x{factor:g}" for name, factor in factors.items() if factor != 1)
    changed: dict[str, Any] = {
        "name": f"{centre.folder}-{off}",
        "lr": centre.lr * factors["lr"],
        "lr_rule": f"{factors['lr']:g} times {centre.lr:g}",
        "d_sae": round(centre.d_sae * factors["d_sae"]),
        "warmup_share": centre.warmup_share * factors["warmup_share"],
    }
    if training_of(centre.arch).aims and (factors["sparsity_coef"] != 1 or centre.target_l0 is None):
        changed |= {"target_l0": None, "paper_lambda": None, "sparsity_coef": coef * factors["sparsity_coef"]}
    return replace(centre, **changed)


_ABOUT = ("name", "arch", "recipe", "site", "d_sae", "seed", "lr", "sparsity_coef")


def _row(about: Mapping[str, Any], point: Point, centre: Point, frontier: Frontier, factors: Factors) -> dict[str, Any]:
    # If no latent fires, L0 is 0 and its logarithm infinite.
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = log_lost(point) - log_lost(centre) - frontier.slope * (np.log(point.l0) - np.log(centre.l0))
    within = frontier.low / REACH <= point.l0[0] <= frontier.high * REACH
    ratio, low, high = ratio_with_interval(log_ratio) if within else (None, None, None)
    return {
        **{key: about[key] for key in _ABOUT},
        **_off(factors),
        "l0": float(point.l0[0]),
        "l0_ratio": float(point.l0[0] / centre.l0[0]),
        "loss_recovered": float(point.loss_recovered[0]) if np.isfinite(point.loss_recovered[0]) else None,
        "lost_ratio": ratio,
        "low": low,
        "high": high,
        "shown": low is not None and high is not None and not low <= 1 <= high,
        "diverged": None,
    }


def _diverged(sae: SAEConfig, factors: Factors, message: str) -> dict[str, Any]:
    """The record of an SAE that diverged; without a coefficient if that was steered."""
    unmeasured = dict.fromkeys(("l0", "l0_ratio", "loss_recovered", "lost_ratio", "low", "high"))
    about = {key: getattr(sae, key) for key in _ABOUT} | {"name": sae.folder}
    return {**about, **_off(factors), **unmeasured, "shown": False, "diverged": message}


def _off(factors: Factors) -> dict[str, Any]:
    """The keys `factors`, and `setting` with its `factor`, which are None unless exactly one setting is changed."""
    off = [name for name, factor in factors.items() if factor != 1]
    alone = off[0] if len(off) == 1 else None
    return {"factors": dict(factors), "setting": alone, "factor": None if alone is None else factors[alone]}


def draw_sensitivity(records: Records) -> "Figure":
    """Draw the loss not recovered and L0 against the factor of each setting, for the centres and single changes."""
    from matplotlib.figure import Figure

    sites = list(dict.fromkeys(str(record["site"]) for record in records))
    arms = find_arms([{"arch": record["arch"]} for record in records])
    figure = Figure(figsize=(11, 2.4 * len(SHOWN_METRICS) * len(sites) + 0.8), layout="constrained")
    axes = figure.subplots(len(SHOWN_METRICS) * len(sites), len(SETTING_TITLES), squeeze=False, sharey="row")
    rows = [(site, metric) for site in sites for metric in SHOWN_METRICS]
    for panels, (site, metric) in zip(axes, rows, strict=True):
        panels[0].set_ylabel(f"{SHOWN_METRICS[metric]}\n(centre = 1), {site}", fontsize=7.5, parse_math=False)
        for ax, (setting, title) in zip(panels, SETTING_TITLES.items(), strict=True):
            ax.set_title(title)
            ax.set_xlabel("factor")
            measured = [r for r in records if r["site"] == site and (r[metric] or 0) > 0]
            if not measured:
                not_measured(ax)
                continue
            for arm in arms:
                _draw_line(ax, [r for r in measured if r["arch"] == arm.arch], arm, setting, metric)
            ax.axhline(1, **REFERENCE_LINE)
            _powers_of_two(ax)
    handles, labels = axes[-1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(arms))
    return figure


def _draw_line(ax: "Axes", mine: Records, arm: ArmLook, setting: str, metric: str) -> None:
    factors = [{**dict.fromkeys(SETTING_TITLES, 1.0), **record["factors"]} for record in mine]
    shown = [
        (off[setting], record)
        for off, record in zip(factors, mine, strict=True)
        if all(off[name] == 1 for name in SETTING_TITLES if name != setting)
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


_COLUMNS = columns(
    *("arch", "site", "off", "l0", "l0_ratio", "loss_recovered", "lost_ratio", "low", "high"),
    "of_best",
)


def _table(records: Records) -> Table:
    """Return the changed setting in words, e.g. "lr x2", and whether training diverged, before the numbers."""
    found = []
    for record in records:
        off = ", ".join(f"{name} ×{factor:g}" for name, factor in record["factors"].items() if factor != 1)
        # Studies made by older versions do not have the key.
        found.append({**record, "off": f"{off or 'nothing'}{' (diverged)' if record.get('diverged') else ''}"})
    return _COLUMNS(found)


STUDY = Study(
    name="sensitivity",
    title="Sensitivity to settings",
    question="How much worse does an SAE get if learning rate, coefficient, width or warm-up is wrong by 2x or 4x?",
    source="",
    reading="One SAE of each architecture, the centre, is retrained with one setting multiplied by a factor. "
    "`lost_ratio` is 1 - loss recovered divided by the centre's, at equal L0; `of_best` is divided by the arm's best "
    "instead. Another coefficient changes L0; all other SAEs are steered to the centre's L0.",
    settings=SensitivityConfig,
    records=sensitivity,
    trains=sensitivity_variants,
    table=_table,
    figure=draw_sensitivity,
)
