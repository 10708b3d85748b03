"""Which runs to do: for every arm and length the two whose L0 encloses the target, at the arm's best learning rate."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from training import Job

TARGET_L0 = 8.0

MAX_RUNS = 4
"""Runs to enclose the target with before giving up on a point."""

ASIDE = 1.12
"""How far to the other side of the target the next run aims, once the first has missed it."""

NEAR = 1.25
"""A point is good enough when the nearer of its two runs is within this factor of the target, ..."""

CLOSE = 2.0
"""... or when the two are within this factor of each other."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A size of SAE and the runs made at it."""

    d_sae: int
    batch_size: int
    peer_steps: tuple[int, ...]
    penstock_steps: tuple[int, ...]
    arms: tuple[str, ...]
    tune_at: int | None
    """Length at which a peer's learning rates are tried; None goes by those tried in `small`."""


SETTINGS = {
    "small": Setting(
        d_sae=1024,
        batch_size=1024,
        peer_steps=(250, 500, 1000),
        penstock_steps=(60, 125, 250, 500, 1000, 2000),
        arms=("saelens-gated", "dl-gated", "saelens-standard", "dl-relu", "penstock-gated", "penstock-relu"),
        tune_at=500,
    ),
    "large": Setting(
        d_sae=8192,
        batch_size=1024,
        peer_steps=(250,),
        penstock_steps=(30, 60, 125, 250, 500),
        arms=("saelens-gated", "dl-gated", "penstock-gated"),
        tune_at=None,
    ),
}

PEER_LRS = (3e-3, 6e-3, 1.2e-2)
"""The peers' grid."""

FIRST_KNOB = {"saelens-gated": 5.0, "dl-gated": 6.0, "saelens-standard": 3.5, "dl-relu": 4.5}
"""A peer's coefficient for the first run; penstock's knob is the target L0 itself."""


class Point(NamedTuple):
    """What an arm reaches at the target L0 in one length of run."""

    fvu: float
    loss_recovered: float
    cpu_seconds: float
    """Of one run."""
    knob: float


def is_penstock(arm: str) -> bool:
    """Whether an arm is ours: its learning rate is the rule's and its knob the target L0."""
    return arm.startswith("penstock-")


def read(path: Path) -> list[Row]:
    """The runs of a results file; none if there is no file yet. A last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def select(rows: Sequence[Row], **keys: Any) -> list[Row]:
    """The rows that agree with all of `keys` and whose SAE is finite."""
    return [row for row in rows if all(row[key] == value for key, value in keys.items()) and row["fvu"] is not None]


def enclosing(rows: Sequence[Row]) -> tuple[Row, Row] | None:
    """The nearest run on either side of the target L0; the same run twice if it hits it."""
    below = [row for row in rows if 0 < row["l0"] <= TARGET_L0]
    above = [row for row in rows if row["l0"] >= TARGET_L0]
    if not below or not above:
        return None
    return max(below, key=lambda row: row["l0"]), min(above, key=lambda row: row["l0"])


def point(rows: Sequence[Row]) -> Point | None:
    """Interpolate runs of one arm, rate and length at the target L0: FVU and the knob in logs, loss recovered as it is.

    Returns:
        None where the runs do not enclose the target.
    """
    pair = enclosing(rows)
    if pair is None:
        return None
    low, high = pair
    width = math.log(high["l0"] / low["l0"])
    share = math.log(TARGET_L0 / low["l0"]) / width if width else 0.0

    def between(key: str) -> float:
        return low[key] + share * (high[key] - low[key])

    def between_logs(key: str) -> float:
        return math.exp(math.log(low[key]) + share * math.log(high[key] / low[key]))

    return Point(
        between_logs("fvu"),
        between("loss_recovered"),
        (low["cpu_seconds"] + high["cpu_seconds"]) / 2,
        between_logs("knob"),
    )


def next_knob(rows: Sequence[Row], arm: str, first: float) -> float | None:
    """The knob of the next run for a point, or None when it is enclosed closely or not worth another try."""
    if len(rows) >= MAX_RUNS:
        return None
    if not rows:
        return first
    pair = enclosing(rows)
    if pair is not None:
        low, high = pair
        if high["l0"] <= CLOSE * low["l0"] or min(TARGET_L0 / low["l0"], high["l0"] / TARGET_L0) <= NEAR:
            return None
        reached = point(rows)
        assert reached is not None
        return reached.knob
    nearest = min(rows, key=lambda row: abs(math.log(max(row["l0"], 0.01) / TARGET_L0)))
    # L0 rises with a target about in proportion and falls with a coefficient faster than that.
    slope = 1.0 if is_penstock(arm) else -1.5
    missed = math.log(TARGET_L0 / max(nearest["l0"], 0.01))
    # The further the miss, the less the slope is to be trusted; more tries reach further.
    aim = missed + math.copysign(len(rows) * math.log(ASIDE), missed)
    return nearest["knob"] * math.exp(max(-1.0, min(1.0, aim / slope)))


class Tuned(NamedTuple):
    """A peer's best learning rate at one length of run."""

    lr: float
    steps: int
    is_edge: bool
    """Whether it is the lowest or highest of those tried, so that a better one may lie beyond."""

    def at(self, steps: int) -> float:
        """The rate for another length: shorter runs need a higher one, by the fourth root, as in penstock's rule."""
        return self.lr if steps == self.steps else float(f"{self.lr * (self.steps / steps) ** 0.25:.3g}")


