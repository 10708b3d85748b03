"""What it costs to have a setting wrong: learning rate, coefficient, width and warm-up off by known factors (study 8).

For each architecture of a run one SAE is the centre, and is trained once more for every factor. All but those with
another coefficient are steered to the centre's L0. What is left of a difference in L0 is taken out along the arm's own
frontier, where log(1 - loss recovered) is close to linear in log L0 (`comparison.py`).
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np

from penstock.evaluation.comparison import Floats, Point
from penstock.evaluation.statistics import LEVEL
from penstock.runs.finished_run import FinishedRun
from penstock.runs.splitting import from_sparse_to_dense
from penstock.studies.shared.ratios_to_run import own_points
from penstock.studies.shared.study_records import Record
from penstock.studies.shared.variants import CoefOf, Variant, train_variants
from penstock.training.config import ResolvedRun, ResolvedSAE, SAEConfig

logger = logging.getLogger(__name__)

SETTINGS = ("lr", "sparsity_coef", "d_sae", "warmup_share")

REACH = 1.25
"""How far beyond an arm's own L0s, as a factor, its frontier is taken to go on."""

Factors = Mapping[str, float]
"""For each of SETTINGS what it is multiplied by."""


@dataclass(frozen=True, kw_only=True)
class SensitivityConfig:
    lr: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    """Factors on the learning rate."""
    sparsity_coef: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    """Factors on the coefficient that the centre ended with."""
    d_sae: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    """Factors on the number of latents."""
    warmup_share: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    """Factors on the share of the steps over which the learning rate rises."""
    grid: Literal["one_at_a_time", "full"] = "one_at_a_time"
    """Whether one setting is off at a time, or every combination is trained: the product of all factors and 1."""
    target_l0: float | None = None
    """Which SAE of each arm is the centre; the middle one of its L0s if left open."""

    def __post_init__(self) -> None:
        for name in SETTINGS:
            wrong = [factor for factor in getattr(self, name) if not 0 < factor < math.inf or factor == 1]
            if wrong:
                raise ValueError(
                    f"{name}={wrong[0]} is out of range: allowed are factors above 0 other than 1, which is the centre."
                )


class _Frontier(NamedTuple):
    """An arm's own SAEs as a straight line of log(1 - loss recovered) over log L0."""

    slope: float
    low: float
    """Smallest L0 of the arm."""
    high: float


def sensitivity(run: FinishedRun, config: SensitivityConfig) -> list[Record]:
    """The centre of each architecture with its settings off.

    Returns:
        For every SAE, centres included: `factors`, and `setting` with its `factor` where one is off; `l0_ratio` to the
        centre's; `lost_ratio`, 1 - loss recovered over the centre's at equal L0, with `low` and `high` of its paired
        95% interval over held-out sequences; `of_best`, the same over the arm's least at the centre's coefficient;
        `shown`, whether the interval lies on one side of 1. None where a ratio is undefined, or L0 lies beyond the
        arm's own frontier by more than a factor of REACH. `diverged` is the message of an SAE that has no numbers
        because it diverged, else None.

    Raises:
        ValueError: no SAE has that target, or settings that are off are out of range.
        DivergenceError: all that was trained diverged.
    """
    own = own_points(run.folder)
    variants = sensitivity_variants(run.config, config, run.coef_of)
    trained = train_variants(run, "sensitivity", [variant.sae for variant in variants])
    measured = run.measure(trained.described())
    points = {record["name"]: (record, point) for record, point in zip(measured.records, measured.points, strict=True)}
    found: list[Record] = []
    for centre in _centres(run.config, config):
        reference = own[centre.folder]
        frontier = _frontier([own[sae.folder] for sae in _arm(run.config, centre) if sae.seed == centre.seed])
        rows = [_row(run.about[centre.folder], reference, reference, frontier, dict.fromkeys(SETTINGS, 1.0))]
        rows += [
            _row(*points[sae.folder], reference, frontier, factors)
            if sae.folder in points
            else _diverged(sae, factors, trained.diverged[sae.folder])
            for sae, of, factors in variants
            if of == centre.folder
        ]
        # Another coefficient is another place on the frontier, and no better or worse a setting.
        same = [row for row in rows if row["factors"]["sparsity_coef"] == 1]
        least = min((row["lost_ratio"] for row in same if row["lost_ratio"] is not None), default=None)
        for row in rows:
            row["of_best"] = None if row["lost_ratio"] is None or least is None else row["lost_ratio"] / least
        found += rows
    return found


def sensitivity_variants(run: ResolvedRun, config: SensitivityConfig, coef_of: CoefOf) -> list[Variant]:
    """What the study trains, each with its factors as the change; centres are not trained again.

    Raises:
        ValueError: as `sensitivity`.
    """
    centres = _centres(run, config)
    _check_warmup(run, centres, config)
    found: dict[str, Variant] = {}
    for centre in centres:
        for factors in _grid(config):
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
                    f"warmup_share={factor:g} gives {sae.folder} a warm-up of {share:g} of its steps: allowed is "
                    f"above 0, and with the decay over {decay:g} of them at most 1. Choose other factors, or none "
                    "(--warmup-share)."
                )


