"""Resampling of dead latents: they start again in directions that the SAE reconstructs badly.

Source: Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron resampling", which the Gated SAE
paper mostly follows (appendix D). One deviation: the new direction is the input as the encoder sees it,
x - b_dec, where Bricken writes the input; with the raw one every new latent would point along the mean.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from penstock.saes import TrainableSAE
from penstock.shapes import Acts


@torch.no_grad()
def choose_inputs(
    inputs: Acts,
    errors_of: Callable[[Acts], Float[Tensor, " batch"]],
    count: int,
    generator: torch.Generator,
    chunk: int = 4096,
) -> Float[Tensor, "chosen d_in"]:
    """Pick `count` inputs with probability proportional to their squared loss.

    Args:
        inputs: Candidates [batch, d_in], as the SAE is trained on them.
        errors_of: The loss of each input.
        count: How many to pick; inputs are picked twice only when there are fewer than `count`.
        generator: Source of the randomness, on the CPU.
        chunk: Inputs encoded at a time.
    """
    losses = torch.cat([errors_of(part) for part in inputs.split(chunk)]).double().cpu()
    weights = losses.square()
    # Losses of an SAE that has diverged are no weights; its next step says so.
    if not 0 < weights.sum() < math.inf:
        weights = torch.ones_like(weights)
    # A candidate of weight 0 can only be drawn if replacement is allowed to stop at the others.
    replacement = count > int((weights > 0).sum())
    picked = torch.multinomial(weights, count, replacement=replacement, generator=generator)
    return inputs[picked.to(inputs.device)]


@torch.no_grad()
def resample_(
    sae: TrainableSAE,
    dead: Bool[Tensor, " d_sae"],
    chosen: Acts,
    optimiser: torch.optim.Optimizer,
    *,
    encoder_scale: float,
) -> None:
    """Give each dead latent one of the chosen inputs as its direction, and forget its optimiser state.

    The decoder row becomes the input's direction with the mean norm of the living rows (1 when rows are
    unit), the encoder vector the same direction with `encoder_scale` times the mean norm of the living
    ones; b_enc, or b_gate, b_mag and r_mag, become 0. If no latent is alive, the means run over all.

    Args:
        sae: Changed in place.
        dead: The latents to replace.
        chosen: One input for each dead latent [dead, d_in].
        optimiser: Its state is reset for those latents, parameter by parameter.
        encoder_scale: 0.2 in Bricken et al.
    """
    if not dead.any():
        return
    alive = ~dead if not dead.all() else dead
    centred = chosen - sae.b_dec
    directions = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-12)
    sae.W_dec[dead] = directions * sae.W_dec[alive].norm(dim=1).mean()
    for name in sae.encoder_matrices:
        matrix = getattr(sae, name)
        matrix[:, dead] = directions.T * (encoder_scale * matrix[:, alive].norm(dim=0).mean())
    for name in sae.encoder_biases:
        getattr(sae, name)[dead] = 0.0
    for name, parameter in sae.named_parameters():
        for value in optimiser.state[parameter].values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                if name in sae.encoder_matrices:
                    value[:, dead] = 0.0
                elif name != "b_dec":
                    value[dead] = 0.0


class DeadCounter:
    """Tokens since each latent last fired."""

    def __init__(self, d_sae: int, device: torch.device) -> None:
        self.tokens_since = torch.zeros(d_sae, dtype=torch.int64, device=device)

    def update(self, fired: Bool[Tensor, " d_sae"], tokens: int) -> None:
        """Count a batch of so many tokens, on any of which these latents fired."""
        self.tokens_since = torch.where(fired, 0, self.tokens_since + tokens)

    def dead(self, window_tokens: int) -> Bool[Tensor, " d_sae"]:
        """The latents that have not fired on the last `window_tokens` tokens."""
        return self.tokens_since >= window_tokens
