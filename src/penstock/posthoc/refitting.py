"""Is it enough to fix shrinkage? Refits a baseline's magnitudes, and then its decoder, behind its own gate.

A ReLU SAE is a Gated SAE whose gate and magnitude share one bias and one scale. In that form its magnitudes can be
fitted to the reconstruction alone, without the penalty that shrank them; the same latents keep firing. A Gated SAE is
the control: no penalty has shrunk its magnitudes, so whatever it gains comes from longer fitting.

Sources: Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, section 5.2 and figure 9, for
`rescale_and_shift`. `fine_tune` follows Wright & Sharkey 2024, "Addressing Feature Suppression in SAEs", who continue
training without the penalty; here everything that could raise L0 stays frozen. The paper does not state the loss of
this stage; both functions here minimise the squared reconstruction error only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from penstock.activations.sources import SCALE_TOKENS, ActivationCache, measure_scale
from penstock.saes import ARCHITECTURES, SAE, GatedSAE, squared_errors
from penstock.settings import MAX_SEED
from penstock.shapes import Acts
from penstock.training.trainer import DivergenceError

UNIT = 0.01
"""Largest distance from 1 at which a decoder row's norm counts as 1."""


@dataclass(frozen=True, kw_only=True)
class RefitConfig:
    """Settings of a refit, which uses Adam with a learning rate that falls linearly to zero."""

    steps: int = 500
    """Optimiser steps."""
    batch_size: int = 4096
    """Activations per step."""
    lr: float = 0.03
    """Initial learning rate, for activations with a mean squared norm of about 1 and decoder rows of unit norm."""
    seed: int = 0
    """Seed of the order of the activations."""
    held_back: float = 0.1
    """Share of the activations, taken from the end, that is used for measuring and not for training."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, 10**9),
            ("batch_size", 1, 10**9),
            ("lr", 1e-9, 10.0),
            ("seed", 0, MAX_SEED),
            ("held_back", 0.001, 0.9),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}={value} is out of range: it must be between {low:g} and {high:g}.")


DEFAULT = RefitConfig()


class Refitted(NamedTuple):
    """An SAE with new magnitudes, and their effect on the held-back activations."""

    sae: GatedSAE
    """SAE on raw activations with unit decoder rows; no gradients, and the original's gate, bit for bit."""
    loss_before: float
    """Squared error of the original SAE per token, summed over d_in, in raw units."""
    loss_after: float
    """Squared error of `sae`, in the same units."""
    l0_before: float
    """Latents of the original SAE that fire per token."""
    l0_after: float
    """Latents of `sae` that fire per token: one for each open gate whose magnitude is not zero."""
    steps: int
    """Optimiser steps taken."""


@torch.no_grad()
def as_gated(sae: SAE) -> GatedSAE:
    """Return a Gated SAE that computes the same function as this SAE, with a separate gate and magnitude.

    Raises:
        ValueError: the SAE's architecture has no Gated form.
    """
    convert = ARCHITECTURES[sae.arch].as_gated
    if convert is None:
        allowed = ", ".join(repr(name) for name, one in ARCHITECTURES.items() if one.as_gated is not None)
        raise ValueError(
            f"The SAE to refit has the architecture {sae.arch!r}; it must be one of {allowed}, which have magnitudes "
            "to fit behind a frozen gate. Give a baseline, or a Gated SAE as the control."
        )
    gated = convert(sae)
    assert isinstance(gated, GatedSAE)
    return gated.requires_grad_(False)


def rescale_and_shift(sae: SAE, activations: Acts, config: RefitConfig = DEFAULT) -> Refitted:
    """Fit a scale and a shift of each latent's magnitude, r_mag and b_mag; everything else is frozen.

    Args:
        sae: A trained ReLU or Gated SAE on raw activations with unit decoder rows; it is not changed.
        activations: Training activations of the SAE's site, in raw units and in the SAE's dtype, on its device.
        config: Settings of the optimiser.

    Raises:
        ValueError: the architecture is not ReLU or Gated, decoder rows do not have norm 1, or the activations are too
            few or not finite.
        DivergenceError: the squared error is NaN or infinite; names the step.
    """
    return _refit(sae, activations, config, {"r_mag": config.lr, "b_mag": config.lr})


