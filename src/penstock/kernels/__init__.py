"""Sparse encoding and decoding: two differentiable primitives, and kernels for each kind of device."""

from penstock.kernels.dispatch import forced
from penstock.kernels.primitives import decode_from_support, encode_to_support, per_latent

__all__ = ["decode_from_support", "encode_to_support", "forced", "per_latent"]
