"""The ratio of L0 at equal quality, on arms whose curves are known."""

from typing import Any

import numpy as np
import pytest
import torch

from penstock.evaluation.arms import Arm, given_lr
from penstock.evaluation.comparison import GRID, Point, compare, point_of, warnings_of

RESAMPLES = 200


def loss_recovered(l0: np.ndarray, *, factor: float = 1.0) -> np.ndarray:
    """A curve on which log(1 - loss recovered) is linear in log L0, so that interpolation is exact.

    An arm with `factor` 0.5 reaches the same loss recovered with half the L0.
    """
    return 1 - 0.4 * (l0 / factor) ** -0.7


def point(arch: str, l0: float, quality: float, *, spread: np.ndarray | float = 1.0, **about: Any) -> Point:
    """An SAE whose L0 varies over resamples by the factors in `spread`."""
    factors = np.concatenate([[1.0], np.broadcast_to(spread, RESAMPLES)])
    about = {"recipe": "paper", "site": "resid_post.2", "d_sae": 1024, "seed": 0, "lr": None} | about
    arm = Arm(arch, about["recipe"], about["d_sae"], about["lr"])
    return Point(arm, about["site"], about["seed"], l0 * factors, np.full(RESAMPLES + 1, quality))


def arm(arch: str, l0s: list[float], *, factor: float = 1.0, **about: Any) -> list[Point]:
    return [point(arch, l0, float(loss_recovered(np.array(l0), factor=factor)), **about) for l0 in l0s]


GATED = arm("gated", [3, 5.5, 9, 20], factor=0.5)
RELU = arm("relu", [4, 10, 17, 35, 60])


def only(points: list[Point]) -> dict[str, Any]:
    (comparison,) = compare(points)
    return comparison


def test_half_the_latents_for_the_same_loss_recovered_is_a_ratio_of_one_half() -> None:
    found = only(GATED + RELU)
    assert found["ratio"] == pytest.approx(0.5, rel=1e-9)
    assert found["interval"] == pytest.approx([0.5, 0.5], rel=1e-9)
    assert found["reason"] is None
    assert (found["arm"], found["baseline"], found["metric"]) == ("gated", "relu", "loss_recovered")
    assert (found["arm_recipe"], found["baseline_recipe"], found["site"]) == (
        "paper",
        "paper",
        "resid_post.2",
    )
    assert (found["arm_d_sae"], found["baseline_d_sae"]) == (1024, 1024)


def test_arms_are_compared_where_both_have_been_measured() -> None:
    found = only(GATED + RELU)
    # Gated covers L0 3 to 20, which is 6 to 40 of ReLU's; ReLU was measured from 4 to 60.
    low, high = loss_recovered(np.array([6.0, 40.0]))
    assert found["overlap"] == pytest.approx([low, high], rel=1e-9)
    values = [entry["value"] for entry in found["grid"]]
    assert len(values) == GRID
    assert values[0] == pytest.approx(low) and values[-1] == pytest.approx(high)
    logs = np.log(1 - np.array(values))
    np.testing.assert_allclose(np.diff(logs), np.diff(logs)[0])


def test_each_value_of_the_grid_has_the_l0_of_both_curves() -> None:
    for entry in only(GATED + RELU)["grid"]:
        needed = ((1 - entry["value"]) / 0.4) ** (-1 / 0.7)
        assert entry["l0_baseline"] == pytest.approx(needed, rel=1e-9)
        assert entry["l0_arm"] == pytest.approx(0.5 * needed, rel=1e-9)
        assert entry["ratio"] == pytest.approx(0.5, rel=1e-9)
        assert entry["interval"] == pytest.approx([0.5, 0.5], rel=1e-9)


