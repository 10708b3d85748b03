"""Pairs of SAEs of a run that are compared with each other, and their arms."""

import logging
import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

from penstock.evaluation.arms import Arm
from penstock.runs.finished_run import FinishedRun
from penstock.saes import BASELINE

logger = logging.getLogger(__name__)


class SAEPair(NamedTuple):
    """Names of two SAEs that are compared."""

    a: str
    b: str
    kind: str
    """`arms` for SAEs of two arms, `seeds` for two seeds of one arm."""


def pairs(run: FinishedRun, l0: dict[str, float], most_apart: float) -> Iterator[SAEPair]:
    """Pairs of SAEs at the same site: with each other arm at the same seed, and with each other seed of the same arm.

    Of the other arm or seed, the SAE nearest in L0 is taken.

    Args:
        run: The run.
        l0: The L0 of each SAE by name. SAEs that never fire are left out, with a warning.
        most_apart: The largest factor between the L0s of a pair; other pairs are left out.
    """
    return _pairs(run, l0, most_apart, equal_seeds=True)


def independent_pairs(run: FinishedRun, l0: dict[str, float], most_apart: float) -> Iterator[SAEPair]:
    """The same as `pairs`, but SAEs of two arms have different seeds, like the pairs of one arm they are compared with.

    SAEs with the same seed and width start from the same weights, which would make them agree more. If the run has only
    one seed, arms are paired at that seed.
    """
    several = len({about["seed"] for about in run.about.values()}) > 1
    return _pairs(run, l0, most_apart, equal_seeds=not several)


def _pairs(run: FinishedRun, l0: dict[str, float], most_apart: float, *, equal_seeds: bool) -> Iterator[SAEPair]:
    def apart(a: str, b: str) -> float:
        return abs(math.log(max(l0[a], 1e-9) / max(l0[b], 1e-9)))

    groups: dict[tuple[Any, ...], list[str]] = {}
    for name in run.saes:
        if l0[name] == 0:
            logger.warning("%s fires on no held-out token and is left out", name)
            continue
        groups.setdefault((run.about[name]["site"], arm_in(run, name), run.about[name]["seed"]), []).append(name)
    for one, other in combinations(groups, 2):
        same_site, same_arm, same_seed = (one[index] == other[index] for index in range(3))
        if not same_site or not (same_arm or same_seed == equal_seeds):
            continue
        for a in groups[one]:
            b = min(groups[other], key=lambda name: apart(a, name))
            if apart(a, b) <= math.log(most_apart):
                yield SAEPair(a, b, "seeds" if same_arm else "arms")


class Sides(NamedTuple):
    """Two arms at one site."""

    site: str
    arm: Arm
    baseline: Arm

    def names(self) -> dict[str, Any]:
        return {"site": self.site, **self.arm.role_keys("arm"), **self.baseline.role_keys("baseline")}


def sides_of(run: FinishedRun, a: str, b: str) -> Sides:
    """The arms of two SAEs; an arm of the baseline comes last."""
    arms = sorted([arm_in(run, a), arm_in(run, b)], key=lambda arm: (arm.arch == BASELINE, arm.order))
    return Sides(run.about[a]["site"], *arms)


def arm_in(run: FinishedRun, name: str) -> Arm:
    return Arm.of(run.about[name])


def bootstrap_settings(run: FinishedRun) -> dict[str, int]:
    """The arguments `resamples` and `seed` of every bootstrap."""
    return {"resamples": run.config.eval.bootstrap, "seed": run.config.eval.eval_seed}


def check_factor(most_apart: float) -> None:
    if not most_apart >= 1:
        raise ValueError(f"most_apart={most_apart} is out of range: it must be at least 1.")
