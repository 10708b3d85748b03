"""ReLU SAE: the baseline of the Gated SAE paper.

Source: Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, sections 2.1 and 2.2, after Bricken et
al. 2023. In row-vector form: acts = ReLU((x - b_dec) W_enc + b_enc), x_hat = acts W_dec + b_dec.
"""

from typing import ClassVar

import torch
from torch import nn

from penstock.saes.base import Loss, TrainableSAE, latent_weights, random_directions
from penstock.saes.recipes import Recipe
from penstock.shapes import Acts, Latents


class ReLUSAE(TrainableSAE):
    """One affine map and a ReLU decide both which latents fire and how strongly."""

    arch: ClassVar[str] = "relu"
    scaled_by_decoder_norm: ClassVar[tuple[str, ...]] = ("b_enc",)
    encoder_biases: ClassVar[tuple[str, ...]] = ("b_enc",)

    def __init__(
        self, d_in: int, d_sae: int, *, decoder_norm: float = 1.0, generator: torch.Generator | None = None
    ) -> None:
        """Random decoder rows of norm `decoder_norm`, the encoder their transpose, biases zero."""
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        W_dec = random_directions(d_sae, d_in, norm=decoder_norm, generator=generator)
        # A copy: with a width of 1 the transpose is contiguous as it is, and would share memory with W_dec.
        self.W_enc = nn.Parameter(W_dec.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(W_dec)
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def encode(self, x: Acts) -> Latents:
        # (x - b_dec) W_enc, written so that the gradient of b_dec costs no product of the batch's size.
        return torch.relu(x @ self.W_enc + (self.b_enc - self.b_dec @ self.W_enc))

    def loss(self, x: Acts, sparsity_coef: float, recipe: Recipe) -> Loss:
        """Squared error plus the L1 norm of the code (section 2.2)."""
        acts = self.encode(x)
        errors = (self.decode(acts) - x).square().sum(dim=1)
        reconstruction = errors.mean()
        sparsity = (acts * latent_weights(self.W_dec, recipe)).sum(dim=1).mean()
        terms = {"reconstruction": reconstruction, "sparsity": sparsity}
        return Loss(reconstruction + sparsity_coef * sparsity, terms, acts.detach(), errors.detach())
