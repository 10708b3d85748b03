"""The Gated SAE: a gate decides which latents fire, and a separate path computes how strongly.

Source: Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders",
https://arxiv.org/abs/2404.16014, section 3.2. In row-vector form, where both paths share the encoder product
s = (x - b_dec) W_enc (their equation 7):

    pi_gate = s + b_gate                   acts  = 1[pi_gate > 0] * ReLU(exp(r_mag) * s + b_mag)
    x_hat   = acts W_dec + b_dec           x_aux = ReLU(pi_gate) sg(W_dec) + sg(b_dec)
    loss    = |x - x_hat|^2 + lambda * |ReLU(pi_gate)|_1 + |x - x_aux|^2              (their equation 8)

sg stops the gradient; the rule `norm_weighted` leaves it out and weights the penalty by the norms of decoder rows.
Both codes and all their gradients are zero where pi_gate <= 0. So everything except s is computed only for the pairs of
token and latent whose gate is open.
"""

import copy
from typing import ClassVar

import torch
from torch import nn

from penstock.kernels import decode_from_support, encode_to_support, per_latent
from penstock.saes.jumprelu import JumpReLUSAE
from penstock.saes.shared.architecture import Architecture, LearningRate, Look, Training
from penstock.saes.shared.base import Loss, TrainableSAE, latent_major, penalty, random_directions, squared_errors
from penstock.saes.shared.decoder_rules import DecoderRule
from penstock.saes.shared.settings import NO_SETTINGS, Settings
from penstock.shapes import Acts
from penstock.sparse import SparseCode


class GatedSAE(TrainableSAE):
    """A Gated SAE. Gate and magnitude share W_enc up to a scale exp(r_mag) per latent; the penalty acts on the gate."""

    arch: ClassVar[str] = "gated"
    scaled_by_decoder_norm: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag")
    encoder_biases: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag", "r_mag")

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        settings: Settings = NO_SETTINGS,
        decoder_norm: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Initialise with random decoder rows of norm `decoder_norm`, the encoder their transpose, the rest zero."""
        super().__init__(settings)
        generator = generator or torch.Generator().manual_seed(0)
        W_dec = random_directions(d_sae, d_in, norm=decoder_norm, generator=generator)
        self.W_enc = nn.Parameter(latent_major(W_dec.T))
        self.b_gate = nn.Parameter(torch.zeros(d_sae, device="cpu"))
        self.b_mag = nn.Parameter(torch.zeros(d_sae, device="cpu"))
        self.r_mag = nn.Parameter(torch.zeros(d_sae, device="cpu"))
        self.W_dec = nn.Parameter(W_dec)
        self.b_dec = nn.Parameter(torch.zeros(d_in, device="cpu"))

    def encode_batch(self, x: Acts) -> SparseCode:
        acts, _ = self._paths(x)
        return acts.nonzero()

    def loss(self, x: Acts, sparsity_coef: float, rule: DecoderRule) -> Loss:
        """Reconstruction error, penalty on the gate, and the auxiliary task that trains the gate (equation 8)."""
        return gated_loss(self, x, *self._paths(x), sparsity_coef, rule)

    @torch.no_grad()
    def to_jumprelu(self) -> JumpReLUSAE:
        """A JumpReLU SAE that computes the same function (section 3.2.1 and appendix E).

        The threshold is max(b_mag - exp(r_mag) b_gate, 0). Without the max it could be negative, and latents whose gate
        is open would get negative values instead of zero.
        """
        scale = self.r_mag.exp()
        sae = JumpReLUSAE(self.d_in, self.d_sae).to(self.W_enc)
        sae.W_enc.copy_(self.W_enc * scale)
        sae.b_enc.copy_(self.b_mag)
        sae.threshold.copy_((self.b_mag - scale * self.b_gate).clamp(min=0))
        sae.W_dec.copy_(self.W_dec)
        sae.b_dec.copy_(self.b_dec)
        return sae

    def _paths(self, x: Acts) -> tuple[SparseCode, SparseCode]:
        """The code, and ReLU(pi_gate) for the penalty and the auxiliary task, both on the support of the open gates."""
        shared = encode_to_support(x, self.W_enc, self.b_dec, cut=-self.b_gate)
        support = shared.support
        gate_acts = shared.values + per_latent(self.b_gate, support)
        acts = torch.relu(shared.values * per_latent(self.r_mag.exp(), support) + per_latent(self.b_mag, support))
        return SparseCode(support, acts), SparseCode(support, gate_acts)


def gated_loss(
    sae: TrainableSAE, x: Acts, acts: SparseCode, gate_acts: SparseCode, sparsity_coef: float, rule: DecoderRule
) -> Loss:
    """The loss of equation 8, from the code `acts` and ReLU(pi_gate) `gate_acts` on the same support."""
    x_hat, x_aux = decode_from_support(
        acts.support,
        [acts.values, gate_acts.values],
        sae.W_dec,
        sae.b_dec,
        trained=[True, rule.auxiliary_decoder == "trained"],
    )
    errors = squared_errors(x_hat, x)
    reconstruction = errors.mean()
    auxiliary = squared_errors(x_aux, x).mean()
    sparsity = penalty(gate_acts, sae.W_dec, rule)
    terms = {"reconstruction": reconstruction, "sparsity": sparsity, "auxiliary": auxiliary}
    total = reconstruction + sparsity_coef * sparsity + auxiliary
    return Loss(total, terms, acts.detach(), errors.detach())


GATED = Architecture(
    sae=GatedSAE,
    label="Gated",
    look=Look(colour="#0b6bb3", dark_colour="#62b5f5", marker="circle"),
    training=Training(
        learning_rate=LearningRate(base=4.5e-3),
        aims=("target_l0", "sparsity_coef", "paper_lambda"),
        initial_coef=0.3,
        # The code, and ReLU(pi_gate) for the auxiliary task.
        codes_decoded=2,
    ),
    inference_form=GatedSAE.to_jumprelu,
    as_gated=copy.deepcopy,
)
