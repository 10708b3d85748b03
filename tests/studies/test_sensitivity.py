"""Settings off by known factors, and what is left at equal L0."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.evaluation.arms import Arm
from penstock.evaluation.comparison import Point
from penstock.evaluation.frontier import Frontier, frontier_of
from penstock.runs.finished_run import FinishedRun
from penstock.studies.sensitivity import (
    SensitivityConfig,
    _grid,
    _row,
    _with,
    sensitivity_variants,
)
from penstock.studies.study_run import study_run
from penstock.training.settings.config_file import read_config

ONE = {"lr": 1.0, "sparsity_coef": 1.0, "d_sae": 1.0, "warmup_share": 1.0}
ABOUT = {
    "name": "a",
    "arch": "gated",
    "recipe": "paper",
    "site": "s",
    "d_sae": 8,
    "seed": 0,
    "lr": 1,
    "sparsity_coef": 1,
}
FRONTIER = Frontier(-1.0, 1.0, 8.0)
FEW = SensitivityConfig(lr=(4.0,), sparsity_coef=(2.0,), d_sae=(0.5,), warmup_share=(0.25,), target_l0=3.0)


def point(l0: float, lost: float, *, spread: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Point:
    factors = np.array([1.0, *spread])
    return Point(Arm("gated", "paper", 8), "s", 0, np.full(len(factors), l0), 1 - lost * factors)


def test_an_sae_on_its_arms_own_frontier_has_lost_nothing() -> None:
    """1 - loss recovered falls as 1 / L0 along the arm: twice the L0 with half the loss is no difference."""
    arm = [point(l0, 0.4 / l0) for l0 in (1.0, 2.0, 4.0)]
    frontier = frontier_of(arm)
    assert frontier == pytest.approx(Frontier(-1, 1.0, 4.0))
    off = {**ONE, "sparsity_coef": 0.5}
    row = _row(ABOUT, point(4.0, 0.1), arm[1], frontier, off)
    assert (row["l0_ratio"], row["lost_ratio"]) == (2.0, pytest.approx(1.0))
    assert (row["setting"], row["factor"]) == ("sparsity_coef", 0.5)
    worse = _row(ABOUT, point(4.0, 0.15), arm[1], frontier, off)
    assert worse["lost_ratio"] == pytest.approx(1.5) and worse["shown"]


def test_the_interval_is_that_of_the_paired_ratio() -> None:
    """Both lose a tenth more in the same resamples: the ratio does not move at all."""
    moved = (1.1, 0.9, 1.3)
    row = _row(ABOUT, point(2.0, 0.3, spread=moved), point(2.0, 0.2, spread=moved), FRONTIER, {**ONE, "lr": 2.0})
    assert [row[key] for key in ("lost_ratio", "low", "high")] == pytest.approx([1.5, 1.5, 1.5])
    unpaired = _row(ABOUT, point(2.0, 0.3, spread=moved), point(2.0, 0.2), FRONTIER, {**ONE, "lr": 2.0})
    assert unpaired["low"] == pytest.approx(np.exp(np.quantile(np.log(1.5 * np.array(moved)), 0.025)))


def test_a_ratio_is_undefined_where_nothing_is_lost() -> None:
    row = _row(ABOUT, point(2.0, -0.1), point(2.0, 0.2), FRONTIER, {**ONE, "lr": 2.0})
    assert row["lost_ratio"] is None and row["low"] is None and not row["shown"]
    assert frontier_of([point(2.0, 0.2)]) == Frontier(0.0, 2.0, 2.0)


def test_no_frontier_is_drawn_far_beyond_its_ends() -> None:
    off = {**ONE, "sparsity_coef": 0.25}
    assert _row(ABOUT, point(9.9, 0.04), point(2.0, 0.2), FRONTIER, off)["lost_ratio"] == pytest.approx(0.99)
    far = _row(ABOUT, point(10.1, 0.04), point(2.0, 0.2), FRONTIER, off)
    assert far["lost_ratio"] is None and far["l0_ratio"] == pytest.approx(5.05) and not far["shown"]


def test_one_setting_is_off_at_a_time_unless_the_full_grid_is_asked_for() -> None:
    assert list(_grid(FEW)) == [{**ONE, "lr": 4.0}, {**ONE, "sparsity_coef": 2.0}, {**ONE, "d_sae": 0.5}] + [
        {**ONE, "warmup_share": 0.25}
    ]
    full = list(_grid(replace(FEW, grid="full")))
    assert len(full) == 2**4 - 1 and ONE not in full
    assert {"lr": 4.0, "sparsity_coef": 2.0, "d_sae": 0.5, "warmup_share": 0.25} in full


def test_only_what_is_off_differs_from_the_centre(finished: FinishedRun) -> None:
    centre = finished.config.saes[0]
    off = _with(centre, {**ONE, "lr": 4.0}, coef=0.7)
    assert off == replace(centre, name=off.name, lr=4 * centre.lr, lr_rule=off.lr_rule)
    assert _with(centre, {**ONE, "d_sae": 0.5}, 0.7).d_sae == centre.d_sae // 2
    assert _with(centre, {**ONE, "warmup_share": 4.0}, 0.7).warmup_share == 4 * centre.warmup_share
    harder = _with(centre, {**ONE, "sparsity_coef": 2.0}, 0.7)
    assert (harder.target_l0, harder.sparsity_coef) == (None, 1.4)


def test_an_arm_without_the_target_is_left_out(finished: FinishedRun, caplog: pytest.LogCaptureFixture) -> None:
    """As where the SAE has diverged, which is then in no list."""
    saes = tuple(sae for sae in finished.config.saes if sae.arch == "gated")
    other = replace(finished.config.saes[-1], target_l0=9.0, name="other")
    variants = sensitivity_variants(
        replace(finished.config, saes=(*saes, other)), replace(FEW, target_l0=3.0), lambda _: 1.0
    )
    assert {variant.sae.arch for variant in variants} == {"gated"} and len(variants) == 4
    assert "No relu SAE of target L0 3 at resid_post.0" in caplog.text


def test_both_arms_are_trained_with_every_setting_off(run_folder: Path, tmp_path: Path) -> None:
    for path in ("config.json", "records.jsonl", "sums.safetensors", "saes"):
        (tmp_path / path).symlink_to(run_folder / path)
    rows = study_run(tmp_path, "sensitivity", FEW)
    assert len(rows) == 2 * 5
    for arch in ("gated", "relu"):
        mine = [row for row in rows if row["arch"] == arch]
        assert [row["setting"] for row in mine] == [None, "lr", "sparsity_coef", "d_sae", "warmup_share"]
        assert mine[0]["l0_ratio"] == 1.0
        defined = [row["of_best"] for row in mine if row["lost_ratio"] is not None]
        assert all(math.isfinite(value) for value in defined) and min(defined, default=1.0) == 1.0
    trained = read_config(next((tmp_path / "studies" / "sensitivity").glob("run-*")))
    assert len(trained.saes) == 8
    with pytest.raises(ValueError, match="target_l0=5 is not a target of any arm"):
        study_run(tmp_path, "sensitivity", replace(FEW, target_l0=5.0))
    with pytest.raises(ValueError, match="lr=1.0 is out of range"):
        SensitivityConfig(lr=(1.0,))
    with pytest.raises(ValueError, match="warmup_share=100 gives .* a warm-up of 5 of its steps"):
        study_run(tmp_path, "sensitivity", replace(FEW, warmup_share=(100.0,)))
