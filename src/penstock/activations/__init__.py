"""Activations of a language model as training batches."""

from penstock.activations.sources import ActivationCache, ActivationSource, ShuffleBuffer

__all__ = ["ActivationCache", "ActivationSource", "ShuffleBuffer"]
