"""The ReLU SAE: the baseline of the Gated SAE paper.

Source: Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, sections 2.1 and 2.2, after Bricken et
al. 2023. In row-vector form: acts = ReLU((x - b_dec) W_enc + b_enc), x_hat = acts W_dec + b_dec.
"""

from typing import ClassVar

import torch
from torch import nn

from penstock.kernels import encode_to_support, per_latent
from penstock.saes.gated import GatedSAE
from penstock.saes.shared.architecture import Architecture, LearningRate, Look, Training
from penstock.saes.shared.base import Loss, TrainableSAE, latent_major, penalty, random_directions, squared_errors
from penstock.saes.shared.decoder_rules import DecoderRule
from penstock.saes.shared.settings import NO_SETTINGS, Settings
from penstock.shapes import Acts
from penstock.sparse import SparseCode


class ReLUSAE(TrainableSAE):
    """A ReLU SAE: one affine map and a ReLU decide both which latents fire and how strongly."""

    arch: ClassVar[str] = "relu"
    scaled_by_decoder_norm: ClassVar[tuple[str, ...]] = ("b_enc",)
    encoder_biases: ClassVar[tuple[str, ...]] = ("b_enc",)

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        settings: Settings = NO_SETTINGS,
        decoder_norm: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Initialise with random decoder rows of norm `decoder_norm`, the encoder their transpose, zero biases."""
        super().__init__(settings)
        generator = generator or torch.Generator().manual_seed(0)
        W_dec = random_directions(d_sae, d_in, norm=decoder_norm, generator=generator)
        self.W_enc = nn.Parameter(latent_major(W_dec.T))
        self.b_enc = nn.Parameter(torch.zeros(d_sae, device="cpu"))
        self.W_dec = nn.Parameter(W_dec)
        self.b_dec = nn.Parameter(torch.zeros(d_in, device="cpu"))

    def encode_batch(self, x: Acts) -> SparseCode:
        shared = encode_to_support(x, self.W_enc, self.b_dec, cut=-self.b_enc)
        return SparseCode(shared.support, shared.values + per_latent(self.b_enc, shared.support))

    def loss(self, x: Acts, sparsity_coef: float, rule: DecoderRule) -> Loss:
        """Squared error plus the L1 norm of the code (section 2.2)."""
        acts = self.encode_batch(x)
        errors = squared_errors(self.decode_sparse(acts), x)
        reconstruction = errors.mean()
        sparsity = penalty(acts, self.W_dec, rule)
        terms = {"reconstruction": reconstruction, "sparsity": sparsity}
        return Loss(reconstruction + sparsity_coef * sparsity, terms, acts.detach(), errors.detach())

    @torch.no_grad()
    def to_gated(self) -> GatedSAE:
        """A Gated SAE that computes the same function; training can then move gate and magnitudes apart."""
        gated = GatedSAE(self.d_in, self.d_sae).to(self.W_enc).requires_grad_(False)
        gated.W_enc.copy_(self.W_enc)
        gated.b_gate.copy_(self.b_enc)
        gated.b_mag.copy_(self.b_enc)
        gated.W_dec.copy_(self.W_dec)
        gated.b_dec.copy_(self.b_dec)
        return gated


RELU = Architecture(
    sae=ReLUSAE,
    label="ReLU",
    look=Look(colour="#c44e0a", dark_colour="#f4894a", marker="square"),
    training=Training(learning_rate=LearningRate(base=7e-3), initial_coef=0.1, shrinks_magnitudes=True),
    as_gated=ReLUSAE.to_gated,
)