def test_on_any_curves_the_interpolation_is_linear_between_neighbouring_points() -> None:
    gated = [("gated", 2, 0.5), ("gated", 5, 0.8), ("gated", 7, 0.95)]
    relu = [("relu", 3, 0.3), ("relu", 9, 0.7), ("relu", 30, 0.9)]
    found = only([point(*values) for values in gated + relu])

    def log_l0(points: list[tuple[str, int, float]], value: float) -> float:
        quality = [-np.log(1 - v) for _, _, v in points]
        return float(np.interp(-np.log(1 - value), quality, [np.log(l0) for _, l0, _ in points]))

    logs = []
    for entry in found["grid"]:
        logs.append(log_l0(gated, entry["value"]) - log_l0(relu, entry["value"]))
        assert entry["ratio"] == pytest.approx(np.exp(logs[-1]), rel=1e-9)
    assert found["overlap"] == pytest.approx([0.5, 0.9])
    assert found["ratio"] == pytest.approx(np.exp(np.mean(logs)), rel=1e-9)
    assert len({round(value, 3) for value in logs}) > 3


def noisy(points: list[Point], seed: int, *, sigma: float = 0.05) -> list[Point]:
    generator = np.random.default_rng(seed)
    factors = [np.exp(sigma * generator.normal(size=RESAMPLES)) for _ in points]
    return [p._replace(l0=p.l0 * np.concatenate([[1.0], factor])) for p, factor in zip(points, factors, strict=True)]


def test_the_interval_holds_the_ratio_and_widens_with_the_spread_of_the_resamples() -> None:
    found = only(noisy(GATED, 1) + noisy(RELU, 2))
    low, high = found["interval"]
    assert low < 0.5 < high
    wide_low, wide_high = only(noisy(GATED, 1, sigma=0.2) + noisy(RELU, 2, sigma=0.2))["interval"]
    assert wide_low < low and high < wide_high
    for entry in found["grid"]:
        assert entry["interval"][0] < 0.5 < entry["interval"][1]


def test_seeds_are_pairs_whose_spread_widens_the_interval() -> None:
    gated, relu = [], []
    factors = {0: 0.4, 1: 0.5, 2: 0.6}
    for seed, factor in factors.items():
        # What differs between the seeds of both arms alike is no difference between the arms.
        shift = 1 + seed
        gated += arm("gated", [2, 60, 300], factor=factor * shift, seed=seed)
        relu += arm("relu", [2, 60, 300], factor=shift, seed=seed)
    found = only(gated + relu)
    assert {entry["seed"]: entry["ratio"] for entry in found["by_seed"]} == pytest.approx(factors)
    assert found["ratio"] == pytest.approx((0.4 * 0.5 * 0.6) ** (1 / 3))
    # The resamples do not vary, so the interval is that of three numbers drawn three times: all sums of logs.
    logs = np.log(list(factors.values()))
    sums = [np.mean([logs[i], logs[j], logs[k]]) for i in range(3) for j in range(3) for k in range(3)]
    # Three seeds say little: Student's t has 4.303 with two degrees of freedom, the normal distribution 1.960.
    widened = np.mean(logs) + (3 / 2) ** 0.5 * 4.303 / 1.960 * (np.array(sums) - np.mean(logs))
    low, high = np.exp(np.quantile(widened, [0.025, 0.975], method="inverted_cdf"))
    assert found["interval"] == pytest.approx([low, high], rel=0.05)


def test_a_seed_that_only_one_arm_has_is_left_out_beside_pairs() -> None:
    pairs = [p._replace(seed=seed) for p in GATED + RELU for seed in (0, 1)]
    found = only(pairs + arm("gated", [3, 5.5, 9, 20], factor=0.9, seed=7))
    assert [entry["seed"] for entry in found["by_seed"]] == [0, 1]
    assert found["ratio"] == pytest.approx(0.5)


def test_without_common_seeds_the_means_over_seeds_are_compared() -> None:
    found = only([p._replace(seed=3) for p in GATED] + RELU)
    assert found["by_seed"] == []
    assert found["ratio"] == pytest.approx(0.5)


def test_what_varies_in_both_arms_together_does_not_widen_the_interval() -> None:
    spread = np.exp(0.3 * np.random.default_rng(0).normal(size=RESAMPLES))
    gated = arm("gated", [3, 5.5, 9, 20], factor=0.5, spread=spread)
    relu = arm("relu", [4, 10, 17, 35, 60], spread=spread)
    assert only(gated + relu)["interval"] == pytest.approx([0.5, 0.5], rel=1e-9)


