"""The base classes of sparse autoencoders: encoding, decoding, the training loss, and exact reparametrisations.

Vectors are rows throughout: the encoder computes `x @ W_enc`, and the decoder `acts @ W_dec`.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from penstock.kernels import decode_from_support, per_latent
from penstock.saes.shared.decoder_rules import DecoderRule
from penstock.saes.shared.settings import Settings
from penstock.shapes import Acts, AnyActs, AnyLatents, PerInput, Scalar
from penstock.sparse import SparseCode


class Loss(NamedTuple):
    """The loss of one batch. Every term is summed over coordinates or latents and averaged over tokens."""

    total: Scalar
    """The loss to minimise: the sum of the terms, with `sparsity` multiplied by the sparsity coefficient."""
    terms: dict[str, Scalar]
    """`reconstruction`, `sparsity` (before the coefficient) if there is a penalty, and an architecture's own terms."""
    acts: SparseCode
    """The code of the batch, detached. The gradient of every term is zero outside its support."""
    errors: Float[Tensor, " batch"]
    """Squared reconstruction error of each token, detached."""


class SAE(nn.Module, ABC):
    """A sparse autoencoder: maps activations [..., d_in] to a sparse code [..., d_sae] and back.

    Any leading dimensions work: one activation [d_in], a batch [batch, d_in], or texts [sequences, positions, d_in].
    """

    arch: ClassVar[str]
    """The architecture's name in configs and files."""
    scaled_by_decoder_norm: ClassVar[tuple[str, ...]]
    """Names of the parameters [d_sae] that have the units of the code, such as biases and thresholds."""
    encoder_matrices: ClassVar[tuple[str, ...]] = ("W_enc",)
    """Names of the encoder matrices [d_in, d_sae], stored so that each latent's weights are contiguous."""

    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: PerInput

    def __init__(self, settings: Settings) -> None:
        """Store the architecture's own settings; subclasses create the parameters."""
        super().__init__()
        self.settings = settings

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    @abstractmethod
    def encode_batch(self, x: Acts) -> SparseCode:
        """The nonzero entries of the code of a batch [batch, d_in]; every architecture defines this method."""

    def encode_sparse(self, x: AnyActs) -> SparseCode:
        """The nonzero entries of the codes of activations, computed with one dense product.

        The result keeps the leading dimensions of x in `shape`; its support numbers the tokens in one flat list.

        Args:
            x: Activations [..., d_in] of the SAE's dtype.

        Raises:
            ValueError: the last dimension of x is not d_in, or x does not have the SAE's dtype.
        """
        if x.ndim == 0 or x.shape[-1] != self.d_in:
            raise ValueError(
                f"x has shape {list(x.shape)}, but this SAE takes [..., d_in] with d_in {self.d_in}. Give "
                "activations of the site that the SAE was trained on."
            )
        return self.encode_batch(x.reshape(-1, self.d_in)).with_leading(x.shape[:-1])

    def encode(self, x: AnyActs) -> AnyLatents:
        """The dense code [..., d_sae] of activations [..., d_in]; `encode_sparse` is smaller and faster.

        Raises:
            ValueError: see `encode_sparse`.
        """
        return self.encode_sparse(x).to_dense()

    def decode(self, acts: AnyLatents) -> AnyActs:
        """The reconstruction [..., d_in] of a code [..., d_sae]: `acts @ W_dec + b_dec`."""
        return acts @ self.W_dec + self.b_dec

    def decode_sparse(self, acts: SparseCode) -> AnyActs:
        """The reconstruction [..., d_in] of a sparse code: the same as `decode(acts.to_dense())`."""
        (x_hat,) = decode_from_support(acts.support, [acts.values], self.W_dec, self.b_dec, trained=[True])
        return x_hat.reshape(*acts.leading, self.d_in)

    def forward(self, x: AnyActs) -> AnyActs:
        """The reconstruction [..., d_in] of activations [..., d_in]: `decode(encode(x))`.

        Raises:
            ValueError: see `encode_sparse`.
        """
        return self.decode_sparse(self.encode_sparse(x))

    def extra_repr(self) -> str:
        """The text that `print(sae)` shows between the brackets: sizes, own settings, dtype and device."""
        own = "".join(f", {name}={value!r}" for name, value in self.settings.to_json().items())
        dtype = str(self.W_dec.dtype).removeprefix("torch.")
        return f"d_in={self.d_in}, d_sae={self.d_sae}{own}, {dtype}, {self.W_dec.device}"

    @torch.no_grad()
    def fold_input_scale_(self, scale: float) -> None:
        """Turn an SAE trained on `scale * x` into one that takes and returns raw x, in place.

        Divides every additive parameter by the scale, which is exact because the encoder is positively homogeneous in x
        and its biases together. The code becomes `acts / scale`, and the decoder rows keep their norm. `r_mag` is a
        ratio and does not change.
        """
        for name in (*self.scaled_by_decoder_norm, "b_dec"):
            getattr(self, name).div_(scale)

    @torch.no_grad()
    def fold_decoder_norm_(self) -> None:
        """Give every decoder row unit norm without changing any reconstruction, in place.

        Multiplies each latent's encoder weights, biases and thresholds by the norm of its row, but not `r_mag`. Rows of
        zeros stay as they are.
        """
        norm = self.W_dec.norm(dim=1)
        norm = torch.where(norm > 0, norm, torch.ones_like(norm))
        self.W_dec.div_(norm[:, None])
        for name in (*self.encoder_matrices, *self.scaled_by_decoder_norm):
            getattr(self, name).mul_(norm)


