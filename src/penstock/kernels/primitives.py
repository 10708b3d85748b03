"""The differentiable steps between activations and codes on a support; an architecture is ordinary PyTorch in between.

encode_to_support   activations -> which latents may fire, and their encoder products
per_latent          one number for each latent -> one for each pair
decode_from_support codes that share a support -> reconstructions

No [batch, d_sae] tensor outlives its block of rows. No backward pass multiplies whole matrices unless the support is
dense, because gradients are also computed on the support only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from penstock.kernels.dispatch import kernels_for, kernels_on
from penstock.kernels.protocol import Kernels
from penstock.shapes import Acts, PerInput, PerLatent
from penstock.sparse import SparseCode, Support, Values


def encode_to_support(
    x: Float[Tensor, "..."], W_enc: Float[Tensor, "d_in d_sae"], b_dec: PerInput, cut: PerLatent
) -> SparseCode:
    """Return the entries of `(x - b_dec) @ W_enc` above each latent's cut, differentiable in all but the cut.

    Under `torch.autocast` the factors are rounded, the product is accumulated in float32, and the accumulated value
    is compared with the cut. A NaN is never below its cut, so it reaches the code.

    Args:
        x: Activations [batch, d_in], in W_enc's dtype.
        W_enc: Encoder; fastest if latent-major in memory (a transposed view).
        b_dec: Decoder bias, subtracted from every activation.
        cut: Value that each latent's product has to exceed, e.g. minus its bias.

    Raises:
        ValueError: x is not a matrix [batch, d_in] with W_enc's width and dtype.
    """
    if x.ndim != 2 or x.shape[1] != W_enc.shape[0]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, but the encoder takes [batch, d_in] with d_in {W_enc.shape[0]}. Flatten "
            "tokens first: x.reshape(-1, x.shape[-1])."
        )
    if x.dtype != W_enc.dtype:
        raise ValueError(f"x is {x.dtype}, but the encoder is {W_enc.dtype}. Convert one of them, e.g. x.float().")
    values, support = _Encode.apply(x, W_enc, b_dec, cut.detach())
    return SparseCode(support, values)


def per_latent(parameter: PerLatent, support: Support) -> Values:
    """Return each pair's value of a parameter per latent: `parameter[support.indices]`."""
    return _PerLatent.apply(parameter, support)


def decode_from_support(
    support: Support,
    codes: Sequence[Values],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: PerInput,
    *,
    trained: Sequence[bool],
) -> list[Acts]:
    """Return `code @ W_dec + b_dec` for several codes on one support, in one pass over the rows of W_dec.

    Args:
        support: Support that all codes share.
        codes: Values of each code on the support.
        W_dec: Decoder.
        b_dec: Decoder bias, added to every reconstruction.
        trained: For each code, whether W_dec and b_dec receive a gradient through it; the code always does.
    """
    return list(_Decode.apply(support, tuple(trained), W_dec, b_dec, *codes))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_dec: Tensor, cut: Tensor) -> tuple[Tensor, Support]:
        device = x.device.type
        factors = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with _as_given(x):
            centred = (x - b_dec).contiguous()
            code = kernels_for(x).select(centred, W_enc, cut, factors)
        ctx.kernels = kernels_on(code.support, x)
        ctx.support = code.support
        ctx.save_for_backward(centred, W_enc)
        return code.values, code.support

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        kernels: Kernels = ctx.kernels
        support: Support = ctx.support
        centred, W_enc = ctx.saved_tensors
        need_x, need_W, need_b, _ = ctx.needs_input_grad
        gradient = gradient.contiguous()
        of_x = of_W = of_b = None
        with _as_given(W_enc):
            if need_W:
                of_W = kernels.weight_gradient(support, [gradient], [centred]).T
            if need_x:
                no_bias = centred.new_zeros(centred.shape[1])
                (of_x,) = kernels.decode(support, [gradient], W_enc.T.contiguous(), no_bias)
            if need_b:
                of_b = -(W_enc @ kernels.sum_by_latent(support, gradient))
        return of_x, of_W, of_b, None


class _PerLatent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, support: Support) -> Tensor:
        ctx.kernels = kernels_for(parameter)
        ctx.support = support
        return parameter.index_select(0, support.indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.kernels.sum_by_latent(ctx.support, gradient.contiguous()), None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, support: Support, trained: tuple[bool, ...], W_dec: Tensor, b_dec: Tensor, *codes: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.kernels = kernels_on(support, W_dec)
        ctx.support = support
        ctx.trained = trained
        ctx.set_materialize_grads(False)
        W_dec, codes = W_dec.contiguous(), tuple(code.contiguous() for code in codes)
        ctx.save_for_backward(W_dec, *codes)
        with _as_given(W_dec):
            return tuple(ctx.kernels.decode(support, codes, W_dec, b_dec))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        kernels: Kernels = ctx.kernels
        support: Support = ctx.support
        W_dec, *codes = ctx.saved_tensors
        _, _, need_W, need_b, *need_codes = ctx.needs_input_grad
        rows_of = {c: gradient.contiguous() for c, gradient in enumerate(gradients) if gradient is not None}

        asked = [c for c in rows_of if need_codes[c]]
        training = [c for c in rows_of if ctx.trained[c]]
        of_codes: list[Tensor | None] = [None] * len(codes)
        of_W = of_b = None
        with _as_given(W_dec):
            if asked:
                found = kernels.value_gradients(support, [rows_of[c] for c in asked], W_dec)
                for c, of_code in zip(asked, found, strict=True):
                    of_codes[c] = of_code
            if need_W and training:
                of_W = kernels.weight_gradient(support, [codes[c] for c in training], [rows_of[c] for c in training])
            if need_b and training:
                of_b = torch.stack([rows_of[c].sum(dim=0) for c in training]).sum(dim=0)
        return None, None, of_W, of_b, *of_codes


def _as_given(tensor: Tensor) -> torch.autocast:
    """Disable autocast in a region, because `backward` may be called inside autocast."""
    return torch.autocast(tensor.device.type, enabled=False)
