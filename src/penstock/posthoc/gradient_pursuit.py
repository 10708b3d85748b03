"""Inference-time optimisation: how well a trained decoder can do with a given number of latents, without its encoder.

Source: Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, appendix A (figures 10 and 11): gradient pursuit
(Blumensath & Davies 2008, "Gradient pursuits") with codes kept non-negative. From w = 0 and an empty support S, repeat

    r = x - b_dec - w W_dec            p = r W_dec^T, one inner product for each latent
    S = S + {argmax p}                 if that product is positive
    g = p on S, zero elsewhere         c = g W_dec, how the reconstruction moves along g
    w = max(w + <c, r> / <c, c> g, 0)

If the largest product belongs to a latent already in S, S does not grow in that iteration. A latent whose weight was
cut to zero stays in S, and may become positive again.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from penstock.evaluation.evaluate import Candidate
from penstock.kernels.reference import ENTRIES_AT_ONCE
from penstock.saes import SAE
from penstock.shapes import Acts, PerInput
from penstock.sparse import SparseCode, Support

Dictionary = Float[Tensor, "d_sae d_in"]
Chosen = Int[Tensor, "batch slots"]
Weights = Float[Tensor, "batch slots"]

UNIT_WITHIN = 0.01
"""Largest distance of a decoder row's norm from 1; rounding an SAE to bfloat16 stays below it."""


def pursued(name: str, site: str, sae: SAE, num_latents: int) -> Candidate:
    """Return a candidate that replaces a trained SAE's encoder by pursuit; it is evaluated in float32, like every SAE.

    Args:
        name: Name of the candidate.
        site: Site of the SAE.
        sae: SAE on raw activations with decoder rows of unit norm; its encoder is not used.
        num_latents: Iterations of pursuit, hence most latents per token: 1 to d_sae.

    Raises:
        ValueError: num_latents is out of range, or decoder rows are not of unit norm.
    """
    W_dec, b_dec = sae.W_dec.detach().float(), sae.b_dec.detach().float()
    _check(W_dec, num_latents)
    return Candidate.of(name, site, sae)._replace(encode=lambda x: pursue(x, W_dec, b_dec, num_latents))


@torch.no_grad()
def pursue(x: Acts, W_dec: Dictionary, b_dec: PerInput, num_latents: int) -> SparseCode:
    """Find the non-negative code of each activation by gradient pursuit on the rows of W_dec.

    Args:
        x: Activations [batch, d_in], float32 or float64 like W_dec.
        W_dec: Decoder. Its rows must have unit norm, because inner products decide which latent comes next; a row of
            exactly zero is never chosen.
        b_dec: Decoder bias, subtracted from every activation.
        num_latents: Iterations, 1 to d_sae.

    Returns:
        Positive weights of at most `num_latents` latents per token, ascending by latent. A token gets fewer if no row
        has a positive inner product with its residual, if a latent is best twice, or if a weight ends at zero.
        A token with a NaN gets a NaN.

    Raises:
        ValueError: num_latents is out of range, or rows of W_dec are not of unit norm.
    """
    _check(W_dec, num_latents)
    d_sae = len(W_dec)
    rows = min(len(x), max(1, ENTRIES_AT_ONCE.get(x.device.type, ENTRIES_AT_ONCE["cpu"]) // d_sae))
    products = x.new_empty(rows, d_sae)
    counts, latents, values = [], [], []
    for part in x.split(max(1, rows)):
        chosen, weights = _pursue_block(part - b_dec, W_dec, num_latents, products[: len(part)])
        # Empty slots are sorted to the end. A NaN differs from zero, so it is kept.
        sorted_latents, order = chosen.where(weights != 0, d_sae).sort(dim=1)
        filled = sorted_latents < d_sae
        counts.append(filled.sum(dim=1))
        latents.append(sorted_latents[filled].int())
        values.append(weights.gather(1, order)[filled])
    offsets = torch.cat([counts[0].new_zeros(1), *counts]).cumsum(0)
    return SparseCode(Support(offsets, torch.cat(latents), d_sae), torch.cat(values))


def _pursue_block(
    target: Acts, W_dec: Dictionary, num_latents: int, products: Float[Tensor, "batch d_sae"]
) -> tuple[Chosen, Weights]:
    """Return a latent and its weight for each token and iteration; the weight is 0 if an iteration added no latent.

    `products` is scratch memory, the only tensor of size [batch, d_sae].
    """
    chosen = torch.zeros(len(target), num_latents, dtype=torch.int64, device=target.device)
    added = torch.zeros_like(chosen, dtype=torch.bool)
    weights = target.new_zeros(chosen.shape)
    residual = target
    for last in range(num_latents):
        if last > 0:
            residual = target - _decoded(chosen[:, :last], weights[:, :last], W_dec)
        torch.mm(residual, W_dec.T, out=products)
        latent = _largest(products)
        best = products.gather(1, latent[:, None])[:, 0]
        known = ((chosen[:, :last] == latent[:, None]) & added[:, :last]).any(dim=1)
        chosen[:, last] = latent
        # Not "best > 0": a NaN has to reach the weights.
        added[:, last] = ~(best <= 0) & ~known

        support, on_support = chosen[:, : last + 1], weights[:, : last + 1]
        gradient = products.gather(1, support).where(added[:, : last + 1], 0.0)
        square = _decoded(support, gradient, W_dec).square().sum(dim=1)
        # <c, r> = |g|^2, because c = g W_dec and g holds r's inner products. If c is zero, the weights stay.
        step = (gradient.square().sum(dim=1) / square).where(square > 0, 0.0)
        on_support.addcmul_(step[:, None], gradient).clamp_(min=0)
    return chosen, weights


def _largest(products: Float[Tensor, "batch d_sae"]) -> Int[Tensor, " batch"]:
    """Return the latent with each token's largest product; NaN counts as the largest."""
    if products.device.type == "cpu":
        # PyTorch's argmax takes ten times as long as numpy's: a fifth of the total time at d_in 128.
        return torch.from_numpy(products.numpy().argmax(axis=1))
    return products.argmax(dim=1)


def _decoded(latents: Chosen, weights: Weights, W_dec: Dictionary) -> Acts:
    """Return each token's weighted sum of rows of W_dec, adding rows as they are read instead of gathering first."""
    return functional.embedding_bag(latents, W_dec, mode="sum", per_sample_weights=weights)


def _check(W_dec: Dictionary, num_latents: int) -> None:
    if not 1 <= num_latents <= len(W_dec):
        raise ValueError(
            f"num_latents is {num_latents}, but pursuit takes 1 to {len(W_dec)} iterations (the decoder's number of "
            "latents). Choose a number in that range."
        )
    norms = W_dec.norm(dim=1)
    wrong = ((norms - 1).abs() > UNIT_WITHIN) & (norms > 0)
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} decoder rows have norms between {float(norms[wrong].min()):.3g} and "
            f"{float(norms[wrong].max()):.3g}, but pursuit chooses latents by inner products, which compares rows of "
            "norm 1. Call fold_decoder_norm_() on the SAE first: it changes no reconstruction."
        )