class TrainableSAE(SAE):
    """An SAE with a training loss.

    Subclasses take `(d_in, d_sae, *, settings, decoder_norm=1.0, generator=None)`. They draw decoder rows of norm
    `decoder_norm` in random directions from the generator, and pass `settings` to `SAE.__init__`.
    """

    encoder_biases: ClassVar[tuple[str, ...]]
    """Names of the encoder's parameters [d_sae] besides its matrices; resampling a latent resets them."""

    @abstractmethod
    def loss(self, x: Acts, sparsity_coef: float, rule: DecoderRule) -> Loss:
        """The training loss of a batch, with its named terms.

        Args:
            x: Activations [batch, d_in], scaled to unit mean squared norm.
            sparsity_coef: Weight of the penalty; 0 for an architecture whose own settings decide the L0.
            rule: How the loss treats the decoder.
        """


def random_directions(d_sae: int, d_in: int, *, norm: float, generator: torch.Generator) -> Tensor:
    """Decoder rows [d_sae, d_in] of the given norm in uniformly random directions, on the CPU."""
    rows = torch.randn(d_sae, d_in, generator=generator, device="cpu")
    return norm * rows / rows.norm(dim=1, keepdim=True)


def latent_major(W_enc: Float[Tensor, "d_in d_sae"]) -> Float[Tensor, "d_in d_sae"]:
    """A copy of the matrix in which each latent's weights are contiguous in memory, as the kernels need them."""
    return W_enc.T.clone(memory_format=torch.contiguous_format).T


def squared_errors(x_hat: Acts, x: Acts) -> Float[Tensor, " batch"]:
    """Squared reconstruction error of each token, summed over d_in."""
    # One pass where (x_hat - x).square() takes four, forward and backward together.
    return functional.mse_loss(x_hat, x, reduction="none").sum(dim=1)


def penalty(code: SparseCode, W_dec: Float[Tensor, "d_sae d_in"], rule: DecoderRule) -> Scalar:
    """The L1 norm of a nonnegative code, averaged over tokens.

    Each latent has weight 1 under a rule with unit decoder rows, otherwise the norm of its decoder row.
    """
    values = code.values
    if rule.decoder_norm == "free":
        norm = W_dec.norm(dim=1)
        values = values * per_latent(norm.detach() if rule.penalty_norm == "frozen" else norm, code.support)
    return values.sum() / code.support.batch