def test_a_resample_whose_range_ends_short_of_the_grid_is_continued_straight() -> None:
    # In every resample all of Gated's loss recovered is a little lower, as on another set of sequences.
    shifted = [
        p._replace(loss_recovered=np.concatenate([p.loss_recovered[:1], 1 - 1.1 * (1 - p.loss_recovered[1:])]))
        for p in GATED
    ]
    found = only(shifted + RELU)
    # 1.1 times the loss lost needs 1.1 ** (1 / 0.7) times the L0 for the same quality.
    expected = 0.5 * 1.1 ** (1 / 0.7)
    assert found["ratio"] == pytest.approx(0.5, rel=1e-9)
    assert found["interval"] == pytest.approx([expected, expected], rel=1e-9)


def test_the_order_of_the_points_does_not_matter() -> None:
    points = noisy(GATED, 1) + noisy(RELU, 2)
    shuffled = [points[index] for index in np.random.default_rng(0).permutation(len(points))]
    assert only(shuffled) == only(points)
    assert only(points[::-1]) == only(points)


def test_several_seeds_are_averaged_geometrically() -> None:
    gated = [*arm("gated", [3, 9, 20], factor=0.4), *arm("gated", [2, 5, 31], factor=0.625, seed=1)]
    found = only(gated + RELU)
    assert found["ratio"] == pytest.approx(0.5, rel=1e-9)


def test_with_several_seeds_only_the_quality_that_all_of_them_reach_is_compared() -> None:
    gated = arm("gated", [3, 20], factor=0.5) + arm("gated", [5, 15], factor=0.5, seed=1)
    relu = RELU + arm("relu", [12, 100], seed=1)
    low, high = loss_recovered(np.array([12.0, 30.0]))
    found = only(gated + relu)
    assert found["overlap"] == pytest.approx([low, high], rel=1e-9)
    assert found["ratio"] == pytest.approx(0.5, rel=1e-9)


def test_arms_without_common_quality_are_not_compared() -> None:
    found = only(arm("gated", [40, 60], factor=0.5) + arm("relu", [4, 10]))
    assert (found["ratio"], found["interval"], found["overlap"], found["grid"]) == (None, None, None, [])
    assert "no loss recovered in common" in found["reason"]
    assert found["arm"] == "gated"


def test_a_seed_of_which_one_sae_is_left_does_not_cost_the_others_their_ratio() -> None:
    """The rest may have diverged."""
    both = [*RELU, *arm("relu", [4, 10, 17, 35, 60], seed=1)]
    left = arm("gated", [9], factor=0.5, seed=1)
    assert only([*GATED, *left, *both])["ratio"] == pytest.approx(only([*GATED, *both])["ratio"])


def test_one_sae_is_no_curve() -> None:
    found = only(GATED[:1] + RELU)
    assert found["ratio"] is None
    assert "at least two SAEs" in found["reason"]


@pytest.mark.parametrize("quality", [1.0, 1.2, np.nan])
def test_a_point_that_loses_nothing_or_is_undefined_is_left_out(quality: float) -> None:
    assert only([*GATED, point("gated", 25, quality), *RELU]) == only(GATED + RELU)


def test_a_point_that_does_so_in_a_single_resample_is_left_out_too() -> None:
    values = np.full(RESAMPLES + 1, 0.97)
    values[17] = 1.001
    lossless = point("gated", 25, 0.97)._replace(loss_recovered=values)
    assert only([*GATED, lossless, *RELU]) == only(GATED + RELU)


def test_a_dead_sae_is_left_out() -> None:
    assert only([*GATED, point("gated", 0, 0.2), *RELU]) == only(GATED + RELU)


def test_without_any_usable_point_there_is_a_reason() -> None:
    found = only([point("gated", 3, np.nan), point("gated", 5, np.nan), *RELU])
    assert found["ratio"] is None and "at least two SAEs" in found["reason"]


