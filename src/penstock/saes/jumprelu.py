"""The JumpReLU SAE: a latent has the value of its pre-activation if that exceeds its threshold, otherwise zero.

acts = p * 1[p > threshold], where p = (x - b_dec) W_enc + b_enc and threshold >= 0.

Source: Rajamanoharan et al. 2024, "Jumping Ahead", https://arxiv.org/abs/2407.14435. Gated SAEs are converted into this
form for inference (`GatedSAE.to_jumprelu`).
"""

from typing import ClassVar

import torch
from torch import nn

from penstock.kernels import encode_to_support, per_latent
from penstock.saes.shared.architecture import Architecture, Look
from penstock.saes.shared.base import SAE
from penstock.saes.shared.settings import NO_SETTINGS, Settings
from penstock.shapes import Acts
from penstock.sparse import SparseCode


class JumpReLUSAE(SAE):
    """A JumpReLU SAE, with one threshold per latent."""

    arch: ClassVar[str] = "jumprelu"
    scaled_by_decoder_norm: ClassVar[tuple[str, ...]] = ("b_enc", "threshold")

    def __init__(self, d_in: int, d_sae: int, *, settings: Settings = NO_SETTINGS) -> None:
        """Set all parameters to zero, to be overwritten by loading or converting an SAE."""
        super().__init__(settings)
        self.W_enc = nn.Parameter(torch.zeros(d_sae, d_in, device="cpu").T)
        self.b_enc = nn.Parameter(torch.zeros(d_sae, device="cpu"))
        self.threshold = nn.Parameter(torch.zeros(d_sae, device="cpu"))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in, device="cpu"))
        self.b_dec = nn.Parameter(torch.zeros(d_in, device="cpu"))

    def encode_batch(self, x: Acts) -> SparseCode:
        shared = encode_to_support(x, self.W_enc, self.b_dec, cut=self.threshold - self.b_enc)
        return SparseCode(shared.support, shared.values + per_latent(self.b_enc, shared.support)).nonzero()


JUMPRELU = Architecture(
    sae=JumpReLUSAE,
    label="JumpReLU",
    look=Look(colour="#007f5f", dark_colour="#3fc99f", marker="triangle"),
)
