"""Decoder rules: the norms of decoder rows, their weight in the penalty, and where the decoder gets no gradient.

Sources: `unit` is Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, section 3.2. The two `norm_weighted`
forms follow the authors' reply on how to combine Gated SAEs with a penalty weighted by decoder norms (Anthropic,
Circuits Updates April 2024): unfreeze the decoder in the auxiliary task, or stop the gradient of the norms in the
penalty, but not one without the other. Optimiser settings belong to recipes (see training/settings/recipes.py).
"""

from dataclasses import dataclass
from typing import Literal

GradientFlow = Literal["trained", "frozen"]


@dataclass(frozen=True, kw_only=True)
class DecoderRule:
    """How an SAE's loss treats its decoder. Define your own rule, or use one of DECODER_RULES."""

    decoder_norm: Literal["unit", "free"]
    """`unit`: decoder rows are renormalised to 1 after every step, and the penalty is a plain L1 norm.
    `free`: rows may have any norm, and the penalty weights each latent by the norm of its row."""
    auxiliary_decoder: GradientFlow
    """Whether the auxiliary task of a Gated SAE trains W_dec and b_dec."""
    penalty_norm: GradientFlow | None = None
    """Whether the norms in the penalty pass a gradient to W_dec; None if decoder_norm is `unit`."""

    def __post_init__(self) -> None:
        if self.decoder_norm == "unit" and self.penalty_norm is not None:
            raise ValueError(
                f"penalty_norm={self.penalty_norm!r} has no effect with decoder_norm='unit': the penalty "
                "is a plain L1 norm then. Leave penalty_norm out, or set decoder_norm='free'."
            )
        if self.decoder_norm == "free" and self.penalty_norm is None:
            raise ValueError(
                "penalty_norm is missing: with decoder_norm='free' the decoder would grow to evade an unweighted "
                "penalty. Set penalty_norm to 'trained' or 'frozen', the same as auxiliary_decoder."
            )
        if self.decoder_norm == "free" and self.auxiliary_decoder != self.penalty_norm:
            raise ValueError(
                f"auxiliary_decoder={self.auxiliary_decoder!r} with penalty_norm={self.penalty_norm!r} is "
                "the inconsistent mixture that the paper's authors warn against (dead latents, encoders that "
                "shrink while the decoder grows). Give both the same value: 'trained' is the recipe "
                "'norm_weighted', 'frozen' is 'norm_weighted_frozen'."
            )


DECODER_RULES: dict[str, DecoderRule] = {
    "unit": DecoderRule(decoder_norm="unit", auxiliary_decoder="frozen"),
    "norm_weighted": DecoderRule(decoder_norm="free", auxiliary_decoder="trained", penalty_norm="trained"),
    "norm_weighted_frozen": DecoderRule(decoder_norm="free", auxiliary_decoder="frozen", penalty_norm="frozen"),
}
