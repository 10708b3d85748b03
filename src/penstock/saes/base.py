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
from penstock.saes.decoder_rules import DecoderRule
from penstock.saes.settings import Settings
from penstock.shapes import Acts, AnyActs, AnyLatents, PerInput, Scalar
from penstock.sparse import SparseCode


class Loss(NamedTuple):
    """One batch's loss; every term is a sum over coordinates or latents and a mean over tokens."""

    total: Scalar
    """What is minimised: the terms added up, `sparsity` times the sparsity coefficient."""
    terms: dict[str, Scalar]
    """`reconstruction`; where there is a penalty `sparsity` (before the coefficient); and an architecture's own."""
    acts: SparseCode
    """The code of the batch, detached, on the support that the gradient of every term lives on."""
    errors: Float[Tensor, " batch"]
    """Squared reconstruction error of each token, detached."""


class SAE(nn.Module, ABC):
    """A sparse autoencoder: activations [..., d_in] to a sparse code [..., d_sae] and back.

    Leading dimensions are free: one activation [d_in], a batch [batch, d_in], or texts [sequences, positions, d_in].
    """

    arch: ClassVar[str]
    """The architecture's name in configs and files."""
    scaled_by_decoder_norm: ClassVar[tuple[str, ...]]
    """The parameters, one entry per latent, that live in the units of the code."""
    encoder_matrices: ClassVar[tuple[str, ...]] = ("W_enc",)
    """The parameters [d_in, d_sae] that read x; latent-major in memory."""

    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: PerInput

    def __init__(self, settings: Settings) -> None:
        """Keep the architecture's own settings; parameters are made by the architecture."""
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
        """The code of a batch [batch, d_in], only its nonzero entries; what each architecture defines."""

    def encode_sparse(self, x: AnyActs) -> SparseCode:
        """The code of each activation, only its nonzero entries, at the price of one product.

        The code keeps the leading dimensions of x (`code.shape`); its support counts tokens in one flat list.

        Args:
            x: Activations [..., d_in] of the SAE's dtype.

        Raises:
            ValueError: the last dimension of x is not d_in, or x is not of the SAE's dtype.
        """
        if x.ndim == 0 or x.shape[-1] != self.d_in:
            raise ValueError(
                f"x has shape {list(x.shape)}, but this SAE takes [..., d_in] with d_in {self.d_in}. Give it "
                "activations of the site that it was trained on."
            )
        return self.encode_batch(x.reshape(-1, self.d_in)).with_leading(x.shape[:-1])

    def encode(self, x: AnyActs) -> AnyLatents:
        """The code [..., d_sae] of activations [..., d_in], zeros written out; `encode_sparse` is smaller and faster.

        Raises:
            ValueError: as `encode_sparse`.
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
            ValueError: as `encode_sparse`.
        """
        return self.decode_sparse(self.encode_sparse(x))

    def extra_repr(self) -> str:
        """What `print(sae)` says between the brackets: sizes, own settings, precision and device."""
        own = "".join(f", {name}={value!r}" for name, value in self.settings.to_json().items())
        dtype = str(self.W_dec.dtype).removeprefix("torch.")
        return f"d_in={self.d_in}, d_sae={self.d_sae}{own}, {dtype}, {self.W_dec.device}"

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
    """An SAE with a training loss.

    Its constructor takes `(d_in, d_sae, *, settings, decoder_norm=1.0, generator=None)`: it makes decoder rows of the
    given norm in directions that the generator decides, and hands its own settings to `SAE`.
    """

    encoder_biases: ClassVar[tuple[str, ...]]
    """The parameters, besides its matrices, that decide how a latent fires: reset when it is resampled."""

    @abstractmethod
    def loss(self, x: Acts, sparsity_coef: float, rule: DecoderRule) -> Loss:
        """The training loss of a batch, with its named terms.

        Args:
            x: Activations [batch, d_in], scaled to unit mean squared norm.
            sparsity_coef: Weight of the penalty; 0 for an architecture whose own settings decide how many latents fire.
            rule: How the loss treats the decoder.
        """


def random_directions(d_sae: int, d_in: int, *, norm: float, generator: torch.Generator) -> Tensor:
    """Decoder rows [d_sae, d_in] in uniformly random directions, all of the given norm."""
    rows = torch.randn(d_sae, d_in, generator=generator, device="cpu")
    return norm * rows / rows.norm(dim=1, keepdim=True)


def latent_major(W_enc: Float[Tensor, "d_in d_sae"]) -> Float[Tensor, "d_in d_sae"]:
    """The same matrix in memory of its own, where each latent's weights lie side by side: what the kernels gather."""
    return W_enc.T.clone(memory_format=torch.contiguous_format).T


def squared_errors(x_hat: Acts, x: Acts) -> Float[Tensor, " batch"]:
    """Squared reconstruction error of each token, summed over d_in."""
    # One pass where (x_hat - x).square() takes four, forward and backward together.
    return functional.mse_loss(x_hat, x, reduction="none").sum(dim=1)


def penalty(code: SparseCode, W_dec: Float[Tensor, "d_sae d_in"], rule: DecoderRule) -> Scalar:
    """Mean over tokens of a code's L1 norm, each latent weighted by 1 or by the norm of its decoder row."""
    values = code.values
    if rule.decoder_norm == "free":
        norm = W_dec.norm(dim=1)
        values = values * per_latent(norm.detach() if rule.penalty_norm == "frozen" else norm, code.support)
    return values.sum() / code.support.batch
