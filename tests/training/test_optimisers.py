"""LatentAdam takes PyTorch's steps; both against Adam written out by hand in float64."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from penstock.saes import ARCHITECTURES, DECODER_RULES, TrainableSAE, trainable
from penstock.training.optimisers import DenseAdam, LatentAdam, make_optimiser
from penstock.training.settings import SAEConfig
from penstock.training.settings.defaults import PlannedModel
from penstock.training.settings.recipes import RECIPES
from penstock.training.settings.sae_config import resolve_sae

D_IN, D_SAE, BATCH, STEPS = 12, 40, 32, 200
LR, BETA2 = 3e-3, 0.99

every_arch = pytest.mark.parametrize("arch", trainable())


def sae_of(arch: str, dtype: torch.dtype = torch.float32) -> TrainableSAE:
    """With biases so low that most latents miss most batches."""
    sae = ARCHITECTURES[arch].make_trainable(D_IN, D_SAE, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        # To the last digit: PyTorch's way renormalises rows that have never fired, too.
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        for name in sae.encoder_biases:
            if name != "r_mag":
                sae.get_parameter(name).copy_(-torch.linspace(2, 9, D_SAE))
    return sae


def batch(step: int) -> Tensor:
    return 3 * torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(step))


def train(sae: TrainableSAE, optimiser: DenseAdam | LatentAdam, recipe: str, steps: int = STEPS) -> set[int]:
    """Some steps; returns how many latents were reached in each, to show that there was something to be lazy about."""
    reached = set()
    for step in range(steps):
        optimiser.zero_grad()
        loss = sae.loss(batch(step).to(sae.W_dec), 0.1, RECIPES[recipe].rule)
        loss.total.backward()
        optimiser.update(loss.acts.support.latents)
        reached.add(len(loss.acts.support.latents))
    return reached


def state(sae: TrainableSAE) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in sae.named_parameters()}


@every_arch
@pytest.mark.parametrize(("recipe", "max_norm"), [("paper", 0.0), ("paper_clipped", 0.5), ("norm_weighted", 0.5)])
def test_200_steps_agree_with_pytorchs_adam_to_1e_6(arch: str, max_norm: float, recipe: str) -> None:
    unit = RECIPES[recipe].rule.decoder_norm == "unit"
    lazy, plain = sae_of(arch), sae_of(arch)
    start = state(lazy)
    settings = {"lr": LR, "beta2": BETA2, "max_norm": max_norm, "unit_rows": unit}
    latent_adam, adam = LatentAdam(lazy, **settings), DenseAdam(plain, beta1=0.0, **settings)
    # From a second moment that is not zero: in a coordinate's first step Adam goes by the sign of its gradient alone,
    # and the sign of a gradient that is zero but for rounding is anyone's.
    for optimiser in (latent_adam, adam):
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                optimiser.state[parameter]["exp_avg_sq"] = torch.ones_like(parameter)
    for parameter in plain.parameters():
        adam.state[parameter] |= {"exp_avg": torch.zeros_like(parameter), "step": torch.zeros(())}
    reached = train(lazy, latent_adam, recipe)
    train(plain, adam, recipe)
    assert min(reached) < D_SAE and len(reached) > 5, "every latent fired in every batch"
    for name, value in state(lazy).items():
        other = state(plain)[name]
        assert (value != start[name]).any(), name
        assert (value - other).norm() <= 1e-6 * other.norm(), f"{name}: {(value - other).norm() / other.norm():.2g}"


@every_arch
@pytest.mark.parametrize("max_norm", [0.0, 0.5], ids=["unclipped", "clipped"])
def test_both_are_adam_as_written_in_the_paper(arch: str, max_norm: float) -> None:
    by_hand = sae_of(arch, torch.float64)
    moments = {name: torch.zeros_like(value) for name, value in by_hand.named_parameters()}
    for step in range(20):
        by_hand.zero_grad()
        by_hand.loss(batch(step).double(), 0.1, DECODER_RULES["unit"]).total.backward()
        gradients = {
            name: parameter.grad.clone() for name, parameter in by_hand.named_parameters() if parameter.grad is not None
        }
        rows = by_hand.W_dec.detach()
        for j in range(D_SAE):
            gradients["W_dec"][j] -= (gradients["W_dec"][j] @ rows[j]) * rows[j]
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        scale = min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
        with torch.no_grad():
            for name, parameter in by_hand.named_parameters():
                g = scale * gradients[name]
                moments[name] = BETA2 * moments[name] + (1 - BETA2) * g**2
                parameter -= LR * g / ((moments[name] / (1 - BETA2 ** (step + 1))) ** 0.5 + 1e-8)
            by_hand.W_dec /= by_hand.W_dec.norm(dim=1, keepdim=True)

    lazy, plain = sae_of(arch, torch.float64), sae_of(arch, torch.float64)
    train(lazy, LatentAdam(lazy, lr=LR, beta2=BETA2, max_norm=max_norm, unit_rows=True), "paper", 20)
    train(plain, DenseAdam(plain, lr=LR, beta1=0.0, beta2=BETA2, max_norm=max_norm, unit_rows=True), "paper", 20)
    for sae in (lazy, plain):
        for name, value in state(sae).items():
            torch.testing.assert_close(value, state(by_hand)[name], rtol=1e-9, atol=1e-9)


def test_a_latent_that_rests_decays_by_a_power_of_beta2() -> None:
    sae = sae_of("relu", torch.float64)
    optimiser = LatentAdam(sae, lr=LR, beta2=0.5, max_norm=0.0, unit_rows=False)
    second_moment = optimiser.state[sae.W_dec]["exp_avg_sq"]

    def update(gradient: float, *latents: int) -> None:
        for parameter in sae.parameters():
            parameter.grad = torch.zeros_like(parameter)
        assert sae.W_dec.grad is not None
        sae.W_dec.grad[list(latents)] = gradient
        optimiser.update(torch.tensor(latents))

    update(4.0, 0, 1)
    update(2.0, 1)
    update(2.0, 1)
    resting = sae.W_dec[0].detach().clone()
    assert torch.equal(sae.W_dec[0], resting) and (second_moment[0] == 8).all()
    update(4.0, 0)
    assert (second_moment[0] == 8 / 2**3 + 8).all()
    assert (second_moment[1] == ((8 / 2 + 2) / 2 + 2)).all()
    # Step 4 of lr * g / sqrt(v / (1 - beta2^4)).
    torch.testing.assert_close(
        resting - sae.W_dec[0], torch.full((D_IN,), LR * 4 / math.sqrt(9 / (1 - 0.5**4))).double()
    )


def test_beta1_moves_latents_that_no_longer_fire() -> None:
    sae = sae_of("gated")
    optimiser = DenseAdam(sae, lr=LR, beta1=0.9, beta2=BETA2, max_norm=0.0, unit_rows=True)
    train(sae, optimiser, "paper", 5)
    before = sae.W_enc.detach().clone()
    optimiser.zero_grad()
    loss = sae.loss(batch(99), 0.1, DECODER_RULES["unit"])
    loss.total.backward()
    silent = torch.ones(D_SAE, dtype=torch.bool)
    silent[loss.acts.support.latents] = False
    optimiser.update(loss.acts.support.latents)
    fired_before = (optimiser.state[sae.W_enc]["exp_avg"] != 0).any(dim=0)
    assert (silent & fired_before).any()
    assert (sae.W_enc != before).any(dim=0)[silent & fired_before].all()


@every_arch
def test_frozen_parameters_stay_and_do_not_count_in_the_norm(arch: str) -> None:
    sae = sae_of(arch)
    sae.W_enc.requires_grad_(False)
    sae.b_dec.requires_grad_(False)
    before = state(sae)
    train(sae, LatentAdam(sae, lr=LR, beta2=BETA2, max_norm=0.5, unit_rows=True), "paper", 3)
    after = state(sae)
    assert torch.equal(before["W_enc"], after["W_enc"]) and torch.equal(before["b_dec"], after["b_dec"])
    assert not torch.equal(before["W_dec"], after["W_dec"])


def test_the_setting_decides_which_optimiser_an_sae_gets() -> None:
    asked = SAEConfig(arch="gated", site="resid_post.0", d_sae=D_SAE, target_l0=2.0, lr=1e-3)
    base = resolve_sae(asked, PlannedModel("model", 8, {}), num_steps=10, warmup_share=0.0)
    for config, kind in (
        (replace(base, optimiser="latent_adam"), LatentAdam),
        (replace(base, optimiser="adam"), DenseAdam),
        (replace(base, beta1=0.9, optimiser="adam"), DenseAdam),
    ):
        assert type(make_optimiser(config, sae_of("gated"), beta2=BETA2, unit_rows=True)) is kind


def test_latent_adam_has_no_first_moment_to_keep() -> None:
    with pytest.raises(ValueError, match="optimiser='latent_adam' with beta1=0.9.*Set beta1=0, or optimiser='adam'"):
        SAEConfig(arch="gated", site="resid_post.0", d_sae=8, target_l0=2.0, beta1=0.9, optimiser="latent_adam")
