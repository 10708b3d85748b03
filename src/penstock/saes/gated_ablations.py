"""Ablations of the Gated SAE: variants with one part changed, and decoder rules that change the loss.

Source: Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, section 5.1 and figure 8. The inconsistent mixture
comes from the authors' reply on penalties weighted by decoder norms (see saes/shared/decoder_rules.py). These variants
are for comparison only; `penstock study ablations` trains them.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from penstock.kernels import encode_to_support, per_latent
from penstock.saes.gated import GATED, GatedSAE, gated_loss
from penstock.saes.shared.architecture import Architecture
from penstock.saes.shared.base import Loss, TrainableSAE, latent_major, penalty, random_directions, squared_errors
from penstock.saes.shared.decoder_rules import DecoderRule
from penstock.saes.shared.settings import NO_SETTINGS, Settings
from penstock.shapes import Acts
from penstock.sparse import SparseCode


class GatedWithoutRMagSAE(GatedSAE):
    """A Gated SAE whose gate and magnitude paths differ only in their biases: r_mag is fixed at 0."""

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
    """A Gated SAE trained without the auxiliary task.

    Only the penalty, and the reconstruction through the shared encoder, train the gate, so the gate closes.
    """

    arch: ClassVar[str] = "gated_no_auxiliary"

    def loss(self, x: Acts, sparsity_coef: float, rule: DecoderRule) -> Loss:
        """The loss of equation 8 without its last term, the auxiliary task."""
        acts, gate_acts = self._paths(x)
        errors = squared_errors(self.decode_sparse(acts), x)
        reconstruction, sparsity = errors.mean(), penalty(gate_acts, self.W_dec, rule)
        terms = {"reconstruction": reconstruction, "sparsity": sparsity}
        return Loss(reconstruction + sparsity_coef * sparsity, terms, acts.detach(), errors.detach())


class UntiedGatedSAE(TrainableSAE):
    """A Gated SAE with separate encoders for gate and magnitude, which has 1.5 times as many parameters.

    In row-vector form: pi_gate = (x - b_dec) W_enc + b_gate, and
    acts = 1[pi_gate > 0] * ReLU((x - b_dec) W_mag + b_mag). The product with W_mag is dense, forward and backward, so
    its memory grows with batch * d_sae.
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
        """Initialise with random decoder rows of norm `decoder_norm`, both encoders their transpose, zero biases."""
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
        """The loss of a Gated SAE (equation 8)."""
        return gated_loss(self, x, *self._paths(x), sparsity_coef, rule)

    def _paths(self, x: Acts) -> tuple[SparseCode, SparseCode]:
        """The code and ReLU(pi_gate), both on the support where the gate is open."""
        gate = encode_to_support(x, self.W_enc, self.b_dec, cut=-self.b_gate)
        support = gate.support
        gate_acts = gate.values + per_latent(self.b_gate, support)
        # Magnitudes stay in float32 under autocast, like the values on the support of the other architectures.
        with torch.autocast(x.device.type, enabled=False):
            products = ((x - self.b_dec) @ self.W_mag)[support.tokens, support.indices]
        acts = torch.relu(products + per_latent(self.b_mag, support))
        return SparseCode(support, acts), SparseCode(support, gate_acts)


class _InconsistentMixture(DecoderRule):
    """The combination that `DecoderRule` refuses: frozen in the auxiliary task, trained through the penalty."""

    def __post_init__(self) -> None:
        """Skip the checks, so that the study of ablations can show what this combination does."""


def _ablation(sae: type[TrainableSAE], label: str, *, codes_decoded: int = 2) -> Architecture:
    """The declaration of an ablation: the Gated SAE's with another class and label, and no look of its own."""
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
"""Decoder rules for comparison only.

`auxiliary_unfrozen` has unit rows and trains the decoder in the auxiliary task, too. `inconsistent_mixture` freezes the
decoder there but trains it through the penalty's norms, which the authors warn against.
"""
