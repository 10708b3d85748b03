"""Estimates of a run's tokens, operations and memory from its settings.

Only matrix products are counted; a multiplication and addition are two operations. Elementwise work (biases, ReLU,
Adam) is left out, because it is below one percent for batches of thousands.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

from penstock.activations.memory import activation_bytes
from penstock.kernels.reference import ENTRIES_AT_ONCE
from penstock.language_models.pretrained import DTYPES
from penstock.saes import ARCHITECTURES, TrainableSAE, training_of
from penstock.training.settings import ResolvedRun, ResolvedSAE, SAEConfig
from penstock.training.trainer import PAIRS_AT_ONCE

FLOAT, INT = 4, 8
"""Bytes of a weight, and of a counter."""

TENSORS_OF_PAIRS = 10
"""The number of tensors with a 4-byte entry per (token, latent) pair that exist at once (see training/trainer.py)."""


class Estimate(NamedTuple):
    """The cost of training all SAEs of a run, without evaluation."""

    tokens: int
    """The number of activations that each SAE is trained on."""
    steps: int
    flops_language_model: float
    flops_saes: float
    bytes_language_model: int
    """The language model's weights. Memory for its forward pass is not counted."""
    bytes_parameters: int
    """The SAEs' parameters."""
    bytes_optimiser: int
    """The SAEs' optimiser state, and counters of tokens since each latent last fired."""
    bytes_activations: int
    """The shuffle buffer while it is refilled, or the cache while it is filled."""
    bytes_batch: int
    """The peak memory of a step: gradients, the batch, and the support of a random dictionary."""
    bytes_total: int
    """The sum of all bytes. It is an upper bound, because the peaks do not coincide."""

    def hours(self, flops_per_second: float) -> float:
        """Hours of training at a sustained speed, with language model and SAEs one after the other.

        Raises:
            ValueError: the speed is not above 0.
        """
        if not flops_per_second > 0:
            raise ValueError(
                f"flops_per_second={flops_per_second} must be above 0. Give the device's sustained speed, e.g. 1e14."
            )
        return (self.flops_language_model + self.flops_saes) / flops_per_second / 3600


def estimate(
    config: ResolvedRun,
    widths: Mapping[str, int],
    model_parameters: int,
    num_layers: int,
    *,
    pairs_per_token: float = 100.0,
) -> Estimate:
    """The cost of training a run.

    The language model needs two operations per parameter and token, in the blocks up to the deepest site. All
    parameters, including embeddings, are counted as spread evenly over the blocks, which overestimates the cost.

    Args:
        config: Settings of the run.
        widths: The d_in of each site of the run.
        model_parameters: The number of the language model's parameters.
        num_layers: The number of the language model's blocks.
        pairs_per_token: The assumed L0 of SAEs that have a coefficient instead of a target.

    Raises:
        ValueError: a site has no width or is behind the last block, or the model's dtype is not known.
    """
    missing = [site for site in config.sites if site not in widths]
    if missing:
        raise ValueError(f"widths lacks {', '.join(missing)}. Give the d_in of every site of the run.")
    dtype = config.language_model.dtype
    if dtype not in DTYPES:
        raise ValueError(f"The language model's dtype {dtype!r} is not known: it must be one of {', '.join(DTYPES)}.")

    batch = config.optim.batch_size
    flops_of_a_step = sum(
        step_flops(sae, widths[sae.site], batch, sae.aimed_l0 or pairs_per_token) for sae in config.saes
    )
    harvested = config.data.cache_tokens or config.data.tokens
    share = max(_share_of_blocks(site, num_layers) for site in config.sites)
    memory = (
        model_parameters * DTYPES[dtype].itemsize,
        sum(FLOAT * parameters(sae, widths[sae.site]) for sae in config.saes),
        sum(_optimiser_bytes(sae, widths[sae.site]) for sae in config.saes),
        activation_bytes(config.data, sum(widths[site] for site in config.sites)),
        _batch_bytes(config, widths),
    )
    return Estimate(
        config.data.tokens,
        config.num_steps,
        2.0 * model_parameters * share * harvested,
        config.num_steps * flops_of_a_step,
        *memory,
        sum(memory),
    )


