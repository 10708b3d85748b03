"""Schedules at chosen steps by hand, and the controller on a simulated SAE."""

import json
import math

import pytest
import torch

from penstock.training.schedules import L0Controller, Schedule


def schedule(dips: tuple[int, ...] = (), **changes: int) -> Schedule:
    lengths = {"num_steps": 100, "warmup": 10, "decay": 20, "sparsity_warmup": 5, "dip_length": 8} | changes
    return Schedule(dips=dips, dip=0.1, **lengths)


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (79, 1.0), (80, 1.0), (81, 0.95), (90, 0.5), (99, 0.05)],
)
def test_the_learning_rate_rises_stays_and_falls(step: int, factor: float) -> None:
    assert schedule().lr_factor(step) == pytest.approx(factor)


def test_without_warm_up_and_decay_the_learning_rate_is_constant() -> None:
    flat = schedule(warmup=0, decay=0)
    assert {flat.lr_factor(step) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (29, 1.0),
        (30, 0.1),
        (32, 0.1 + 0.9 * (1 - math.cos(math.pi / 4)) / 2),
        (34, 0.55),
        (37, 0.1 + 0.9 * (1 - math.cos(math.pi * 7 / 8)) / 2),
        (38, 1.0),
    ],
)
def test_after_resampling_the_learning_rate_dips_and_returns_along_a_cosine(step: int, factor: float) -> None:
    assert schedule(dips=(30,)).lr_factor(step) == pytest.approx(factor)


def test_the_last_of_two_dips_counts_and_dips_multiply_with_the_rest() -> None:
    assert schedule(dips=(30, 33)).lr_factor(33) == pytest.approx(0.1)
    assert schedule(dips=(30, 33)).lr_factor(37) == pytest.approx(0.55)
    assert schedule(dips=(90,)).lr_factor(90) == pytest.approx(0.5 * 0.1)


def test_the_sparsity_coefficient_rises_linearly() -> None:
    factors = [schedule().sparsity_factor(step) for step in range(7)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    assert schedule(sparsity_warmup=0).sparsity_factor(0) == 1.0


class Plant:
    """L0 = a * coef^-b, which follows the coefficient with a lag and is measured with noise."""

    def __init__(self, a: float, b: float, *, lag: float, noise: float) -> None:
        self.a, self.b, self.lag, self.noise = a, b, lag, noise
        self.log_l0 = math.log(200.0)
        self.generator = torch.Generator().manual_seed(0)

    def step(self, coef: float) -> float:
        self.log_l0 += (math.log(self.a * coef**-self.b) - self.log_l0) / self.lag
        return math.exp(self.log_l0 + self.noise * torch.randn((), generator=self.generator).item())


STEPS, WARMUP = 4000, 200


def steered(plant: Plant, target: float, initial: float = 0.3) -> tuple[L0Controller, list[float], int]:
    """The controller after a whole run, the coefficient of every step, and the step from which it was frozen."""
    controller = L0Controller(target, initial, num_steps=STEPS)
    coefs = []
    first_frozen = STEPS
    for step in range(STEPS):
        rise = min(1.0, (step + 1) / WARMUP)
        controller.update(step, plant.step(controller.coef * rise))
        coefs.append(controller.coef)
        if controller.frozen_at is not None:
            first_frozen = min(first_frozen, step)
    return controller, coefs, first_frozen


@pytest.mark.parametrize("target", [2.0, 8.0, 32.0])
@pytest.mark.parametrize("b", [0.5, 1.0, 2.0])
def test_the_controller_reaches_holds_and_freezes_on_the_target(target: float, b: float) -> None:
    plant = Plant(a=5.0, b=b, lag=20, noise=0.05)
    controller, coefs, first_frozen = steered(plant, target)
    assert STEPS // 2 <= first_frozen < STEPS
    assert controller.frozen_at == first_frozen
    assert set(coefs[first_frozen:]) == {controller.coef}
    final_l0 = plant.a * controller.coef**-b
    assert final_l0 == pytest.approx(target, rel=0.05)
    assert controller.smoothed == pytest.approx(target, rel=0.05)


def test_the_controller_leaves_the_coefficient_alone_while_a_warm_up_rules() -> None:
    _, coefs, _ = steered(Plant(a=5.0, b=1.0, lag=20, noise=0.05), 8.0)
    assert set(coefs[:WARMUP]) == {0.3}
    assert len(set(coefs)) > STEPS // 4


def test_the_controller_keeps_steering_while_the_target_is_not_held() -> None:
    # So far from the target (a coefficient of e^27 times the initial one) that it cannot have arrived in time.
    controller, coefs, _ = steered(Plant(a=1e10, b=1.0, lag=20, noise=0.05), 2.0, initial=0.01)
    assert controller.frozen_at is None
    assert coefs[-1] > coefs[-2] > 0.01 * math.exp(5)


def test_a_restored_controller_goes_on_with_the_same_coefficients() -> None:
    for stop in (1, 500, 3500):
        whole, restored = (L0Controller(8.0, 0.3, num_steps=STEPS) for _ in range(2))
        plant = Plant(5.0, 1.0, lag=1, noise=0.3)
        l0s = [plant.step(0.6) for _ in range(STEPS)]
        for step, l0 in enumerate(l0s):
            if step == stop:
                restored.load_state(json.loads(json.dumps(whole.state())))
            whole.update(step, l0)
            if step >= stop:
                restored.update(step, l0)
        assert restored.state() == whole.state()
        assert restored.coef == whole.coef != 0.3
