"""Gated SAEs with one part changed, and the decoder rules that change one: what the paper's ablations compare.

Source: Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, section 5.1 and figure 8; for the mixture the
authors' reply on penalties weighted by decoder norms (saes/decoder_rules.py). They exist to be compared with, not to be
used: `penstock ablations` trains them.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from penstock.kernels import encode_to_support, per_latent
from penstock.saes.architecture import Architecture
from penstock.saes.base import Loss, TrainableSAE, latent_major, penalty, random_directions, squared_errors
from penstock.saes.decoder_rules import DecoderRule
from penstock.saes.gated import GATED, GatedSAE, gated_loss
from penstock.saes.settings import NO_SETTINGS, Settings
from penstock.shapes import Acts
from penstock.sparse import SparseCode


class GatedWithoutRMagSAE(GatedSAE):
    """Gate and magnitude differ by their biases alone: r_mag is 0 and not trained."""

    arch: ClassVar[str] = "gated_no_r_mag"
    encoder_biases: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag")

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        settings: Settings = NO_SETTINGS,
        decoder_norm: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Same as `GatedSAE`."""
        super().__init__(d_in, d_sae, settings=settings, decoder_norm=decoder_norm, generator=generator)
        del self.r_mag
        self.register_buffer("r_mag", torch.zeros(d_sae, device="cpu"))


class GatedWithoutAuxiliarySAE(GatedSAE):
    """Nothing but the penalty (and, through the shared encoder, the reconstruction) trains the gate: it closes."""

    arch: ClassVar[str] = "gated_no_auxiliary"

    def loss(self, x: Acts, sparsity_coef: float, rule: DecoderRule) -> Loss:
        """Equation 8 without its last term."""
        acts, gate_acts = self._paths(x)
        errors = squared_errors(self.decode_sparse(acts), x)
        reconstruction, sparsity = errors.mean(), penalty(gate_acts, self.W_dec, rule)
        terms = {"reconstruction": reconstruction, "sparsity": sparsity}
        return Loss(reconstruction + sparsity_coef * sparsity, terms, acts.detach(), errors.detach())


class UntiedGatedSAE(TrainableSAE):
    """Gate and magnitude have encoders of their own: half as many parameters again.

    With W_gate = W_enc, in row vectors: pi_gate = (x - b_dec) W_enc + b_gate, and
    acts = 1[pi_gate > 0] * ReLU((x - b_dec) W_mag + b_mag). The product with W_mag is dense, forward and backward, and
    memory for it grows with batch * d_sae.
    """

    arch: ClassVar[str] = "gated_untied"
    scaled_by_decoder_norm: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag")
    encoder_matrices: ClassVar[tuple[str, ...]] = ("W_enc", "W_mag")
    encoder_biases: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag")

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        settings: Settings = NO_SETTINGS,
        decoder_norm: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Random decoder rows of norm `decoder_norm`, both encoders their transpose, biases zero."""
        super().__init__(settings)
        generator = generator or torch.Generator().manual_seed(0)
        W_dec = random_directions(d_sae, d_in, norm=decoder_norm, generator=generator)
        self.W_enc = nn.Parameter(latent_major(W_dec.T))
        self.W_mag = nn.Parameter(latent_major(W_dec.T))
        self.b_gate = nn.Parameter(torch.zeros(d_sae, device="cpu"))
        self.b_mag = nn.Parameter(torch.zeros(d_sae, device="cpu"))
        self.W_dec = nn.Parameter(W_dec)
        self.b_dec = nn.Parameter(torch.zeros(d_in, device="cpu"))

    def encode_batch(self, x: Acts) -> SparseCode:
        acts, _ = self._paths(x)
        return acts.nonzero()

    def loss(self, x: Acts, sparsity_coef: float, rule: DecoderRule) -> Loss:
        """As a Gated SAE's (equation 8)."""
        return gated_loss(self, x, *self._paths(x), sparsity_coef, rule)

    def _paths(self, x: Acts) -> tuple[SparseCode, SparseCode]:
        """The code, and ReLU(pi_gate), where the gate is open."""
        gate = encode_to_support(x, self.W_enc, self.b_dec, cut=-self.b_gate)
        support = gate.support
        gate_acts = gate.values + per_latent(self.b_gate, support)
        # Magnitudes are not rounded, as the values on the support of other architectures are not.
        with torch.autocast(x.device.type, enabled=False):
            products = ((x - self.b_dec) @ self.W_mag)[support.tokens, support.indices]
        acts = torch.relu(products + per_latent(self.b_mag, support))
        return SparseCode(support, acts), SparseCode(support, gate_acts)


class _InconsistentMixture(DecoderRule):
    """Both halves of the advice not taken: the one combination that `DecoderRule` refuses."""

    def __post_init__(self) -> None:
        """Nothing is checked: to show what the refused combination does is what it is for."""


def _ablation(sae: type[TrainableSAE], label: str, *, codes_decoded: int = 2) -> Architecture:
    """The facts of a changed Gated SAE: those of the whole but for its class and label."""
    assert GATED.training is not None
    training = replace(GATED.training, codes_decoded=codes_decoded, ablation_of=GATED.name)
    return Architecture(sae=sae, label=label, training=training)


GATED_NO_R_MAG = _ablation(GatedWithoutRMagSAE, "Gated without r_mag")
GATED_NO_AUXILIARY = _ablation(GatedWithoutAuxiliarySAE, "Gated without auxiliary task", codes_decoded=1)
GATED_UNTIED = _ablation(UntiedGatedSAE, "Gated with untied encoders")

ABLATION_RULES: dict[str, DecoderRule] = {
    "auxiliary_unfrozen": DecoderRule(decoder_norm="unit", auxiliary_decoder="trained"),
    "inconsistent_mixture": _InconsistentMixture(
        decoder_norm="free", auxiliary_decoder="frozen", penalty_norm="trained"
    ),
}
"""Rules that are compared, not used: unit rows that the auxiliary task trains, too; and penalty norms with a gradient
into a decoder that is frozen in the auxiliary task, which the authors warn against."""
