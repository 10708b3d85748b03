"""The controller on simulated SAEs, what it records, and a real SAE through a decay of the learning rate."""

import json
import math
from itertools import pairwise

import pytest
import torch

from penstock.training.schedules import Schedule
from penstock.training.settings import DataConfig, OptimConfig, RunConfig, SAEConfig
from penstock.training.settings.defaults import PlannedModel
from penstock.training.steering import LARGEST_GAIN, L0Controller
from penstock.training.trainer import SAETrainer


class Plant:
    """L0 = a * coef^-b, which follows the coefficient in proportion to the learning rate and is measured with noise.

    As in an SAE, less noise of the optimiser lets more latents fire: L0 rises by `drift` (in logs) while the rate
    falls to zero.
    """

    def __init__(self, a: float, b: float, *, noise: float = 0.03, drift: float = 0.0) -> None:
        self.a, self.b, self.noise, self.drift = a, b, noise, drift
        self.log_l0 = math.log(200.0)
        self.generator = torch.Generator().manual_seed(0)

    def step(self, coef: float, lr: float, factor: float) -> float:
        aim = math.log(self.a * coef**-self.b) + self.drift * (1 - factor)
        self.log_l0 += min(1.0, 15 * lr * factor) * (aim - self.log_l0)
        return math.exp(self.log_l0 + self.noise * torch.randn((), generator=self.generator).item())


def steered(
    plant: Plant, target: float, *, num_steps: int = 2000, lr: float = 5e-3, decay: float = 0.2, initial: float = 0.3
) -> tuple[L0Controller, list[float]]:
    """The controller after a whole run, and the coefficient applied in each step."""
    warmup = num_steps // 20
    schedule = Schedule(num_steps=num_steps, warmup=warmup, decay=round(decay * num_steps), sparsity_warmup=warmup)
    controller = L0Controller(target, initial, num_steps=num_steps, steer_from=warmup, lr=lr)
    coefs = []
    for step in range(num_steps):
        coefs.append(controller.coef * schedule.sparsity_factor(step))
        factor = schedule.lr_factor(step)
        controller.update(step, plant.step(coefs[-1], lr, factor), lr=lr * factor, applied=coefs[-1])
    return controller, coefs


@pytest.mark.parametrize("target", [2.0, 8.0, 32.0])
@pytest.mark.parametrize("b", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("num_steps", "lr"), [(500, 7e-3), (2000, 5e-3), (8000, 3e-3)])
def test_l0_ends_on_the_target_although_it_rises_while_the_rate_decays(
    target: float, b: float, num_steps: int, lr: float
) -> None:
    plant = Plant(a=5.0, b=b, drift=0.3)
    controller, _ = steered(plant, target, num_steps=num_steps, lr=lr)
    assert math.exp(plant.log_l0) == pytest.approx(target, rel=0.05)
    assert controller.smoothed == pytest.approx(target, rel=0.08)


def test_the_coefficient_waits_for_its_warm_up() -> None:
    controller, coefs = steered(Plant(a=5.0, b=1.0), 8.0)
    assert coefs[99] == 0.3
    assert coefs[101] != 0.3
    assert controller.coef != 0.3


@pytest.mark.parametrize("lr", [1e-9, 1e-3, 10.0])
def test_the_coefficient_moves_no_faster_than_the_learning_rate_allows(lr: float) -> None:
    controller = L0Controller(1.0, 0.3, num_steps=100, steer_from=0, lr=lr)
    coefs = [controller.coef]
    for step in range(100):
        controller.update(step, 1e6, lr=lr, applied=controller.coef)
        coefs.append(controller.coef)
    fastest = math.exp(min(LARGEST_GAIN, 40 * lr))
    assert all(after / before == pytest.approx(fastest) or after == 30.0 for before, after in pairwise(coefs))


def test_the_coefficient_is_back_at_once_after_a_target_was_out_of_reach() -> None:
    """At a high learning rate L0 can lie below its target without any penalty, and above it after the decay."""
    controller = L0Controller(64.0, 0.1, num_steps=800, steer_from=0, lr=8e-3)
    for step in range(700):
        controller.update(step, 59.0, lr=8e-3, applied=controller.coef)
    assert controller.coef == pytest.approx(1e-3)
    for step in range(700, 730):
        controller.update(step, 90.0, lr=4e-3, applied=controller.coef)
    assert controller.coef > 0.01


def test_a_target_out_of_reach_winds_up_no_further_while_the_rate_decays() -> None:
    """An SAE at a rate of zero does not answer, so the coefficient must rest, too."""
    controller = L0Controller(1.0, 0.3, num_steps=10, steer_from=0, lr=5e-3)
    for step in range(10):
        controller.update(step, 1e6, lr=0.0, applied=0.3)
    assert controller.coef == 0.3


def test_the_recorded_coefficient_is_that_of_the_last_steps_and_not_the_one_of_a_step_to_come() -> None:
    controller, coefs = steered(Plant(a=5.0, b=1.0, drift=0.3), 8.0)
    tenths = [sum(coefs[start : start + 200]) / 200 for start in range(0, 2000, 200)]
    assert controller.path == pytest.approx(tenths)
    assert controller.trained_coef == pytest.approx(tenths[-1])


