"""Train penstock's arms on the same cached activations as peers.py, and measure them with the same lines.

    python penstock_arms.py --activations acts.safetensors --arch gated --recipe norm_weighted \
        --lr 3e-3 1e-2 --coef 0.15 0.3 --steps 5000 --batch-size 1024 --d-sae 1024 --out results.jsonl

Every combination of --lr, --coef (or --target-l0) and --seed is
 one run and one line of --out. Activations are scaled to unit
mean squared norm. What is left out takes penstock's default for the recipe, and `--lr rule` penstock's rule.
"""

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import Activations, append_line, batches, load_activations, measure, scale_to

from penstock.saes import trainable
from penstock.training.schedules import Schedule
from penstock.training.settings import OptimConfig, SAEConfig
from penstock.training.settings.defaults import PlannedModel
from penstock.training.settings.sae_config import resolve_sae
from penstock.training.trainer import DivergenceError, SAETrainer


def make_trainer(sae: SAEConfig, optim: OptimConfig, *, steps: int, d_in: int) -> SAETrainer:
    """A trainer for `steps` batches of unit mean squared norm, what the settings leave open decided as in a run."""
    schedule = Schedule(
        num_steps=steps,
        warmup=round(optim.warmup_share * steps),
        decay=round(optim.decay_share * steps),
        sparsity_warmup=round(optim.sparsity_warmup_share * steps),
    )
    return SAETrainer(
        resolve_sae(sae, PlannedModel("", 1, {sae.site: d_in}), num_steps=steps, warmup_share=optim.warmup_share),
        schedule,
        d_in=d_in,
        beta2=optim.beta2,
        dead_window=10**9,
        encoder_scale=0.2,
        encoder_precision="float32",
        device="cpu",
    )


def train_one(acts: Activations, sae: SAEConfig, options: argparse.Namespace) -> dict[str, object]:
    """Train one SAE for `options.steps` steps and measure it on the held-out activations."""
    optim = OptimConfig(
        batch_size=options.batch_size,
        warmup_share=options.warmup_share,
        decay_share=options.decay_share,
        sparsity_warmup_share=options.sparsity_warmup_share,
        beta2=options.beta2,
    )
    d_in = acts.train.shape[1]
    trainer = make_trainer(sae, optim, steps=options.steps, d_in=d_in)
    decided = trainer.config
    scale = scale_to(acts.train, 1.0)
    stream = batches(acts.train, batch_size=options.batch_size, steps=options.steps, seed=sae.seed, scale=scale)
    started = time.perf_counter()
    row: dict[str, object] = {
        "arm": f"penstock-{sae.arch}",
        "recipe": sae.recipe,
        "lr": decided.lr,
        "coef": sae.sparsity_coef,
        "target_l0": sae.target_l0,
        "seed": sae.seed,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "d_in": d_in,
        "d_sae": sae.d_sae,
        "beta1": decided.beta1,
        "beta2": optim.beta2,
        "grad_clip": decided.grad_clip,
        "decoder_init_norm": decided.decoder_init_norm,
        "warmup_share": optim.warmup_share,
        "sparsity_warmup_share": optim.sparsity_warmup_share,
    }
    try:
        for step, x in enumerate(stream):
            trainer.step(x, step)
    except DivergenceError as error:
        return row | {"diverged": str(error)}
    seconds = round(time.perf_counter() - started, 2)
    row["coef"] = trainer.sparsity_coef
    row["train_l0"] = trainer.controller.smoothed if trainer.controller else None
    quality = measure(trainer.sae.encode, trainer.sae.decode, acts.held_out * scale)
    return row | quality._asdict() | {"train_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activations", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arch", choices=sorted(trainable()), required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--lr", nargs="+", required=True, help="learning rates, or `rule`")
    aims = parser.add_mutually_exclusive_group(required=True)
    aims.add_argument("--coef", nargs="+", type=float, default=[])
    aims.add_argument("--target-l0", nargs="+", type=float, default=[])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--beta1", type=float)
    parser.add_argument("--beta2", type=float, default=0.999)
    parser.add_argument("--grad-clip", type=float)
    parser.add_argument("--decoder-init-norm", type=float)
    parser.add_argument("--warmup-share", type=float, default=0.05)
    parser.add_argument("--decay-share", type=float, default=0.2)
    parser.add_argument("--sparsity-warmup-share", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    acts = load_activations(options.activations)
    pairs = [*((coef, None) for coef in options.coef), *((None, target) for target in options.target_l0)]
    for lr, (coef, target), seed in itertools.product(options.lr, pairs, options.seed):
        sae = SAEConfig(
            arch=options.arch,
            site="cached.output",
            d_sae=options.d_sae,
            recipe=options.recipe,
            sparsity_coef=coef,
            target_l0=target,
            seed=seed,
            beta1=options.beta1,
            grad_clip=options.grad_clip,
            decoder_init_norm=options.decoder_init_norm,
        )
        row = train_one(acts, sae if lr == "rule" else replace(sae, lr=float(lr)), options)
        append_line(options.out, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
