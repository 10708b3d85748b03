"""Train the peers' SAEs on cached activations, each with its own trainer, and measure all of them alike.

    python peers.py --activations acts.safetensors --arm saelens-gated --lr 1e-3 3e-3 --coef 1 2 4 \
        --steps 5000 --batch-size 1024 --d-sae 1024 --out results.jsonl

Arms, lrs, coefs and seeds each take one or more values; every combination is one run and one line of --out.
The environment is described by requirements-peers.txt next to this file. SAELens draws a progress bar;
TQDM_DISABLE=1 in the environment silences it.

How the peers run here is how their own users run them (read in sae-lens 6.54.12, dictionary-learning 0.1.0):
* saelens-*: `SAETrainer.fit` (sae_lens/training/sae_trainer.py) as it is: Adam with beta1 0.9, gradient norm
  clipped to 1.0 (line 412); decoder rows free and started at norm 0.1, W_enc their transpose, L1 weighted by
  their norms.
* dl-*: `trainer.update(step, x)` in a loop, which is what its `trainSAE` does (training.py, lines 236-238):
  unit-norm decoder, Adam with beta1 0 (gated) or 0.9 (relu), warm-up of learning rate and of penalty.
Activations are scaled by one constant to mean squared norm d_in. dictionary_learning's own option
(`normalize_activations`) scales to 1: `--mean-square-norm 1`, with every coef divided by sqrt(d_in) for the
same objective.
"""

# The peers live in their own environment, not in the one that type-checks this project.
# pyright: reportMissingImports=false

import argparse
import itertools
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from common import append_line, batches, load_activations, measure, scale_to
from torch import Tensor

logger = logging.getLogger("peers")