def _arm(run: ResolvedRun, centre: ResolvedSAE) -> list[ResolvedSAE]:
    """The SAEs of the run that differ from the centre in L0 and seed alone."""
    return [sae for sae in run.saes if _key(sae) == _key(centre)]


def _key(sae: SAEConfig) -> tuple[Any, ...]:
    return sae.site, sae.arch, sae.recipe, sae.d_sae, sae.lr


def _centres(run: ResolvedRun, config: SensitivityConfig) -> list[ResolvedSAE]:
    """For each site and architecture the SAE whose L0 is asked for, of the first width, recipe, rate and seed."""
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
            # It may have diverged, which must not cost the other arms their study.
            logger.warning("No %s SAE of target L0 %g at %s: that arm is left out", arch, config.target_l0, site)
        else:
            centres.append(centre)
    if not centres:
        allowed = sorted({sae.target_l0 for sae in run.saes if sae.target_l0 is not None})
        raise ValueError(
            f"target_l0={config.target_l0:g} is not a target of any arm of the run: its targets are "
            f"{', '.join(f'{target:g}' for target in allowed) or 'none'}. Choose one of them, or leave it out."
        )
    return centres


def _grid(config: SensitivityConfig) -> Iterator[Factors]:
    """The factors of every SAE but the centre."""
    centre = dict.fromkeys(SETTINGS, 1.0)
    if config.grid == "one_at_a_time":
        for name in SETTINGS:
            yield from ({**centre, name: factor} for factor in getattr(config, name))
        return
    for factors in product(*((1.0, *getattr(config, name)) for name in SETTINGS)):
        if any(factor != 1 for factor in factors):
            yield dict(zip(SETTINGS, factors, strict=True))


def _with(centre: ResolvedSAE, factors: Factors, coef: float) -> ResolvedSAE:
    """The centre with its settings off; steered to its L0 unless the coefficient is off, too."""
    off = "-".join(f"{name}_x{factor:g}" for name, factor in factors.items() if factor != 1)
    changed: dict[str, Any] = {
        "name": f"{centre.folder}-{off}",
        "lr": centre.lr * factors["lr"],
        "lr_rule": f"{factors['lr']:g} times {centre.lr:g}",
        "d_sae": round(centre.d_sae * factors["d_sae"]),
        "warmup_share": centre.warmup_share * factors["warmup_share"],
    }
    if factors["sparsity_coef"] != 1 or centre.target_l0 is None:
        changed |= {"target_l0": None, "paper_lambda": None, "sparsity_coef": coef * factors["sparsity_coef"]}
    return replace(centre, **changed)


_ABOUT = ("name", "arch", "recipe", "site", "d_sae", "seed", "lr", "sparsity_coef")


def _row(about: Mapping[str, Any], point: Point, centre: Point, frontier: _Frontier, factors: Factors) -> Record:
    # An SAE without a firing latent has no place on a frontier.
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = _log_lost(point) - _log_lost(centre) - frontier.slope * (np.log(point.l0) - np.log(centre.l0))
    within = frontier.low / REACH <= point.l0[0] <= frontier.high * REACH
    ratio, low, high = _with_interval(log_ratio) if within else (None, None, None)
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


def _diverged(sae: SAEConfig, factors: Factors, message: str) -> Record:
    """The row of an SAE without numbers; its coefficient, if it was steered, is none of its settings."""
    unmeasured = dict.fromkeys(("l0", "l0_ratio", "loss_recovered", "lost_ratio", "low", "high"))
    about = {key: getattr(sae, key) for key in _ABOUT} | {"name": sae.folder}
    return {**about, **_off(factors), **unmeasured, "shown": False, "diverged": message}


def _off(factors: Factors) -> dict[str, Any]:
    """The factors, and which setting alone is off by which."""
    off = [name for name, factor in factors.items() if factor != 1]
    alone = off[0] if len(off) == 1 else None
    return {"factors": dict(factors), "setting": alone, "factor": None if alone is None else factors[alone]}


def _log_lost(point: Point) -> Floats:
    """log(1 - loss recovered); NaN where nothing is lost."""
    lost = 1 - point.loss_recovered
    return np.log(np.where(lost > 0, lost, np.nan))


def _frontier(arm: Sequence[Point]) -> _Frontier:
    """By least squares; level where one SAE is all there is."""
    points = [point for point in arm if point.l0[0] > 0 and point.loss_recovered[0] < 1]
    l0s = [float(point.l0[0]) for point in points]
    if len(set(l0s)) < 2:
        return _Frontier(0.0, min(l0s, default=math.inf), max(l0s, default=0.0))
    slope = np.polyfit(np.log(l0s), [_log_lost(point)[0] for point in points], 1)[0]
    return _Frontier(float(slope), min(l0s), max(l0s))


def _with_interval(log_ratio: Floats) -> tuple[float | None, float | None, float | None]:
    """The ratio on all tokens and the ends of its interval over resamples; None where they are undefined."""
    if not np.isfinite(log_ratio[0]):
        return None, None, None
    ratio = float(np.exp(log_ratio[0]))
    if not np.isfinite(log_ratio).all():
        return ratio, None, None
    tail = (1 - LEVEL) / 2
    low, high = np.exp(np.quantile(log_ratio[1:], [tail, 1 - tail]))
    return ratio, float(low), float(high)
