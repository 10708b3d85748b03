"""Adam without a first moment on selected rows, in plain PyTorch: the reference for every module of kernels."""

from jaxtyping import Float, Int
from torch import Tensor

from penstock.kernels.protocol import AdamStep, Dictionary


def squared_norms(
    gradient: Dictionary, latents: Int[Tensor, " some"], unit_rows: Dictionary | None
) -> Float[Tensor, " some"]:
    """Return the squared norms of these latents' gradient rows, without their part along `unit_rows` if given."""
    rows = gradient[latents]
    if unit_rows is not None:
        rows = _projected(rows, unit_rows[latents])
    return rows.square().sum(dim=1)


def adam_rows_(
    W: Dictionary,
    gradient: Dictionary,
    second_moment: Dictionary,
    latents: Int[Tensor, " some"],
    decay: Float[Tensor, " some"],
    step: AdamStep,
    *,
    unit: bool,
) -> None:
    """Update some rows in place: project, Adam, renormalise.

    Args:
        W: Parameter, latent-major.
        gradient: Gradient of the loss with respect to W; rows of other latents are not read.
        second_moment: Second moment of Adam as each latent's last update left it.
        latents: The rows to update, without repetition.
        decay: Factor on each row's second moment: beta2 to the power of the steps since its last update.
        step: Settings of this step.
        unit: Whether to remove the gradient's part along the row and to renormalise the row to 1.
    """
    rows, moments = W[latents], second_moment[latents]
    g = gradient[latents]
    g = step.scale * (_projected(g, rows) if unit else g)
    moments = decay[:, None] * moments + (1 - step.beta2) * g.square()
    rows = rows - step.lr * g / ((moments / step.correction).sqrt() + step.eps)
    if unit:
        rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    W[latents], second_moment[latents] = rows, moments


def _projected(gradient: Float[Tensor, "some d_in"], unit_rows: Float[Tensor, "some d_in"]) -> Tensor:
    return gradient - (gradient * unit_rows).sum(dim=1, keepdim=True) * unit_rows
