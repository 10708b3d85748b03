"""Paired bootstrap intervals, by hand on two pairs, against another bootstrap, and by their coverage."""

import numpy as np
import pytest
import torch

from penstock.studies.paired import paired_bootstrap


def test_two_pairs_by_hand() -> None:
    # A resample's mean is 1 or 5 in a quarter of all cases each, more than the 2.5% of a tail.
    found = paired_bootstrap(torch.tensor([1.0, 5.0]), resamples=400, seed=0)
    assert found == (3, 1, 5, True)


def test_the_interval_is_that_of_another_bootstrap() -> None:
    differences = np.random.default_rng(0).exponential(size=12)
    drawn = np.random.default_rng(1).choice(differences, size=(50_000, 12)).mean(axis=1)
    found = paired_bootstrap(torch.from_numpy(differences).float(), resamples=50_000, seed=0)
    assert found.mean == pytest.approx(differences.mean(), rel=1e-6)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)


def test_intervals_cover_the_true_mean_of_normal_differences() -> None:
    differences = 2 + torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    found = [paired_bootstrap(row, resamples=300, seed=seed) for seed, row in enumerate(differences)]
    # Student's t with 19 degrees of freedom: |t| < 1.96 sqrt(19 / 20) has probability 0.93.
    assert 0.90 < np.mean([low <= 2 <= high for _, low, high, _ in found]) < 0.96


@pytest.mark.parametrize("difference", [0.1, -0.3])
def test_equal_differences_have_an_interval_without_width(difference: float) -> None:
    found = paired_bootstrap(torch.full((7,), difference, dtype=torch.float64), resamples=50, seed=0)
    assert found[:3] == pytest.approx([difference] * 3, rel=1e-12)
    assert found.shown is True


@pytest.mark.parametrize(
    ("differences", "shown"),
    [([0.0, 0], False), ([-1.0, 1, 2, -2], False), ([-3.0, -1, -2], True), ([0.0, 4], False)],
)
def test_a_difference_is_shown_if_the_interval_leaves_out_zero(differences: list[float], shown: bool) -> None:
    assert paired_bootstrap(torch.tensor(differences), resamples=400, seed=0).shown is shown


def test_swapping_the_arms_changes_the_sign() -> None:
    differences = torch.tensor([0.5, -0.2, 1.5, 0.9], dtype=torch.float64)
    one, other = (paired_bootstrap(sign * differences, resamples=300, seed=2) for sign in (1, -1))
    assert other[:3] == pytest.approx([-one.mean, -one.high, -one.low])


def test_the_seed_decides_the_resamples() -> None:
    differences = torch.tensor([0.5, -0.2, 1.5, 0.9])
    one, again, other = (paired_bootstrap(differences, resamples=20, seed=seed) for seed in (2, 2, 3))
    assert one == again
    assert one.low != other.low


def test_one_pair_says_nothing_about_spread() -> None:
    with pytest.raises(ValueError, match="at least 2 seeds, but there are 1. Train more seeds"):
        paired_bootstrap(torch.tensor([1.0]), resamples=100, seed=0)


@pytest.mark.parametrize("undefined", [torch.nan, torch.inf])
def test_undefined_differences_are_refused(undefined: float) -> None:
    with pytest.raises(ValueError, match="must be finite.*Leave out"):
        paired_bootstrap(torch.tensor([1.0, undefined, 2.0]), resamples=100, seed=0)
