"""A baseline refitted behind its own gate, against planted answers and dense autograd written out again."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from penstock.metrics import code_terms, metrics_of, token_terms
from penstock.posthoc.refitting import RefitConfig, Refitted, as_gated, fine_tune, rescale_and_shift
from penstock.saes import SAE, GatedSAE, JumpReLUSAE, ReLUSAE
from penstock.training.trainer import DivergenceError

MakeSAE = Callable[..., SAE]
Refit = Callable[[SAE, Tensor, RefitConfig], Refitted]

both = pytest.mark.parametrize("refit", [rescale_and_shift, fine_tune])

CONFIG = RefitConfig(steps=200, batch_size=500, lr=0.15)
SHORT = RefitConfig(steps=20, batch_size=500, lr=0.05)

READ = 8
"""The first coordinates of planted activations: all that the encoder reads, and too small to matter in the error."""
DEAD = 7
"""A planted latent that never fires."""


class Planted(NamedTuple):
    """Activations whose remaining coordinates are written by unit rows with known magnitudes."""

    sae: ReLUSAE
    """Fires on the same latents, with magnitudes that are shrunk."""
    x: Tensor
    scale: Tensor
    """exp(r_mag) that undoes the shrinking."""
    b_mag: Tensor
    """What undoes it together with `scale`."""
    rows: Tensor
    """What the magnitudes are written with."""


def planted(
    tokens: int = 3000, *, shift: float = 0.3, turned: float = 0.0, dtype: torch.dtype = torch.float32
) -> Planted:
    """Truth is scale * (what the ReLU SAE says) + shift, with its own scale and shift for each latent.

    Args:
        tokens: Rows of x.
        shift: Mean shift; below 0 some magnitudes are zero where the gate is open.
        turned: How far the SAE's decoder rows are turned away from the true ones.
        dtype: Of everything.
    """
    generator = torch.Generator().manual_seed(0)
    d_in, d_sae = 12, 20

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    small = 0.01
    sae = ReLUSAE(d_in, d_sae).double().requires_grad_(False)
    directions = normal(READ, d_sae)
    sae.W_enc.zero_()
    sae.W_enc[:READ] = directions / directions.norm(dim=0) / small
    sae.b_enc.copy_(-1.2 + 0.1 * normal(d_sae))
    sae.b_enc[DEAD] = -100
    sae.b_dec.copy_(0.2 * normal(d_in))
    rows = normal(d_sae, d_in)
    rows[:, :READ] = 0
    rows /= rows.norm(dim=1, keepdim=True)
    other = rows + turned * normal(d_sae, d_in)
    sae.W_dec.copy_(other / other.norm(dim=1, keepdim=True))

    scale = torch.linspace(1.2, 2.5, d_sae, dtype=torch.float64)
    shifts = shift * torch.linspace(1.5, 0.5, d_sae, dtype=torch.float64)
    x = torch.zeros(tokens, d_in, dtype=torch.float64)
    # Of many lengths, so that a latent's scale and shift can be told from each other.
    x[:, :READ] = small * normal(tokens, READ) * normal(tokens, 1).abs()
    acts = (x @ sae.W_enc + sae.b_enc).clamp(min=0)
    x += torch.where(acts > 0, scale * acts + shifts, 0.0).clamp(min=0) @ rows + sae.b_dec
    return Planted(sae.to(dtype), x.to(dtype), scale.to(dtype), (scale * sae.b_enc + shifts).to(dtype), rows.to(dtype))


def state(sae: SAE) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in sae.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def gamma(sae: SAE, x: Tensor) -> float:
    """The relative reconstruction bias as evaluations report it."""
    acts = sae.encode_sparse(x)
    terms = token_terms(x, sae.decode_sparse(acts), x.double().mean(dim=0))
    terms |= code_terms(acts, sae.W_dec.norm(dim=1))
    sums = {name: values.sum() for name, values in terms.items()}
    spliced = dict.fromkeys(("ce_tokens", "ce_clean", "ce_spliced", "ce_zero", "ce_mean", "kl"), torch.ones(()))
    return metrics_of({**sums, **spliced})["reconstruction_bias"].item()


def alive(values: Tensor) -> Tensor:
    return values[torch.arange(len(values)) != DEAD]


def test_a_relu_sae_is_a_gated_sae_to_the_bit(random_sae: MakeSAE) -> None:
    sae = random_sae("relu")
    x = 2 * torch.randn(200, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gated = as_gated(sae)
    assert torch.equal(gated.encode(x), sae.encode(x))
    assert torch.equal(gated(x), sae(x))
    assert 0 < (gated.encode(x) > 0).double().mean() < 1
    assert gated.W_enc.T.is_contiguous()
    assert not any(parameter.requires_grad for parameter in gated.parameters())


@both
def test_the_given_sae_is_not_changed(refit: Refit) -> None:
    case = planted(800, turned=0.2)
    before = state(case.sae)
    found = refit(case.sae, case.x, SHORT).sae
    assert not changed(before, state(case.sae))
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 1
    assert not changed(before, state(case.sae))


def test_a_planted_scale_and_shift_are_recovered() -> None:
    case = planted()
    found = rescale_and_shift(case.sae, case.x, CONFIG)
    torch.testing.assert_close(alive(found.sae.r_mag.exp()), alive(case.scale), rtol=0.03, atol=0)
    torch.testing.assert_close(alive(found.sae.b_mag), alive(case.b_mag), rtol=0.05, atol=0.05)
    assert gamma(case.sae, case.x) < 0.7
    assert gamma(found.sae, case.x) == pytest.approx(1, abs=0.005)
    assert found.loss_after < 0.005 * found.loss_before
    assert found.steps == CONFIG.steps


def test_a_planted_decoder_is_recovered_with_unit_rows() -> None:
    case = planted(turned=0.15)
    found = fine_tune(case.sae, case.x, CONFIG)
    before, after = ((sae.W_dec * case.rows).sum(dim=1) for sae in (case.sae, found.sae))
    assert alive(before).mean() < 0.93
    assert alive(after).min() > 0.995
    torch.testing.assert_close(found.sae.W_dec.norm(dim=1), torch.ones(20), rtol=0, atol=1e-6)
    torch.testing.assert_close(alive(found.sae.r_mag.exp()), alive(case.scale), rtol=0.05, atol=0)
    assert gamma(found.sae, case.x) == pytest.approx(1, abs=0.005)
    assert found.loss_after < 0.001 * found.loss_before


@both
def test_only_what_is_trained_changes_and_the_rest_keeps_every_bit(refit: Refit) -> None:
    case = planted(800, turned=0.2)
    trained = {"r_mag", "b_mag"} | ({"W_dec"} if refit is fine_tune else set())
    before, found = state(as_gated(case.sae)), refit(case.sae, 37 * case.x, SHORT).sae
    assert changed(before, state(found)) == trained
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in found.parameters())


def test_a_latent_that_never_fires_keeps_its_magnitude() -> None:
    case = planted(800)
    found = rescale_and_shift(case.sae, case.x, SHORT).sae
    assert found.b_mag[DEAD] == case.sae.b_enc[DEAD]
    assert found.r_mag[DEAD] == 0


@both
@pytest.mark.parametrize("shift", [0.3, -0.3])
def test_what_fires_never_grows_on_old_and_new_activations(refit: Refit, shift: float) -> None:
    case = planted(800, shift=shift, turned=0.2)
    found = refit(case.sae, case.x, SHORT).sae
    new = case.x.std(dim=0) * torch.randn(2000, 12, generator=torch.Generator().manual_seed(5)) + case.x.mean(dim=0)
    for x in (case.x, 3 * new):
        before, after = case.sae.encode(x) > 0, found.encode(x) > 0
        assert before.any()
        assert not (after & ~before).any()


@both
def test_losses_and_l0_are_of_the_last_activations(refit: Refit) -> None:
    case = planted(1000, shift=-0.3)
    found = refit(case.sae, case.x, RefitConfig(steps=60, batch_size=300, lr=0.05, held_back=0.37))
    x = case.x[630:].double()
    for sae, loss, l0 in (
        (case.sae, found.loss_before, found.l0_before),
        (found.sae, found.loss_after, found.l0_after),
    ):
        acts = sae.encode(case.x[630:]).double()
        x_hat = acts @ sae.W_dec.double() + sae.b_dec.double()
        assert loss == pytest.approx((x - x_hat).square().sum(dim=1).mean().item(), rel=1e-5)
        assert l0 == pytest.approx((acts > 0).double().sum(dim=1).mean().item(), rel=1e-12)
    assert found.loss_after < found.loss_before
    # Some true magnitudes are zero behind an open gate.
    assert found.l0_after < found.l0_before


def test_held_back_activations_teach_nothing() -> None:
    case = planted(1000)
    other = case.x.clone()
    other[900:] = 5
    found, again = (fine_tune(case.sae, x, SHORT) for x in (case.x, other))
    assert not changed(state(found.sae), state(again.sae))
    assert found.loss_before != again.loss_before


def dense_trajectory(case: Planted, x: Tensor, rates: dict[str, float], steps: int) -> tuple[dict, list[dict]]:
    """Full-batch Adam with everything dense and on activations scaled by a power of two; parameters and gradients."""
    scale = 2.0 ** round(math.log2(x.square().sum(dim=1).mean().item() ** -0.5))
    x, b_dec, b_enc = scale * x, scale * case.sae.b_dec, scale * case.sae.b_enc
    now = {"r_mag": torch.zeros_like(b_enc), "b_mag": b_enc.clone(), "W_dec": case.sae.W_dec.clone()}
    first = {name: torch.zeros_like(now[name]) for name in rates}
    second = {name: torch.zeros_like(now[name]) for name in rates}
    gradients = []
    for step in range(steps):
        leaves = {name: value.clone().requires_grad_(name in rates) for name, value in now.items()}
        products = (x - b_dec) @ case.sae.W_enc
        magnitudes = (products * leaves["r_mag"].exp() + leaves["b_mag"]).clamp(min=0)
        acts = torch.where(products + b_enc > 0, magnitudes, 0.0)
        loss = (acts @ leaves["W_dec"] + b_dec - x).square().sum() / len(x)
        found = torch.autograd.grad(loss, [leaves[name] for name in rates])
        gradients.append(dict(zip(rates, found, strict=True)))
        for name, g in gradients[-1].items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            m, v = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            now[name] = now[name] - rates[name] * (1 - step / steps) * m / (v.sqrt() + 1e-8)
    now["b_mag"] = now["b_mag"] / scale
    return now, gradients


@both
@pytest.mark.parametrize("unit", [1.0, 50.0])
def test_gradients_and_steps_are_those_of_dense_autograd(refit: Refit, unit: float) -> None:
    case = planted(220, turned=0.2, dtype=torch.float64)
    # The same SAE for activations in another unit.
    x = unit * case.x
    case.sae.fold_input_scale_(1 / unit)
    rates = {"r_mag": 0.03, "b_mag": 0.03} | ({"W_dec": 0.03 / 12**0.5} if refit is fine_tune else {})
    seen: list[list[Tensor]] = []

    def keep_gradients(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        seen.append([parameter.grad.clone() for parameter in parameters])

    hook = register_optimizer_step_pre_hook(keep_gradients)
    # All 198 activations that are not held back in every step, so their order does not matter.
    found = refit(case.sae, x, RefitConfig(steps=8, batch_size=198, lr=0.03)).sae
    hook.remove()

    expected, gradients = dense_trajectory(case, x[:198], rates, 8)
    for ours, theirs in zip(seen, gradients, strict=True):
        for one, other in zip(ours, theirs.values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    norm = expected["W_dec"].norm(dim=1) if refit is fine_tune else torch.ones(20, dtype=torch.float64)
    torch.testing.assert_close(found.W_dec, expected["W_dec"] / norm[:, None], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.r_mag, expected["r_mag"] + norm.log(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.b_mag, expected["b_mag"] * norm, rtol=1e-6, atol=1e-9)


def test_activations_in_another_unit_give_the_same_sae_in_that_unit() -> None:
    case = planted(800)
    found = rescale_and_shift(case.sae, case.x, SHORT)
    case.sae.fold_input_scale_(1 / 64)
    again = rescale_and_shift(case.sae, 64 * case.x, SHORT)
    assert torch.equal(again.sae.r_mag, found.sae.r_mag)
    assert torch.equal(again.sae.b_mag, 64 * found.sae.b_mag)
    assert again.loss_after == 64**2 * found.loss_after


@both
def test_the_seed_decides_every_bit(refit: Refit) -> None:
    case = planted(800, turned=0.2)
    one, same, other = (refit(case.sae, case.x, RefitConfig(steps=20, batch_size=100, seed=seed)) for seed in (3, 3, 4))
    assert not changed(state(one.sae), state(same.sae))
    assert one[1:] == same[1:]
    assert {"r_mag", "b_mag"} <= changed(state(one.sae), state(other.sae))


@both
def test_a_baseline_in_which_nothing_fires_stays_what_it_is(refit: Refit) -> None:
    case = planted(800)
    case.sae.b_enc.fill_(-100)
    found = refit(case.sae, case.x, SHORT)
    assert found.loss_after == found.loss_before
    assert found.l0_before == found.l0_after == 0


def test_a_decoder_row_of_zeros_is_no_error_and_stays_finite() -> None:
    case = planted(800)
    case.sae.W_dec[DEAD] = 0
    found = fine_tune(case.sae, case.x, SHORT).sae
    assert torch.equal(found.W_dec[DEAD], torch.zeros(12))
    assert all(parameter.isfinite().all() for parameter in found.parameters())


@both
def test_an_sae_without_a_gate_of_its_own_cannot_be_refitted(refit: Refit) -> None:
    with pytest.raises(ValueError, match="architecture 'jumprelu'; it must be one of 'gated', 'relu', .*Give a base"):
        refit(JumpReLUSAE(12, 20), planted(800).x, SHORT)


def as_planted(case: Planted) -> GatedSAE:
    """The gate of the shrunken SAE with the true magnitudes and rows."""
    gated = as_gated(case.sae)
    gated.r_mag.copy_(case.scale.log())
    gated.b_mag.copy_(case.b_mag)
    gated.W_dec.copy_(case.rows)
    return gated


@both
def test_a_gated_sae_that_nothing_shrank_gains_nothing(refit: Refit) -> None:
    case = planted(dtype=torch.float64)
    sae = as_planted(case)
    before = state(sae)
    found = refit(sae, case.x, RefitConfig(steps=200, batch_size=500, lr=0.01))
    # What is left are the small coordinates that no row writes, unless it is fine-tuned to do so.
    assert found.loss_after <= 1.05 * found.loss_before
    assert found.loss_before < 0.01 * (case.x - case.sae.b_dec).square().sum(dim=1).mean().item()
    assert changed(before, state(sae)) == set()
    assert torch.allclose(alive(found.sae.r_mag), alive(case.scale.log()), atol=0.02)


@both
def test_a_gated_sae_whose_magnitudes_are_off_is_mended_behind_its_gate(refit: Refit) -> None:
    case = planted()
    sae = as_planted(case)
    sae.r_mag.sub_(0.4)
    found = refit(sae, case.x, CONFIG)
    assert found.loss_after < 0.01 * found.loss_before
    assert torch.equal(found.sae.W_enc, sae.W_enc) and torch.equal(found.sae.b_gate, sae.b_gate)
    if refit is rescale_and_shift:
        assert torch.allclose(alive(found.sae.r_mag), alive(case.scale.log()), atol=0.1)


@both
def test_rows_of_another_norm_are_an_error(refit: Refit) -> None:
    case = planted(800)
    case.sae.W_dec[3] *= 2
    with pytest.raises(ValueError, match=r"1 of 20 decoder rows .* than 1, e.g. 2;.*fold_decoder_norm_\(\) first"):
        refit(case.sae, case.x, SHORT)


@both
@pytest.mark.parametrize(("tokens", "left"), [(1, 0), (0, 0), (500, 450)])
def test_fewer_activations_than_a_batch_are_an_error(refit: Refit, tokens: int, left: int) -> None:
    case = planted(800)
    with pytest.raises(ValueError, match=f"batch_size=500 is more than the {left} .*, of {tokens} with held_back=0.1"):
        refit(case.sae, case.x[:tokens], SHORT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", -5), ("batch_size", 0), ("lr", 0.0), ("lr", 11.0), ("lr", math.nan), ("seed", -1),
        ("seed", 2**31), ("held_back", 0.0), ("held_back", 1.0),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_errors(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} is out of range: it must be "):
        RefitConfig(**{name: value})


@both
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_an_error_before_the_first_step(refit: Refit, value: float) -> None:
    case = planted(800)
    to_train_on, to_measure_on = case.x.clone(), case.x.clone()
    to_train_on[100, 5] = value
    to_measure_on[790, 5] = value
    with pytest.raises(ValueError, match="mean squared norm of the activations is (nan|inf)"):
        refit(case.sae, to_train_on, SHORT)
    with pytest.raises(DivergenceError, match="is (nan|inf) before the first step. Look for NaN"):
        refit(case.sae, to_measure_on, SHORT)


@both
def test_nan_met_later_names_the_step(refit: Refit) -> None:
    # Beyond the activations that the scale is measured on.
    x = torch.randn(80_000, 2, generator=torch.Generator().manual_seed(0))
    x[70_000] = math.nan
    order = torch.randperm(72_000, generator=torch.Generator().manual_seed(0))
    step = (order == 70_000).nonzero().item() // 9000
    assert 0 < step < 8
    with pytest.raises(DivergenceError, match=rf"is nan at step {step}\. .* try a third of lr=0.03"):
        refit(ReLUSAE(2, 2), x, RefitConfig(steps=8, batch_size=9000))
