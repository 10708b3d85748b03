"""Two implementations of Adam for SAEs: PyTorch's own, and one that updates only latents with a gradient.

Both clip the gradient's norm, keep decoder rows at unit norm if the recipe says so, and agree up to rounding.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from penstock.kernels.dispatch import kernels_for
from penstock.kernels.protocol import AdamStep
from penstock.saes import TrainableSAE
from penstock.training.settings.sae_config import ResolvedSAE

EPS = 1e-8
"""Adam's epsilon, which is added to the root of the second moment, as in PyTorch."""


class DenseAdam(torch.optim.Adam):
    """PyTorch's Adam, which allows any beta1 and updates every row in every step."""

    def __init__(
        self, sae: TrainableSAE, *, lr: float, beta1: float, beta2: float, max_norm: float, unit_rows: bool
    ) -> None:
        """
        Args:
            sae: The SAE to train.
            lr: Learning rate.
            beta1: Decay of the first moment.
            beta2: Decay of the second moment.
            max_norm: Largest norm of the gradient over all parameters, 0 for no limit.
            unit_rows: Whether to keep decoder rows at unit norm, by projecting their gradient before the step and
                renormalising them after it.
        """
        super().__init__(sae.parameters(), lr=lr, betas=(beta1, beta2), eps=EPS, fused=True)
        self.sae = sae
        self.max_norm = max_norm
        self.unit_rows = unit_rows

    @torch.no_grad()
    def update(self, latents: Int[Tensor, " some"]) -> None:
        """Take one step. `latents`, those with a gradient, are not used: all rows are updated."""
        if self.unit_rows:
            project_gradient_(self.sae)
        if self.max_norm:
            torch.nn.utils.clip_grad_norm_(self.sae.parameters(), self.max_norm)
        self.step()
        if self.unit_rows:
            unit_norm_rows_(self.sae)


class LatentAdam(torch.optim.Optimizer):
    """Adam with beta1 = 0, which updates only the rows of latents with a gradient.

    Without a first moment, a latent without a gradient does not move, and its second moment shrinks by beta2 per step.
    This decay is applied, as a power of beta2, when the latent next has a gradient.
    """

    def __init__(self, sae: TrainableSAE, *, lr: float, beta2: float, max_norm: float, unit_rows: bool) -> None:
        """For the arguments see DenseAdam. All matrices must be latent-major in memory, as in every SAE."""
        for name in sae.encoder_matrices:
            contiguous = sae.get_parameter(name).T.is_contiguous()
            assert contiguous, f"{name} is not latent-major: see penstock.saes.latent_major"
        super().__init__(sae.parameters(), {"lr": lr, "eps": EPS})
        self.sae = sae
        self.beta2 = beta2
        self.max_norm = max_norm
        self.unit_rows = unit_rows
        for parameter in sae.parameters():
            self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        # The step counter of the whole optimiser is stored with W_dec, because state is stored by parameter.
        self.state[sae.W_dec]["step"] = torch.zeros((), dtype=torch.int64, device="cpu")
        self.state[sae.W_dec]["updated_at"] = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_dec.device)

    @torch.no_grad()
    def update(self, latents: Int[Tensor, " some"]) -> None:
        """Take one step. `latents` are those with a gradient, without repetition; only their rows change."""
        shared = self.state[self.sae.W_dec]
        shared["step"] += 1
        number = int(shared["step"])
        group = self.param_groups[0]
        step = AdamStep(
            lr=group["lr"],
            beta2=self.beta2,
            correction=1 - self.beta2**number,
            eps=group["eps"],
            scale=self._clipping(latents),
        )
        since = number - shared["updated_at"][latents]
        decay = torch.pow(self.beta2, since.double()).to(self.sae.W_dec.dtype)
        shared["updated_at"][latents] = number
        kernels = kernels_for(self.sae.W_dec)
        for matrix in self._matrices():
            kernels.adam_rows_(
                matrix.rows, matrix.gradient, matrix.second_moment, latents, decay, step, unit=matrix.unit
            )
        for vector, gradient in self._vectors():
            _adam_(vector, gradient, self.state[vector]["exp_avg_sq"], step)

    def _clipping(self, latents: Int[Tensor, " some"]) -> float:
        """The factor that clips the gradient's norm to `max_norm`."""
        if not self.max_norm:
            return 1.0
        kernels = kernels_for(self.sae.W_dec)
        squares = [
            kernels.squared_norms(gradient, latents, rows if unit else None).double().sum()
            for rows, gradient, _, unit in self._matrices()
        ]
        squares += [gradient.double().square().sum() for _, gradient in self._vectors()]
        return min(1.0, self.max_norm / (float(torch.stack(squares).sum().sqrt()) + 1e-6))

    def _matrices(self) -> list["_Matrix"]:
        encoders = [self.sae.get_parameter(name) for name in self.sae.encoder_matrices]
        found = [
            _Matrix(matrix.T, matrix.grad.T, self.state[matrix]["exp_avg_sq"].T, False)
            for matrix in encoders
            if matrix.grad is not None
        ]
        W_dec = self.sae.W_dec
        if W_dec.grad is not None:
            found.append(_Matrix(W_dec, W_dec.grad, self.state[W_dec]["exp_avg_sq"], self.unit_rows))
        return found

    def _vectors(self) -> list[tuple[Tensor, Tensor]]:
        return [
            (vector, vector.grad) for vector in self.sae.parameters() if vector.ndim == 1 and vector.grad is not None
        ]


def make_optimiser(config: ResolvedSAE, sae: TrainableSAE, *, beta2: float, unit_rows: bool) -> DenseAdam | LatentAdam:
    """The optimiser that an SAE's settings name."""
    if config.optimiser == "latent_adam":
        return LatentAdam(sae, lr=config.lr, beta2=beta2, max_norm=config.grad_clip, unit_rows=unit_rows)
    return DenseAdam(sae, lr=config.lr, beta1=config.beta1, beta2=beta2, max_norm=config.grad_clip, unit_rows=unit_rows)


class _Matrix(NamedTuple):
    """A weight matrix with one row per latent, its gradient, and its second moment."""

    rows: Tensor
    gradient: Tensor
    second_moment: Tensor
    unit: bool


def _adam_(parameter: Tensor, gradient: Tensor, second_moment: Tensor, step: AdamStep) -> None:
    gradient = step.scale * gradient
    second_moment.mul_(step.beta2).addcmul_(gradient, gradient, value=1 - step.beta2)
    parameter.addcdiv_(gradient, (second_moment / step.correction).sqrt() + step.eps, value=-step.lr)


@torch.no_grad()
def project_gradient_(sae: TrainableSAE) -> None:
    """Remove the component of W_dec's gradient that is parallel to its unit rows, in place."""
    gradient = sae.W_dec.grad
    assert gradient is not None
    gradient -= (gradient * sae.W_dec).sum(dim=1, keepdim=True) * sae.W_dec


@torch.no_grad()
def unit_norm_rows_(sae: TrainableSAE) -> None:
    """Scale every decoder row to unit norm, in place."""
    sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)