def step_flops(sae: SAEConfig, d_in: int, batch: int, pairs_per_token: float) -> float:
    """The operations of one training step once the code is sparse.

    The first steps cost more, because a random dictionary fires on half of all pairs. Two products are dense: the
    encoder's, with 2 * batch * d_in * d_sae operations, and b_dec's gradient through the encoder, with 2 * d_in *
    d_sae. The others are computed on the support, which has batch * pairs_per_token pairs. They need 2 * d_in
    operations for each pair, times the following number (see kernels/primitives.py):

                             Gated   ReLU
        decoding               2       1     the code, and the auxiliary task's
        gradients of values    2       1     the same
        gradient of W_dec      1       1     Gated: 2 if the auxiliary task trains the decoder
        gradient of W_enc      1       1     both paths of Gated share the product

    Args:
        sae: The SAE, of which architecture, width and recipe matter.
        d_in: Width of the site.
        batch: Number of tokens in a step.
        pairs_per_token: Number of firing latents per token, or of latents with an open gate, which are slightly more.
    """
    codes = training_of(sae.arch).codes_decoded
    training_decoder = codes if sae.rule.auxiliary_decoder == "trained" else 1
    dense = 2 * (batch + 1) * d_in * sae.d_sae
    # Forward and backward: an encoder matrix besides W_enc is multiplied densely (saes/gated_ablations.py).
    dense += 3 * 2 * batch * d_in * sae.d_sae * (len(_class_of(sae).encoder_matrices) - 1)
    return dense + 2 * d_in * batch * pairs_per_token * (codes + codes + training_decoder + 1)


def parameters(sae: SAEConfig, d_in: int) -> int:
    """The number of parameters: matrices [d_in, d_sae], b_dec [d_in], and the encoder's vectors [d_sae]."""
    made = _class_of(sae)
    return (len(made.encoder_matrices) + 1) * d_in * sae.d_sae + d_in + len(made.encoder_biases) * sae.d_sae


def training_bytes(sae: ResolvedSAE, config: ResolvedRun, d_in: int) -> int:
    """The peak memory in bytes of training an SAE: its parameters, the optimiser's state, and a step.

    Args:
        sae: The SAE's settings.
        config: The run's settings.
        d_in: Width of the site.
    """
    return FLOAT * parameters(sae, d_in) + _optimiser_bytes(sae, d_in) + _step_bytes(sae, config, d_in)


def _class_of(sae: SAEConfig) -> type[TrainableSAE]:
    return ARCHITECTURES[sae.arch].trainable_sae


def _share_of_blocks(site: str, num_layers: int) -> float:
    """The share of the blocks that must run to compute a site; 1 for a site that is not in a block."""
    layer = re.search(r"\.(\d+)(\.|$)", site)
    if layer is None:
        return 1.0
    blocks = int(layer[1]) + 1
    if blocks > num_layers:
        raise ValueError(
            f"{site} is in block {layer[1]}, but the language model has {num_layers} blocks, counted from 0. Check "
            "the site and num_layers."
        )
    return blocks / num_layers


def _optimiser_bytes(sae: ResolvedSAE, d_in: int) -> int:
    """The bytes of an optimiser's state, and of the counters of tokens since each latent last fired.

    `adam` has two moments, and a step counter for each parameter tensor. `latent_adam` has second moments, one step
    counter, and the step of each latent's last update.
    """
    moments, latents = FLOAT * parameters(sae, d_in), INT * sae.d_sae
    if sae.optimiser == "latent_adam":
        return moments + INT + 2 * latents
    tensors = 2 + len(_class_of(sae).encoder_matrices) + len(_class_of(sae).encoder_biases)
    return 2 * moments + FLOAT * tensors + latents


def _batch_bytes(config: ResolvedRun, widths: Mapping[str, int]) -> int:
    """The bytes of each site's batch, raw and scaled, and of the steps of the SAEs that are trained in parallel."""
    batches = FLOAT * 2 * config.optim.batch_size * sum(widths[site] for site in config.sites)
    side_by_side = config.threads if _device(config) == "cpu" else 1
    steps = sorted((_step_bytes(sae, config, widths[sae.site]) for sae in config.saes), reverse=True)
    return batches + sum(steps[:side_by_side])


def _step_bytes(sae: SAEConfig, config: ResolvedRun, d_in: int) -> int:
    """The bytes of an SAE's step: gradients, pairs of a random dictionary, reconstructions, and a dense block.

    A random dictionary fires on half of all pairs, of which at most PAIRS_AT_ONCE are computed at once. Besides the
    reconstructions there are the centred batch and the reconstructions' gradients.
    """
    batch, device = config.optim.batch_size, _device(config)
    pairs = min(PAIRS_AT_ONCE.get(device, PAIRS_AT_ONCE["cpu"]), batch * sae.d_sae // 2)
    rows = (1 + 2 * training_of(sae.arch).codes_decoded) * batch * d_in
    block = min(ENTRIES_AT_ONCE.get(device, ENTRIES_AT_ONCE["cpu"]), batch * sae.d_sae)
    return FLOAT * (parameters(sae, d_in) + TENSORS_OF_PAIRS * pairs + rows + block)


def _device(config: ResolvedRun) -> str:
    return torch.device(config.language_model.device).type