def fine_tune(sae: SAE, activations: Acts, config: RefitConfig = DEFAULT) -> Refitted:
    """Fit the decoder's rows together with r_mag and b_mag; the gate is frozen: W_enc, b_gate and b_dec.

    b_dec belongs to the gate, which reads x - b_dec. The rows' norms are free, and are moved into the magnitudes at the
    end. Arguments and errors are the same as for `rescale_and_shift`. A row has d_in numbers and learns only from
    activations on which its latent fires: if `loss_after` exceeds that of `rescale_and_shift`, give more activations.
    """
    # Adam moves every coordinate by about the learning rate; coordinates of a unit row are about 1 / sqrt(d_in).
    of_rows = config.lr / math.sqrt(sae.d_in)
    return _refit(sae, activations, config, {"r_mag": config.lr, "b_mag": config.lr, "W_dec": of_rows})


def _refit(sae: SAE, activations: Acts, config: RefitConfig, rates: Mapping[str, float]) -> Refitted:
    """Train the parameters that have a learning rate in `rates`."""
    gated = as_gated(sae)
    _check_unit_rows(gated)
    num_trained = len(activations) - max(1, round(config.held_back * len(activations)))
    if num_trained < config.batch_size:
        raise ValueError(
            f"batch_size={config.batch_size} is more than the {max(0, num_trained)} activations to train on, of "
            f"{len(activations)} with held_back={config.held_back:g}. Lower batch_size, or give more activations."
        )
    trained_on, held_back = activations[:num_trained], activations[num_trained:]
    before = _measured(gated, held_back, config, "before the first step")

    # A power of two, so that folding it in and out changes no bit of the frozen parameters or the gates.
    scale = 2.0 ** round(math.log2(measure_scale([trained_on[:SCALE_TOKENS]])))
    gated.fold_input_scale_(1 / scale)
    _train_(gated, trained_on, scale, config, rates)
    gated.fold_input_scale_(scale)
    if "W_dec" in rates:
        _fold_norm_into_magnitudes_(gated)

    after = _measured(gated, held_back, config, "after the last step")
    return Refitted(gated, before.loss, after.loss, before.l0, after.l0, config.steps)


def _train_(sae: GatedSAE, activations: Acts, scale: float, config: RefitConfig, rates: Mapping[str, float]) -> None:
    """Minimise the squared error on `scale` times the activations; only the parameters in `rates` get a gradient."""
    trained = {name: sae.get_parameter(name).requires_grad_(True) for name in rates}
    optimiser = torch.optim.Adam([{"params": [trained[name]], "lr": rate} for name, rate in rates.items()], fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / config.steps)
    source = ActivationCache({"x": activations}, seed=config.seed)
    for step in range(config.steps):
        x = scale * source.next_batch(config.batch_size)["x"]
        loss = squared_errors(sae(x), x).mean()
        _check_finite(loss.item(), f"at step {step}", config)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    sae.requires_grad_(False)


@torch.no_grad()
def _fold_norm_into_magnitudes_(sae: GatedSAE) -> None:
    """Give every decoder row unit norm without changing any reconstruction or gate.

    `fold_decoder_norm_` would change W_enc and b_gate, and its rounding could open a gate that was closed.
    """
    norm = sae.W_dec.norm(dim=1)
    norm = torch.where(norm > 0, norm, torch.ones_like(norm))
    sae.W_dec.div_(norm[:, None])
    sae.r_mag.add_(norm.log())
    sae.b_mag.mul_(norm)


class _Measured(NamedTuple):
    loss: float
    l0: float


@torch.no_grad()
def _measured(sae: SAE, x: Acts, config: RefitConfig, when: str) -> _Measured:
    """Squared error and firing latents per token, on raw activations."""
    square_error, firing = 0.0, 0
    for part in x.split(config.batch_size):
        acts = sae.encode_sparse(part)
        square_error += squared_errors(sae.decode_sparse(acts), part).double().sum().item()
        firing += int(acts.l0.sum())
    _check_finite(square_error, when, config)
    return _Measured(square_error / len(x), firing / len(x))


def _check_unit_rows(sae: SAE) -> None:
    norm = sae.W_dec.norm(dim=1)
    # Saving keeps a zero row at exactly zero.
    wrong = (norm > 0) & ((norm - 1).abs() > UNIT)
    if wrong.any():
        example = norm[wrong][0].item()
        raise ValueError(
            f"{int(wrong.sum())} of {sae.d_sae} decoder rows have a norm other than 1, e.g. {example:.3g}; the "
            "learning rate assumes unit rows. Call sae.fold_decoder_norm_() first."
        )


def _check_finite(loss: float, when: str, config: RefitConfig) -> None:
    if not math.isfinite(loss):
        raise DivergenceError(
            f"The squared error of the refit is {loss} {when}. Look for NaN and infinity in the activations and in the "
            f"SAE; if there are none, the learning rate is too high: try a third of lr={config.lr:g}."
        )