def test_sites_recipes_and_widths_are_compared_separately() -> None:
    gated = [
        *arm("gated", [3, 20], factor=0.5),
        *arm("gated", [3, 20], factor=0.25, recipe="norm_weighted"),
        *arm("gated", [3, 20], factor=0.8, site="mlp_out.1"),
    ]
    relu = [*RELU, *arm("relu", [4, 60], factor=0.9, d_sae=1536), *arm("relu", [4, 60], site="mlp_out.1")]
    found = {(c["site"], c["arm_recipe"], c["baseline_d_sae"]): c["ratio"] for c in compare(gated + relu)}
    assert found == pytest.approx(
        {
            ("resid_post.2", "paper", 1024): 0.5,
            ("resid_post.2", "paper", 1536): 0.5 / 0.9,
            ("resid_post.2", "norm_weighted", 1024): 0.25,
            ("resid_post.2", "norm_weighted", 1536): 0.25 / 0.9,
            ("mlp_out.1", "paper", 1024): 0.8,
        },
        rel=1e-9,
    )


def test_a_sweep_of_one_architecture_has_nothing_to_compare() -> None:
    assert compare(GATED) == []
    assert compare(RELU) == []


def test_rates_that_were_asked_for_set_arms_apart_and_those_of_a_rule_do_not() -> None:
    slow, fast = (arm("relu", [4, 10, 17, 35, 60], factor=factor, lr=lr) for factor, lr in ((1.0, 1e-3), (2.0, 1e-2)))
    found = compare([*GATED, *slow, *fast])
    assert {entry["baseline_lr"]: entry["ratio"] for entry in found} == pytest.approx({1e-3: 0.5, 1e-2: 0.25}, rel=0.01)
    assert all("arm_lr" not in entry for entry in found)
    assert given_lr({"lr": 1e-3, "lr_rule": "given"}) == 1e-3
    assert given_lr({"lr": 1e-3, "lr_rule": "0.0045 * sqrt(...)"}) is None and given_lr({}) is None


def test_other_architectures_can_be_named() -> None:
    (found,) = compare(GATED + RELU, baseline="gated")
    assert found["ratio"] == pytest.approx(2, rel=1e-9)


def test_what_cannot_be_compared_becomes_a_warning_with_its_reason() -> None:
    comparisons = compare(arm("gated", [40, 60], factor=0.5) + arm("relu", [4, 10]))
    (warning,) = warnings_of([], comparisons)
    assert warning.startswith("resid_post.2: gated and relu cannot be compared: the arms reach no loss")
    assert warnings_of([], compare(GATED + RELU)) == []


def test_different_training_lengths_become_a_warning() -> None:
    control = {"tokens_trained": None}
    one, other = {"tokens_trained": 1000}, {"tokens_trained": 2000}
    assert warnings_of([one, one, control], []) == []
    (warning,) = warnings_of([one, other, control], [])
    assert "different numbers of tokens" in warning


def test_a_point_is_the_metrics_of_all_tokens_and_of_every_resample() -> None:
    names = ("tokens", "ce_tokens", "l0", "l1", "square_error", "square_deviation", "square_x_hat", "dot", "cosine")
    values = np.random.default_rng(0).uniform(1, 2, size=(14, 3))
    sums = dict(zip((*names, "kl", "ce_clean", "ce_spliced", "ce_mean", "ce_zero"), values, strict=True))
    sums["ce_spliced"], sums["ce_zero"] = sums["ce_clean"] + 1, sums["ce_clean"] + 3 * values[-1]
    weights = np.array([[3.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
    record = {"arch": "gated", "recipe": "paper", "site": "mlp_out.1", "d_sae": 7, "seed": 5, "l0": None}
    found = point_of(record, {name: torch.from_numpy(v) for name, v in sums.items()}, torch.from_numpy(weights))
    assert found[:3] == (Arm("gated", "paper", 7), "mlp_out.1", 5)
    l0, recovered = [], []
    for weight in [np.ones(3), *weights]:
        total = {name: sum(w * v for w, v in zip(weight, value, strict=True)) for name, value in sums.items()}
        gap = total["ce_zero"] - total["ce_clean"]
        l0.append(total["l0"] / total["tokens"])
        recovered.append((total["ce_zero"] - total["ce_spliced"]) / gap)
    # Resamples of three sequences are widened about the value on all of them (`few_groups_factor`).
    factor = (3 / 2) ** 0.5 * 4.3027 / 1.95996
    for values, expected in ((found.l0, l0), (found.loss_recovered, recovered)):
        assert values[0] == pytest.approx(expected[0])
        assert values[1:] == pytest.approx(expected[0] + factor * (np.array(expected[1:]) - expected[0]), rel=1e-4)
