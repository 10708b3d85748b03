"""The trend of a loss: known curves by hand, and the decay of the learning rate, which must not count."""

import json
import math
from collections.abc import Callable

import pytest
import torch

from penstock.training.convergence import WINDOWS, LossTrend


def followed(
    loss_at: Callable[[int], float],
    start: int,
    end: int,
    *,
    noise: float = 0.0,
    coef_at: Callable[[int], float] = lambda step: 0.1,
) -> LossTrend:
    """A trend of a loss that is half penalty (at coefficient 0.1) and half reconstruction."""
    trend = LossTrend(start, end)
    generator = torch.Generator().manual_seed(0)
    for step in range(end + 500):
        total = loss_at(step) * (1 + noise * torch.randn((), generator=generator).item())
        penalty, rest = total / 2 / 0.1, total / 2
        coef = coef_at(step)
        trend.add(step, {"sparsity": penalty, "reconstruction": rest, "loss": rest + coef * penalty}, coef)
    return trend


@pytest.mark.parametrize("fall", [-0.02, 0.0, 0.01, 0.1])
def test_a_loss_linear_in_the_logarithm_of_the_step_falls_by_its_slope_with_each_doubling(fall: float) -> None:
    found = followed(lambda step: 1 - fall * math.log2((step + 1) / 1600), 800, 1600).trend()
    assert found is not None
    assert found.fall == pytest.approx(fall, rel=0.08, abs=1e-9)
    assert found.error == pytest.approx(0, abs=0.002)


def test_a_loss_that_has_converged_passes_and_one_that_still_falls_does_not() -> None:
    converged = followed(lambda step: 0.3 + 0.2 * math.exp(-step / 300), 4000, 8000, noise=0.03).trend()
    short = followed(lambda step: 0.3 + 0.2 * math.exp(-step / 300), 200, 400, noise=0.03).trend()
    assert converged is not None and not converged.still_improving
    assert short is not None and short.still_improving
    assert short.fall > 0.1


def test_what_comes_after_the_last_step_does_not_count() -> None:
    """The loss drops by a tenth where the learning rate decays, as it does in every run."""
    found = followed(lambda step: 0.3 if step < 1600 else 0.27, 800, 1600).trend()
    assert found is not None and found.fall == pytest.approx(0, abs=1e-12)


def test_all_windows_are_compared_at_one_coefficient() -> None:
    """A coefficient that is steered down makes the loss smaller without making the SAE any better."""
    found = followed(lambda step: 0.3, 800, 1600, coef_at=lambda step: 0.2 - step * 1e-4).trend()
    assert found is not None and found.fall == pytest.approx(0, abs=1e-12)


def test_noise_alone_is_not_an_improvement() -> None:
    found = followed(lambda step: 0.3, 50, 100, noise=0.3).trend()
    assert found is not None and not found.still_improving


@pytest.mark.parametrize(("start", "end"), [(5, 5), (0, WINDOWS - 1)])
def test_too_few_steps_tell_nothing(start: int, end: int) -> None:
    assert followed(lambda step: 1.0, start, end).trend() is None


def test_an_architecture_without_a_penalty_has_a_trend() -> None:
    trend = LossTrend(8, 16)
    for step in range(16):
        trend.add(step, {"reconstruction": 1.0, "loss": 1.0}, 0.0)
    assert trend.trend() == (0.0, 0.0)


def test_a_restored_trend_goes_on_with_the_same_sums() -> None:
    whole, restored = LossTrend(0, 16), LossTrend(0, 16)
    for step in range(16):
        if step == 9:
            restored.load_state(json.loads(json.dumps(whole.state())))
        for trend in (whole, restored) if step >= 9 else (whole,):
            trend.add(step, {"reconstruction": 1 / (step + 1), "loss": 1 / (step + 1)}, 0.0)
    assert whole.trend() == restored.trend()
