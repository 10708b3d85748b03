"""A TopK SAE as a user would add one: one file, and a line in ARCHITECTURES."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from penstock.kernels import encode_to_support, per_latent
from penstock.saes import (
    Architecture,
    DecoderRule,
    LearningRate,
    Loss,
    Settings,
    TrainableSAE,
    Training,
    latent_major,
    random_directions,
    squared_errors,
)
from penstock.shapes import Acts
from penstock.sparse import SparseCode


@dataclass(frozen=True, kw_only=True)
class TopKSettings(Settings):
    k: int = 8
    """Latents that fire on each token."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k} is out of range: it must be at least 1.")


class TopKSAE(TrainableSAE):
    """The k largest encoder products of a token fire (Gao et al. 2024, https://arxiv.org/abs/2406.04093)."""

    arch: ClassVar[str] = "topk"
    scaled_by_decoder_norm: ClassVar[tuple[str, ...]] = ("b_enc",)
    encoder_biases: ClassVar[tuple[str, ...]] = ("b_enc",)

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        settings: Settings,
        decoder_norm: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(settings)
        assert isinstance(settings, TopKSettings)
        self.k = settings.k
        generator = generator or torch.Generator().manual_seed(0)
        W_dec = random_directions(d_sae, d_in, norm=decoder_norm, generator=generator)
        self.W_enc = nn.Parameter(latent_major(W_dec.T))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(W_dec)
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def encode_batch(self, x: Acts) -> SparseCode:
        code = encode_to_support(x, self.W_enc, self.b_dec, cut=-self.b_enc)
        acts = SparseCode(code.support, code.values + per_latent(self.b_enc, code.support)).to_dense()
        values, latents = acts.topk(min(self.k, self.d_sae), dim=-1)
        return SparseCode.from_dense(torch.zeros_like(acts).scatter(-1, latents, values))

    def loss(self, x: Acts, sparsity_coef: float, rule: DecoderRule) -> Loss:
        acts = self.encode_batch(x)
        errors = squared_errors(self.decode_sparse(acts), x)
        return Loss(errors.mean(), {"reconstruction": errors.mean()}, acts.detach(), errors.detach())


TOPK = Architecture(
    sae=TopKSAE,
    label="TopK",
    settings=TopKSettings,
    training=Training(
        learning_rate=LearningRate(base=5e-3),
        aims=(),
        own_l0=lambda settings: settings.k,
        decoder_norms=("unit",),
    ),
)
