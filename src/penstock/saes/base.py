"""What every sparse autoencoder offers: encode, decode, their composition, and exact folds.

Row vectors throughout: a code is made with `x @ W_enc` and read out with `acts @ W_dec`.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from penstock.kernels import decode_from_support, per_latent
from penstock.saes.recipes import Recipe
from penstock.shapes import Acts, Latents, PerInput, Scalar
from penstock.sparse import SparseCode


class Loss(NamedTuple):
    """One batch's loss; every term is a sum over coordinates or latents and a mean over tokens."""

    total: Scalar
    """What is minimised: the terms added up, `sparsity` times the sparsity coefficient."""
    terms: dict[str, Scalar]
    """`reconstruction`, `sparsity` (before the coefficient), and for Gated `auxiliary`."""
    acts: SparseCode
    """The code of the batch, detached, on the support that the gradient of every term lives on."""
    errors: Float[Tensor, " batch"]
    """Squared reconstruction error of each token, detached."""


class SAE(nn.Module, ABC):
    """A sparse autoencoder: activations [batch, d_in] to a sparse code [batch, d_sae] and back."""

    arch: ClassVar[str]
    """The architecture's name in configs and files."""
    scaled_by_decoder_norm: ClassVar[tuple[str, ...]]
    """The parameters, one entry per latent, that live in the units of the code."""
    encoder_matrices: ClassVar[tuple[str, ...]] = ("W_enc",)
    """The parameters [d_in, d_sae] that read x; latent-major in memory."""

    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: PerInput

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    @abstractmethod
    def encode_sparse(self, x: Acts) -> SparseCode:
        """The code of each activation, only its nonzero entries: non-negative, at the price of one product.

        Raises:
            ValueError: x is not a matrix [batch, d_in], or not of the SAE's dtype.
        """

    def encode(self, x: Acts) -> Latents:
        """The code of each activation with its zeros written out; `encode_sparse` is smaller and faster."""
        return self.encode_sparse(x).to_dense()

    def decode(self, acts: Latents) -> Acts:
        """The reconstruction of a code: `acts @ W_dec + b_dec`."""
        return acts @ self.W_dec + self.b_dec

    def decode_sparse(self, acts: SparseCode) -> Acts:
        """The reconstruction of a sparse code: the same as `decode(acts.to_dense())`."""
        (x_hat,) = decode_from_support(acts.support, [acts.values], self.W_dec, self.b_dec, trained=[True])
        return x_hat

    def forward(self, x: Acts) -> Acts:
        """The reconstruction of each activation: `decode(encode(x))`."""
        return self.decode_sparse(self.encode_sparse(x))

    @torch.no_grad()
    def fold_input_scale_(self, scale: float) -> None:
        """Turn an SAE trained on `scale * x` into one that takes and returns raw x.

        The code becomes `acts / scale` (raw units) and the decoder rows keep their norm: every additive
        parameter is divided by the scale, because the encoder is positively homogeneous in x and its
        biases together. `r_mag` is a ratio and stays.
        """
        for name in (*self.scaled_by_decoder_norm, "b_dec"):
            getattr(self, name).div_(scale)

    @torch.no_grad()
    def fold_decoder_norm_(self) -> None:
        """Give every decoder row unit norm without changing any reconstruction.

        A row's norm moves into its latent: encoder matrices, biases and thresholds are multiplied by it, `r_mag` is
        not. A row of exactly zero is left as it is.
        """
        norm = self.W_dec.norm(dim=1)
        norm = torch.where(norm > 0, norm, torch.ones_like(norm))
        self.W_dec.div_(norm[:, None])
        for name in (*self.encoder_matrices, *self.scaled_by_decoder_norm):
            getattr(self, name).mul_(norm)


class TrainableSAE(SAE):
    """An SAE with a training loss."""

    encoder_biases: ClassVar[tuple[str, ...]]
    """The parameters, besides its matrices, that decide how a latent fires: reset when it is resampled."""

    @abstractmethod
    def loss(self, x: Acts, sparsity_coef: float, recipe: Recipe) -> Loss:
        """The training loss of a batch, with its named terms."""


def random_directions(d_sae: int, d_in: int, *, norm: float, generator: torch.Generator) -> Tensor:
    """Decoder rows [d_sae, d_in] in uniformly random directions, all of the given norm."""
    rows = torch.randn(d_sae, d_in, generator=generator)
    return norm * rows / rows.norm(dim=1, keepdim=True)


def latent_major(W_enc: Float[Tensor, "d_in d_sae"]) -> Float[Tensor, "d_in d_sae"]:
    """The same matrix in memory of its own, where each latent's weights lie side by side: what the kernels gather."""
    return W_enc.T.clone(memory_format=torch.contiguous_format).T


def squared_errors(x_hat: Acts, x: Acts) -> Float[Tensor, " batch"]:
    """Squared reconstruction error of each token, summed over d_in."""
    # One pass where (x_hat - x).square() takes four, forward and backward together.
    return functional.mse_loss(x_hat, x, reduction="none").sum(dim=1)


def penalty(code: SparseCode, W_dec: Float[Tensor, "d_sae d_in"], recipe: Recipe) -> Scalar:
    """Mean over tokens of a code's L1 norm, each latent weighted by 1 or by the norm of its decoder row."""
    values = code.values
    if recipe.decoder_norm == "free":
        norm = W_dec.norm(dim=1)
        values = values * per_latent(norm.detach() if recipe.penalty_norm == "frozen" else norm, code.support)
    return values.sum() / code.support.batch
