"""One whole training step of each library, as its own users run it, on a given batch.

* penstock-*: `SAETrainer.step`, recipe `paper_clipped`: loss, backward, clipping, projection, Adam with beta1 0,
  renormalisation, counting of dead latents.
* dl-*: `trainer.update`, what dictionary_learning's `trainSAE` calls: Adam (beta1 0 for Gated) on a unit-norm decoder.
* saelens-*: `SAETrainer.step`, what SAELens' `fit` calls: clipping at 1.0, Adam with beta1 0.9, firing statistics.

Every SAE has its gate's (encoder's) bias at the quantile of its products that gives the wanted L0, and a learning rate
so small that it stays there. Libraries are imported when first asked for.
"""

# The peers live in an environment of their own, not in the one that type-checks this project.
# pyright: reportMissingImports=false

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from common import Setting, Step, threshold
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

LR = 1e-7
COEF = 0.1
STEPS = 10**6
"""Length of the run that schedules are made for; no schedule is in its warm-up or decay."""

ROWS = 256
"""Tokens encoded at a time to count what fires."""


@dataclass
class Arm:
    """An SAE with its optimiser, ready to step."""

    step: Callable[[Tensor], object]
    encode: Callable[[Tensor], Tensor]
    """The code of some rows, dense."""
    W_enc: Tensor
    """Encoder [d_in, d_sae]."""
    bias: Tensor
    """Of the gate, or of the encoder."""
    parameters: list[Tensor]
    optimiser: torch.optim.Optimizer
    compile_: Callable[[], None] | None = None
    """Put torch.compile where the library's users put it; None for penstock, whose kernels are compiled anyway."""

    @torch.no_grad()
    def l0(self, x: Tensor) -> float:
        """Mean number of latents that fire."""
        return sum(int((self.encode(rows) > 0).sum()) for rows in x.split(ROWS)) / len(x)

    def state_bytes(self) -> int:
        """Size of the parameters and of whatever the optimiser keeps for them."""
        kept = [value for state in self.optimiser.state.values() for value in state.values()]
        tensors = [*self.parameters, *(value for value in kept if isinstance(value, Tensor))]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def penstock(arch: str, setting: Setting, device: str, *, autocast: bool) -> Arm:
    """penstock's trainer with its default recipe."""
    from penstock.training.schedules import Schedule
    from penstock.training.settings import SAEConfig
    from penstock.training.settings.defaults import PlannedModel
    from penstock.training.settings.sae_config import resolve_sae
    from penstock.training.trainer import SAETrainer

    config = SAEConfig(
        arch=arch,
        site="benchmark",
        d_sae=setting.d_sae,
        sparsity_coef=COEF,
        lr=LR,
    )
    trainer = SAETrainer(
        resolve_sae(config, PlannedModel("", 1, {}), num_steps=STEPS, warmup_share=0.0),
        Schedule(num_steps=STEPS, warmup=0, decay=0, sparsity_warmup=0),
        d_in=setting.d_in,
        beta2=0.999,
        encoder_precision="bfloat16" if autocast else "float32",
        dead_window=10**7,
        encoder_scale=0.2,
        device=device,
    )
    sae: Any = trainer.sae

    bias = sae.b_gate if arch == "gated" else sae.b_enc
    step = partial(trainer.step, step=0)
    return Arm(step, sae.encode, sae.W_enc, bias, list(sae.parameters()), trainer.optimiser)


def dictionary_learning(arch: str, setting: Setting, device: str, *, autocast: bool) -> Arm:
    """dictionary_learning's trainer; its `trainSAE` puts autocast around the whole update."""
    # nnsight 0.3.7, which it imports, replaces this by one that torch 2.13's compiler cannot call.
    make_fake_tensor = FakeTensor.__new__
    from dictionary_learning.trainers import GatedSAETrainer, StandardTrainer

    FakeTensor.__new__ = make_fake_tensor
    trainer = {"gated": GatedSAETrainer, "relu": StandardTrainer}[arch](
        steps=STEPS,
        activation_dim=setting.d_in,
        dict_size=setting.d_sae,
        layer=0,  # layer and lm_name are required and only recorded
        lm_name="benchmark",
        lr=LR,
        l1_penalty=COEF,
        warmup_steps=0,
        sparsity_warmup_steps=None,
        seed=0,
        device=device,
    )

    def step(x: Tensor) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            trainer.update(0, x)

    def compile_() -> None:
        trainer.loss = torch.compile(trainer.loss)

    sae = trainer.ae
    bias = sae.gate_bias if arch == "gated" else sae.encoder.bias
    return Arm(step, sae.encode, sae.encoder.weight.T, bias, list(sae.parameters()), trainer.optimizer, compile_)


def saelens(arch: str, setting: Setting, device: str, *, autocast: bool) -> Arm:
    """SAELens' trainer, with the widths and the device as the only settings."""
    from sae_lens import (
        GatedTrainingSAE,
        GatedTrainingSAEConfig,
        SAETrainer,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
    )
    from sae_lens.config import SAETrainerConfig

    sae_class, config_class = {
        "gated": (GatedTrainingSAE, GatedTrainingSAEConfig),
        "relu": (StandardTrainingSAE, StandardTrainingSAEConfig),
    }[arch]
    torch.manual_seed(0)
    sae = sae_class(config_class(d_in=setting.d_in, d_sae=setting.d_sae, l1_coefficient=COEF, device=device))
    config = SAETrainerConfig(
        total_training_samples=STEPS * setting.batch,
        train_batch_size_samples=setting.batch,
        lr=LR,
        lr_end=LR,  # has to be set; the constant schedule used here does not read it
        device=device,
        autocast=autocast,
    )
    trainer = SAETrainer(config, sae, iter(()))

    def compile_() -> None:  # what its `compile_sae` does
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)

    bias = sae.b_gate if arch == "gated" else sae.b_enc
    return Arm(trainer.step, sae.encode, sae.W_enc, bias, list(sae.parameters()), trainer.optimizer, compile_)


LIBRARIES = {"penstock": penstock, "dl": dictionary_learning, "saelens": saelens}
ARMS: dict[str, Callable[..., Arm]] = {
    f"{library}-{arch}": partial(make, arch) for library, make in LIBRARIES.items() for arch in ("gated", "relu")
}


def make_arm(name: str, setting: Setting, x: Tensor, *, autocast: bool = False) -> Arm:
    """An arm whose latents fire about setting.l0 at a time on x."""
    arm = ARMS[name](setting, x.device.type, autocast=autocast)
    with torch.no_grad():
        arm.bias.fill_(-threshold(x, arm.W_enc, setting.l0))
    return arm


def encoder_products(setting: Setting, x: Tensor) -> dict[str, Step]:
    """The product x @ W_enc alone, into memory that is there: by torch, and by numpy, whose BLAS penstock uses."""
    W_enc = torch.randn(setting.d_sae, setting.d_in).T  # in penstock's and dictionary_learning's layout
    out = torch.zeros(setting.batch, setting.d_sae)
    arrays = x.numpy(), W_enc.numpy(), out.numpy()
    return {
        "product-torch": lambda: torch.mm(x, W_enc, out=out),
        "product-numpy": lambda: np.matmul(arrays[0], arrays[1], out=arrays[2]),
    }
