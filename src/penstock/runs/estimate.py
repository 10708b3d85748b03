"""What a run will cost, from its settings alone: tokens, arithmetic, memory.

Only products are counted, two operations for each multiplication and addition. What is done once for each number
(biases, ReLU, Adam) is left out: with a batch of thousands it is below a hundredth.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

from penstock.activations.memory import activation_bytes
from penstock.kernels.reference import BLOCK
from penstock.language_models.pretrained import DTYPES
from penstock.saes import ARCHITECTURES, TrainableSAE, training_of
from penstock.training.settings import ResolvedRun, ResolvedSAE, SAEConfig
from penstock.training.trainer import PAIRS_AT_ONCE

FLOAT, INT = 4, 8
"""Bytes of what SAEs are made of, and of what is counted."""

TENSORS_OF_PAIRS = 10
"""Tensors with an entry of 4 bytes for each pair that exist at once (training/trainer.py)."""


class Estimate(NamedTuple):
    """A run's cost; all SAEs of the run together, evaluation left out."""

    tokens: int
    """Activations that each SAE is trained on."""
    steps: int
    flops_language_model: float
    flops_saes: float
    bytes_language_model: int
    """Its weights; what a forward pass needs besides is not counted."""
    bytes_parameters: int
    bytes_optimiser: int
    """Bytes for each SAE in addition to its parameters: Adam's state, and when each latent last fired."""
    bytes_activations: int
    """The shuffle buffer while it is refilled, or the cache while it is filled."""
    bytes_batch: int
    """What steps need for a while, at their largest: gradients, the batch, the support of a random dictionary."""
    bytes_total: int
    """All of these at once: an upper bound, as the largest of them do not come together."""

    def hours(self, flops_per_second: float) -> float:
        """Training time at a sustained speed, language model and SAEs one after the other.

        Raises:
            ValueError: the speed is not above 0.
        """
        if not flops_per_second > 0:
            raise ValueError(
                f"flops_per_second={flops_per_second} must be above 0: what the device sustains, e.g. 1e14."
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

    The language model does two operations for each parameter and token, in the blocks up to the deepest site. Its
    parameters are taken to be spread evenly over the blocks, embeddings included, which overstates the cost.

    Args:
        config: Settings of the run.
        widths: For each of its sites the d_in.
        model_parameters: Of the language model.
        num_layers: Blocks of the language model.
        pairs_per_token: L0 of the SAEs that have a coefficient instead of a target, not known beforehand.

    Raises:
        ValueError: a site has no width, lies behind the last block, or the model's dtype is not known.
    """
    missing = [site for site in config.sites if site not in widths]
    if missing:
        raise ValueError(f"widths lacks {', '.join(missing)}: give the d_in of every site of the run.")
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
    """Operations of one training step once the code is sparse (before, while a random dictionary fires on half of all
    pairs, a step costs more).

    Dense: the encoder's product, 2 * batch * d_in * d_sae, and once a step b_dec's gradient through the encoder,
    2 * d_in * d_sae. On the support, with batch * pairs_per_token pairs and 2 * d_in operations for each pair and
    code (kernels/primitives.py):

                             Gated   ReLU
        decoding               2       1     the code, and the auxiliary task's
        gradients of values    2       1     the same
        gradient of W_dec      1       1     2 where the auxiliary task trains the decoder
        gradient of W_enc      1       1     both paths of Gated share the product

    Args:
        sae: Its architecture, width and recipe count.
        d_in: Width of the site.
        batch: Tokens in a step.
        pairs_per_token: Pairs on the support: latents that fire (Gated: whose gate is open, which is a little more).
    """
    codes = training_of(sae.arch).codes_decoded
    training_decoder = codes if sae.rule.auxiliary_decoder == "trained" else 1
    dense = 2 * (batch + 1) * d_in * sae.d_sae
    # Forward and backward: an encoder matrix besides W_enc is multiplied densely (saes/gated_ablations.py).
    dense += 3 * 2 * batch * d_in * sae.d_sae * (len(_class_of(sae).encoder_matrices) - 1)
    return dense + 2 * d_in * batch * pairs_per_token * (codes + codes + training_decoder + 1)


def parameters(sae: SAEConfig, d_in: int) -> int:
    """Number of parameters: matrices [d_in, d_sae], b_dec [d_in], and the encoder's vectors [d_sae]."""
    made = _class_of(sae)
    return (len(made.encoder_matrices) + 1) * d_in * sae.d_sae + d_in + len(made.encoder_biases) * sae.d_sae


def training_bytes(sae: ResolvedSAE, config: ResolvedRun, d_in: int) -> int:
    """Memory that training an SAE takes at most: its parameters, what its optimiser keeps, and a step.

    Args:
        sae: Of the run.
        config: The run's settings.
        d_in: Width of the site.
    """
    return FLOAT * parameters(sae, d_in) + _optimiser_bytes(sae, d_in) + _step_bytes(sae, config, d_in)


def _class_of(sae: SAEConfig) -> type[TrainableSAE]:
    return ARCHITECTURES[sae.arch].trainable_sae


def _share_of_blocks(site: str, num_layers: int) -> float:
    """Share of the blocks that run before a site is known; all of them for a site in none."""
    layer = re.search(r"\.(\d+)(\.|$)", site)
    if layer is None:
        return 1.0
    blocks = int(layer[1]) + 1
    if blocks > num_layers:
        raise ValueError(
            f"{site} lies in block {layer[1]}, but the language model has {num_layers} blocks, counted from 0. Check "
            "the site and num_layers."
        )
    return blocks / num_layers


def _optimiser_bytes(sae: ResolvedSAE, d_in: int) -> int:
    """Second moments, with `adam` first moments and a count of steps for each parameter; with `latent_adam` one count
    of steps, and each latent's last update; and for either each latent's tokens since it fired.
    """
    moments, latents = FLOAT * parameters(sae, d_in), INT * sae.d_sae
    if sae.optimiser == "latent_adam":
        return moments + INT + 2 * latents
    tensors = 2 + len(_class_of(sae).encoder_matrices) + len(_class_of(sae).encoder_biases)
    return 2 * moments + FLOAT * tensors + latents


def _batch_bytes(config: ResolvedRun, widths: Mapping[str, int]) -> int:
    """The batch of each site, raw and scaled, and the steps of the SAEs that are trained side by side."""
    batches = FLOAT * 2 * config.optim.batch_size * sum(widths[site] for site in config.sites)
    side_by_side = config.threads if _device(config) == "cpu" else 1
    steps = sorted((_step_bytes(sae, config, widths[sae.site]) for sae in config.saes), reverse=True)
    return batches + sum(steps[:side_by_side])


def _step_bytes(sae: SAEConfig, config: ResolvedRun, d_in: int) -> int:
    """Gradients; the pairs of a random dictionary, which fires on half of them, as far as they are taken at once; the
    centred batch, its reconstructions and their gradients; a dense block.
    """
    batch, device = config.optim.batch_size, _device(config)
    pairs = min(PAIRS_AT_ONCE.get(device, PAIRS_AT_ONCE["cpu"]), batch * sae.d_sae // 2)
    rows = (1 + 2 * training_of(sae.arch).codes_decoded) * batch * d_in
    block = min(BLOCK.get(device, BLOCK["cpu"]), batch * sae.d_sae)
    return FLOAT * (parameters(sae, d_in) + TENSORS_OF_PAIRS * pairs + rows + block)


def _device(config: ResolvedRun) -> str:
    return torch.device(config.language_model.device).type