def tuned(rows: Sequence[Row], arm: str) -> Tuned | None:
    """A peer's learning rate with the lowest FVU at the target in `small`, at the length where most were tried.

    Returns:
        None if none of them enclosed the target.
    """
    by_steps: dict[int, dict[float, float]] = {}
    for lr, steps in {(row["lr"], row["steps"]) for row in select(rows, setting="small", arm=arm)}:
        reached = point(select(rows, setting="small", arm=arm, lr=lr, steps=steps))
        if reached is not None:
            by_steps.setdefault(steps, {})[lr] = reached.fvu
    if not by_steps:
        return None
    steps, tried = max(by_steps.items(), key=lambda item: (len(item[1]), item[0]))
    lr = min(tried, key=tried.__getitem__)
    return Tuned(lr, steps, lr in (min(tried), max(tried)))


class Chain:
    """All runs of one arm, one after the other, because each learns its knob from those before."""

    def __init__(self, arm: str, rows: Sequence[Row], run: Callable[[Job], Row]) -> None:
        """
        Args:
            arm: Whose runs.
            rows: Those that are there already.
            run: Does one run and keeps its row.
        """
        self.arm = arm
        self.rows = [row for row in rows if row["arm"] == arm]
        self.run = run

    def finish(self, settings: dict[str, Setting], peer_lrs: Sequence[float]) -> None:
        """Do what is missing, the smaller setting first.

        Raises:
            ValueError: a peer has no learning rate to go on with.
        """
        for name, setting in settings.items():
            if self.arm not in setting.arms:
                continue
            if is_penstock(self.arm):
                for steps in setting.penstock_steps:
                    self._reach(name, setting, None, steps)
                continue
            if setting.tune_at is not None:
                for lr in peer_lrs:
                    self._reach(name, setting, lr, setting.tune_at)
            best = tuned(self.rows, self.arm)
            if best is None:
                raise ValueError(
                    f"No learning rate of {self.arm} enclosed L0 {TARGET_L0:g}, so none is known for the setting "
                    f"{name!r}. Run the setting 'small' first, or look at its runs of this arm."
                )
            for steps in setting.peer_steps:
                self._reach(name, setting, best.at(steps), steps)

    def _reach(self, name: str, setting: Setting, lr: float | None, steps: int) -> None:
        """Run until the target is enclosed."""
        about = {"setting": name, "arm": self.arm, "lr": lr, "steps": steps, "d_sae": setting.d_sae}
        while True:
            # A diverged run counts as a try, too.
            tried = [row for row in self.rows if all(row[key] == value for key, value in about.items())]
            if any(row["fvu"] is None for row in tried):
                return
            knob = next_knob(tried, self.arm, self._first_knob(name, lr, steps))
            if knob is None:
                return
            self.rows.append(self.run(Job(knob=knob, batch_size=setting.batch_size, **about)))

    def _first_knob(self, name: str, lr: float | None, steps: int) -> float:
        """The knob that hit the target in the likest runs so far: of this setting, this rate, a similar length."""
        groups = {(row["setting"], row["lr"], row["steps"]) for row in select(self.rows)}
        likest = sorted(groups, key=lambda group: (group[0] != name, group[1] != lr, abs(math.log(group[2] / steps))))
        for setting, group_lr, group_steps in likest:
            reached = point(select(self.rows, setting=setting, lr=group_lr, steps=group_steps))
            if reached is not None:
                return reached.knob
        return 0.95 * TARGET_L0 if is_penstock(self.arm) else FIRST_KNOB[self.arm]


def row_of(job: Job, measured: Row) -> Row:
    """A line of the results."""
    return {**asdict(job), **measured}