def test_a_run_of_one_step_records_the_coefficient_of_that_step() -> None:
    controller = L0Controller(4.0, 0.3, num_steps=1, steer_from=0, lr=1.0)
    controller.update(0, 500.0, lr=1.0, applied=0.3)
    assert controller.trained_coef == 0.3
    assert controller.path == [0.3, *[None] * 9]


def test_a_restored_controller_goes_on_with_the_same_coefficients() -> None:
    for stop in (1, 500, 1900):
        whole, restored = (L0Controller(8.0, 0.3, num_steps=2000, steer_from=100, lr=5e-3) for _ in range(2))
        plant = Plant(5.0, 1.0, noise=0.3)
        l0s = [plant.step(0.6, 5e-3, 1.0) for _ in range(2000)]
        for step, l0 in enumerate(l0s):
            if step == stop:
                restored.load_state(json.loads(json.dumps(whole.state())))
            whole.update(step, l0, lr=5e-3, applied=whole.coef)
            if step >= stop:
                restored.update(step, l0, lr=5e-3, applied=restored.coef)
        assert restored.state() == whole.state()
        assert restored.coef == whole.coef != 0.3


def test_the_ratio_is_the_mean_of_the_first_comparisons_and_then_follows_the_newest() -> None:
    controller = L0Controller(8.0, 0.3, num_steps=2000, steer_from=0, lr=5e-3)
    assert controller.validation_ratio == 1
    for validation in (4.0, 16.0):
        controller.compare(8.0, validation)
    assert controller.validation_ratio == pytest.approx(1.0)
    controller.compare(8.0, 64.0)
    assert controller.validation_ratio == pytest.approx(2.0)  # the cube root of 8
    for _ in range(17):
        controller.compare(8.0, 16.0)
    before = controller.log_ratio
    controller.compare(8.0, 8.0)
    assert controller.log_ratio == pytest.approx(0.95 * before)
    controller.compare(0.0, 0.0)  # an SAE that is silent
    assert math.isfinite(controller.log_ratio)


def test_l0_is_compared_about_a_hundred_times_or_at_every_tenth_step_from_the_start_of_the_steering() -> None:
    def steps(num_steps: int) -> list[int]:
        controller = L0Controller(8.0, 0.3, num_steps=num_steps, steer_from=num_steps // 20, lr=5e-3)
        return [step for step in range(num_steps) if controller.compares(step)]

    assert steps(60) == list(range(3, 60))
    assert steps(500) == list(range(25, 500, 5))
    assert steps(20_000) == list(range(1000, 20_000, 10))


def test_the_target_is_between_training_and_validation_tokens() -> None:
    """More latents fire on validation tokens, by 21% in the second half of the run."""
    plant = Plant(a=5.0, b=1.0, drift=0.3)
    schedule = Schedule(num_steps=1000, warmup=50, decay=200, sparsity_warmup=50)
    controller = L0Controller(16.0, 0.3, num_steps=1000, steer_from=50, lr=5e-3)
    for step in range(1000):
        factor = schedule.lr_factor(step)
        l0 = plant.step(controller.coef, 5e-3, factor)
        if controller.compares(step):
            controller.compare(l0, l0 * (1 + 0.21 * min(1, step / 500)))
        controller.update(step, l0, lr=5e-3 * factor, applied=controller.coef)
    assert math.exp(plant.log_l0) == pytest.approx(16 / 1.1, rel=0.04)
    assert controller.steered_l0 == pytest.approx(16, rel=0.05)


def sparse_mixtures(batch: int, active: float, generator: torch.Generator) -> torch.Tensor:
    """Activations [batch, 16] of unit mean squared norm: sums of a mean of `active` out of 48 fixed directions."""
    directions = torch.randn(48, 16, generator=torch.Generator().manual_seed(1))
    fires = torch.rand(batch, 48, generator=generator) < active / 48
    x = (fires * (0.5 + torch.rand(batch, 48, generator=generator))) @ directions
    return x / x.square().sum(dim=1).mean().sqrt()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("arch", ["gated", "relu"])
def test_a_real_sae_ends_on_its_target_through_the_decay(arch: str) -> None:
    """Validation tokens have a sixth more directions in them: an SAE has not fitted that text."""
    sae = SAEConfig(arch=arch, site="here", d_sae=64, target_l0=4.0, recipe="paper_clipped")
    steps, batch = 300, 256
    run = RunConfig(saes=(sae,), optim=OptimConfig(batch_size=batch), data=DataConfig(tokens=steps * batch))
    decided = run.resolve(PlannedModel("", 128, {"here": 16}))
    trainer = SAETrainer(
        decided.saes[0],
        Schedule.of(decided, decided.saes[0]),
        d_in=16,
        beta2=decided.optim.beta2,
        encoder_precision="float32",
        dead_window=decided.resampling.window_tokens,
        encoder_scale=decided.resampling.encoder_scale,
        device="cpu",
    )
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        validation = sparse_mixtures(batch, 3.5, generator) if trainer.compares_l0(step) else None
        trainer.step(sparse_mixtures(batch, 3.0, generator), step, validation)
    trained, validation = (
        (trainer.sae.encode(sparse_mixtures(20_000, active, generator)) > 0).sum(dim=1).double().mean().item()
        for active in (3.0, 3.5)
    )
    ratio = validation / trained
    assert trainer.controller is not None and ratio == pytest.approx(trainer.controller.validation_ratio, rel=0.03)
    assert ratio > 1.02
    assert validation / math.sqrt(ratio) == pytest.approx(4.0, rel=0.05)