ARMS = {  # arm: the distribution that trains it
    "saelens-gated": "sae-lens",
    "saelens-standard": "sae-lens",
    "dl-gated": "dictionary-learning",
    "dl-relu": "dictionary-learning",
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Settings of one training run; they are the first keys of its line in the results."""

    arm: str
    """Key of ARMS."""
    lr: float
    """Peak learning rate."""
    coef: float
    """Sparsity coefficient in the peer's own loss: squared error summed over d_in, mean over the batch."""
    seed: int
    """Seeds the initial weights and the batch order."""
    steps: int
    """Optimiser steps."""
    batch_size: int
    """Tokens per step."""
    d_sae: int
    """Number of latents."""
    mean_square_norm: float
    """Mean squared norm the training activations are scaled to."""
    lr_warmup_steps: int
    """Steps of linear learning-rate warm-up."""
    lr_decay_steps: int
    """Last steps, over which the learning rate falls linearly to 0; 0 for none."""
    sparsity_warmup_steps: int
    """Steps of linear warm-up of the coefficient; 0 for none."""

    def __post_init__(self) -> None:
        if self.lr_warmup_steps + self.lr_decay_steps > self.steps:
            raise ValueError(
                f"lr_warmup_steps {self.lr_warmup_steps} and lr_decay_steps {self.lr_decay_steps} "
                f"do not fit into {self.steps} steps; shorten one of them"
            )


class Trained(NamedTuple):
    """A trained SAE as the measurement needs it, and the seconds its training loop took."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    seconds: float


def train_saelens(run: Run, train: Tensor, scale: float) -> Trained:
    """Train SAELens' gated or standard SAE with its own `SAETrainer`."""
    from sae_lens import (
        GatedTrainingSAE,
        GatedTrainingSAEConfig,
        SAETrainer,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
    )
    from sae_lens.config import SAETrainerConfig

    sae_class, config_class = {
        "saelens-gated": (GatedTrainingSAE, GatedTrainingSAEConfig),
        "saelens-standard": (StandardTrainingSAE, StandardTrainingSAEConfig),
    }[run.arm]
    torch.manual_seed(run.seed)
    sae = sae_class(
        config_class(
            d_in=train.shape[1],
            d_sae=run.d_sae,
            l1_coefficient=run.coef,
            l1_warm_up_steps=run.sparsity_warmup_steps,
        )
    )
    settings = SAETrainerConfig(
        total_training_samples=run.steps * run.batch_size,
        train_batch_size_samples=run.batch_size,
        lr=run.lr,
        lr_end=run.lr / 10,  # has to be set; the constant schedule used here does not read it
        lr_warm_up_steps=run.lr_warmup_steps,
        lr_decay_steps=run.lr_decay_steps,
    )
    stream = batches(train, batch_size=run.batch_size, steps=run.steps, seed=run.seed, scale=scale)
    trainer = SAETrainer(settings, sae, stream)
    start = time.perf_counter()
    trainer.fit()
    return Trained(sae.encode, sae.decode, time.perf_counter() - start)


def train_dictionary_learning(run: Run, train: Tensor, scale: float) -> Trained:
    """Train dictionary_learning's Gated or ReLU SAE, stepping its trainer as its `trainSAE` does."""
    from dictionary_learning.trainers import GatedSAETrainer, StandardTrainer

    trainer_class = {"dl-gated": GatedSAETrainer, "dl-relu": StandardTrainer}[run.arm]
    trainer = trainer_class(
        steps=run.steps,
        activation_dim=train.shape[1],
        dict_size=run.d_sae,
        layer=0,  # layer and lm_name are required and only recorded
        lm_name="cached activations",
        lr=run.lr,
        l1_penalty=run.coef,
        warmup_steps=run.lr_warmup_steps,
        sparsity_warmup_steps=run.sparsity_warmup_steps,
        decay_start=run.steps - run.lr_decay_steps if run.lr_decay_steps else None,
        seed=run.seed,
        device="cpu",
    )
    stream = batches(train, batch_size=run.batch_size, steps=run.steps, seed=run.seed, scale=scale)
    start = time.perf_counter()
    for step, x in enumerate(stream):
        trainer.update(step, x)
    return Trained(trainer.ae.encode, trainer.ae.decode, time.perf_counter() - start)


TRAINERS = {"sae-lens": train_saelens, "dictionary-learning": train_dictionary_learning}


def default_warmups(arm: str, steps: int) -> tuple[int, int]:
    """Learning-rate and sparsity warm-up in steps, where the command line gives none.

    dictionary_learning: its defaults (1000, 2000), in proportion for runs under 5000 steps, as it refuses
    warm-ups that reach into the decay.
    SAELens: a short learning-rate warm-up and no sparsity warm-up, its default.
    """
    if ARMS[arm] == "dictionary-learning":
        return min(1000, steps // 5), min(2000, 2 * steps // 5)
    return steps // 20, 0


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the peers' SAEs on cached activations.")
    parser.add_argument("--activations", type=Path, required=True, help="safetensors: train, held_out")
    parser.add_argument("--out", type=Path, required=True, help="JSON-lines file to append to")
    parser.add_argument("--arm", nargs="+", choices=ARMS, required=True)
    parser.add_argument("--lr", nargs="+", type=float, required=True)
    parser.add_argument("--coef", nargs="+", type=float, required=True, help="in the peer's own loss")
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True, help="tokens")
    parser.add_argument("--d-sae", type=int, required=True)
    parser.add_argument("--mean-square-norm", type=float, help="of the scaled activations; d_in if not given")
    parser.add_argument("--lr-warmup-steps", type=int, help="see default_warmups")
    parser.add_argument("--lr-decay-steps", type=int, help="last fifth of the run if not given")
    parser.add_argument("--sparsity-warmup-steps", type=int, help="see default_warmups")
    parser.add_argument("--threads", type=int, help="torch threads; torch's own choice if not given")
    args = parser.parse_args()
    if args.steps < 1 or args.d_sae < 1:
        parser.error(f"--steps {args.steps} and --d-sae {args.d_sae} must be at least 1")
    if args.mean_square_norm is not None and args.mean_square_norm <= 0:
        parser.error(f"--mean-square-norm {args.mean_square_norm} must be positive")
    return args


def runs(args: argparse.Namespace, d_in: int) -> list[Run]:
    """Every combination of the arms, learning rates, coefficients and seeds asked for."""
    planned = []
    for arm, lr, coef, seed in itertools.product(args.arm, args.lr, args.coef, args.seed):
        lr_warmup, sparsity_warmup = default_warmups(arm, args.steps)
        planned.append(
            Run(
                arm=arm,
                lr=lr,
                coef=coef,
                seed=seed,
                steps=args.steps,
                batch_size=args.batch_size,
                d_sae=args.d_sae,
                mean_square_norm=float(d_in) if args.mean_square_norm is None else args.mean_square_norm,
                lr_warmup_steps=lr_warmup if args.lr_warmup_steps is None else args.lr_warmup_steps,
                lr_decay_steps=args.steps // 5 if args.lr_decay_steps is None else args.lr_decay_steps,
                sparsity_warmup_steps=(
                    sparsity_warmup if args.sparsity_warmup_steps is None else args.sparsity_warmup_steps
                ),
            )
        )
    return planned


def main() -> None:
    """Train and measure every run, appending each line as soon as it is known."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    train, held_out = load_activations(args.activations)
    d_in = train.shape[1]
    for run in runs(args, d_in):
        scale = scale_to(train, run.mean_square_norm)
        package = ARMS[run.arm]
        trained = TRAINERS[package](run, train, scale)
        quality = measure(trained.encode, trained.decode, held_out * scale)
        row = {
            **asdict(run),
            "d_in": d_in,
            **quality._asdict(),
            "train_seconds": round(trained.seconds, 2),
            "activations": args.activations.name,
            "train_rows": len(train),
            "held_out_rows": len(held_out),
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                package: version(package),
            },
        }
        append_line(args.out, row)
        shown = ("arm", "lr", "coef", "seed", *quality._fields, "train_seconds")
        logger.info("%s", {key: row[key] for key in shown})


if __name__ == "__main__":
    main()
