"""Resampling of dead latents: they are reset to the directions of inputs that the SAE reconstructs badly.

Source: Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron resampling", which the Gated SAE paper mostly
follows (appendix D). There is one deviation: the new direction is x - b_dec, as the encoder sees the input, instead of
x. With x, every new latent would point along the mean.
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
    """Draw `count` inputs with probability proportional to their squared loss.

    Args:
        inputs: Candidates [batch, d_in], scaled as in training.
        errors_of: Returns the loss of each input.
        count: The number of inputs to draw. They are drawn with replacement only if there are fewer than `count`.
        generator: Source of randomness, on the CPU.
        chunk: Number of inputs that are encoded at once.
    """
    losses = torch.cat([errors_of(part) for part in inputs.split(chunk)]).double().cpu()
    weights = losses.square()
    # If the SAE has diverged, its losses are not usable as weights. Its next step raises.
    if not 0 < weights.sum() < math.inf:
        weights = torch.ones_like(weights)
    # Without replacement, candidates of weight 0 would be drawn once the others run out.
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
    """Give each dead latent the direction of one of the chosen inputs, and reset its optimiser state.

    The decoder row becomes the input's direction with the mean norm of the living rows. The encoder vector becomes the
    same direction with `encoder_scale` times the mean norm of the living ones. Encoder biases and r_mag become 0. If no
    latent is alive, the means are taken over all.

    Args:
        sae: The SAE, which is changed in place.
        dead: The latents to replace [d_sae].
        chosen: One input for each dead latent [dead, d_in].
        optimiser: The optimiser, whose state is reset for the dead latents.
        encoder_scale: The relative norm of new encoder vectors; 0.2 in Bricken et al.
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
    """Counts the tokens since each latent last fired."""

    def __init__(self, d_sae: int, device: torch.device) -> None:
        self.tokens_since = torch.zeros(d_sae, dtype=torch.int64, device=device)

    def update(self, fired: Bool[Tensor, " d_sae"], tokens: int) -> None:
        """Count a batch of `tokens` tokens. `fired` marks the latents that fired on at least one of them."""
        self.tokens_since = torch.where(fired, 0, self.tokens_since + tokens)

    def dead(self, window_tokens: int) -> Bool[Tensor, " d_sae"]:
        """The latents that have not fired on the last `window_tokens` tokens."""
        return self.tokens_since >= window_tokens
