"""Gated SAE: a gate decides which latents fire, a separate path says how strongly.

Source: Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders",
https://arxiv.org/abs/2404.16014, section 3.2. In row-vector form, with the encoder product
s = (x - b_dec) W_enc taken once and shared by both paths (their equation 7):

    pi_gate = s + b_gate                   acts  = 1[pi_gate > 0] * ReLU(exp(r_mag) * s + b_mag)
    x_hat   = acts W_dec + b_dec           x_aux = ReLU(pi_gate) sg(W_dec) + sg(b_dec)
    loss    = |x - x_hat|^2 + lambda * |ReLU(pi_gate)|_1 + |x - x_aux|^2              (their equation 8)

sg is a stopped gradient; the recipe `norm_weighted` leaves it out and weighs the penalty by row norms.
"""

from typing import ClassVar

import torch
from torch import nn

from penstock.saes.base import Loss, TrainableSAE, latent_weights, random_directions
from penstock.saes.jumprelu import JumpReLUSAE
from penstock.saes.recipes import Recipe
from penstock.shapes import Acts, Latents


class GatedSAE(TrainableSAE):
    """Gate and magnitude share W_enc up to a scale exp(r_mag) per latent; the penalty acts on the gate."""

    arch: ClassVar[str] = "gated"
    scaled_by_decoder_norm: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag")
    encoder_biases: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag", "r_mag")

    def __init__(
        self, d_in: int, d_sae: int, *, decoder_norm: float = 1.0, generator: torch.Generator | None = None
    ) -> None:
        """Random decoder rows of norm `decoder_norm`, the encoder their transpose, all else zero."""
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        W_dec = random_directions(d_sae, d_in, norm=decoder_norm, generator=generator)
        # A copy: with a width of 1 the transpose is contiguous as it is, and would share memory with W_dec.
        self.W_enc = nn.Parameter(W_dec.T.clone(memory_format=torch.contiguous_format))
        self.b_gate = nn.Parameter(torch.zeros(d_sae))
        self.b_mag = nn.Parameter(torch.zeros(d_sae))
        self.r_mag = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(W_dec)
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def encode(self, x: Acts) -> Latents:
        acts, _ = self._paths(x)
        return acts

    def loss(self, x: Acts, sparsity_coef: float, recipe: Recipe) -> Loss:
        """Reconstruction, penalty on the gate, and the auxiliary task that trains it (equation 8)."""
        acts, gate_acts = self._paths(x)
        frozen = recipe.auxiliary_decoder == "frozen"
        W_aux = self.W_dec.detach() if frozen else self.W_dec
        b_aux = self.b_dec.detach() if frozen else self.b_dec

        errors = (self.decode(acts) - x).square().sum(dim=1)
        reconstruction = errors.mean()
        auxiliary = (gate_acts @ W_aux + b_aux - x).square().sum(dim=1).mean()
        sparsity = (gate_acts * latent_weights(self.W_dec, recipe)).sum(dim=1).mean()
        terms = {"reconstruction": reconstruction, "sparsity": sparsity, "auxiliary": auxiliary}
        total = reconstruction + sparsity_coef * sparsity + auxiliary
        return Loss(total, terms, acts.detach(), errors.detach())

    @torch.no_grad()
    def to_jumprelu(self) -> JumpReLUSAE:
        """The same function as a JumpReLU SAE (section 3.2.1 and appendix E).

        The threshold is max(b_mag - exp(r_mag) b_gate, 0): where the plain form would be negative, the gate
        can be open while the magnitude is still zero.
        """
        scale = self.r_mag.exp()
        sae = JumpReLUSAE(self.d_in, self.d_sae).to(self.W_enc)
        sae.W_enc.copy_(self.W_enc * scale)
        sae.b_enc.copy_(self.b_mag)
        sae.threshold.copy_((self.b_mag - scale * self.b_gate).clamp(min=0))
        sae.W_dec.copy_(self.W_dec)
        sae.b_dec.copy_(self.b_dec)
        return sae

    def _paths(self, x: Acts) -> tuple[Latents, Latents]:
        """The code, and ReLU(pi_gate) which the penalty and the auxiliary task act on."""
        # (x - b_dec) W_enc, written so that the gradient of b_dec costs no product of the batch's size.
        shared = x @ self.W_enc - self.b_dec @ self.W_enc
        gate_acts = torch.relu(shared + self.b_gate)
        magnitude = torch.relu(shared * self.r_mag.exp() + self.b_mag)
        return (gate_acts > 0) * magnitude, gate_acts
