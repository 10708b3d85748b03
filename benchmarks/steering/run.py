"""Does L0 end on its target, and does the warning of convergence tell long runs from short ones?

    python benchmarks/steering/run.py --activations acts.safetensors --out results/steering.jsonl \
        relu:paper_clipped:500:512:32 gated:norm_weighted:2000:256:8

A cell is architecture:recipe:steps:batch size:target L0, or `coef=0.05` in place of a target. Each is one line of
--out. The file of activations is made by benchmarks/recipes/harvest.py.
"""

import argparse
import sys
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from common import Activations, append_line, batches, load_activations, measure, scale_to

from penstock.activations.sources import ActivationCache
from penstock.training.schedules import Schedule
from penstock.training.settings import DataConfig, OptimConfig, RunConfig, SAEConfig
from penstock.training.settings.defaults import PlannedModel
from penstock.training.trainer import SAETrainer

MEASURED_TOKENS = 40_000
"""Training tokens on which the trained SAE is measured, evenly spread over those that it was trained on."""


def make_trainer(sae: SAEConfig, *, steps: int, batch_size: int, d_in: int) -> SAETrainer:
    """A trainer with everything decided as in a run, resampling included."""
    optim = OptimConfig(batch_size=batch_size)
    config = RunConfig(saes=(sae,), optim=optim, data=DataConfig(tokens=steps * batch_size))
    (decided,) = config.resolve(PlannedModel("", 128, {sae.site: d_in})).saes
    schedule = Schedule(
        num_steps=steps,
        warmup=round(optim.warmup_share * steps),
        decay=round(optim.decay_share * steps),
        sparsity_warmup=round(optim.sparsity_warmup_share * steps),
        dips=config.resampling_steps(decided),
        dip_length=min(1000, max(1, steps // 16)),
    )
    return SAETrainer(
        decided,
        schedule,
        d_in=d_in,
        beta2=optim.beta2,
        encoder_precision="float32",
        dead_window=max(1, steps * batch_size // 16),
        encoder_scale=0.2,
        device="cpu",
    )


def train(acts: Activations, validation: Tensor, cell: str, d_sae: int) -> dict[str, object]:
    """Train one cell and measure it."""
    arch, recipe, steps, batch_size, aim = cell.split(":")
    steps, batch_size = int(steps), int(batch_size)
    given = {"sparsity_coef": float(aim[5:])} if aim.startswith("coef=") else {"target_l0": float(aim)}
    sae = SAEConfig(arch=arch, recipe=recipe, site="resid_post.2", d_sae=d_sae, **given)
    trainer = make_trainer(sae, steps=steps, batch_size=batch_size, d_in=acts.train.shape[1])
    scale = scale_to(acts.train, 1.0)
    set_aside = ActivationCache({"here": validation * scale}, seed=0)
    l0s = []
    stream = batches(acts.train, batch_size=batch_size, steps=steps, seed=0, scale=scale)
    for step, x in enumerate(stream):
        if step in trainer.schedule.dips:
            generator = torch.Generator().manual_seed(step)
            candidates = acts.train[torch.randperm(len(acts.train), generator=generator)[:100_000]] * scale
            trainer.resample(candidates, generator)
        compared = set_aside.next_batch(min(batch_size, len(validation)))["here"] if trainer.compares_l0(step) else None
        l0s.append(trainer.step(x, step, compared)["l0"])
    last = l0s[-max(1, steps // 100) :]
    trend = trainer.loss_trend.trend()
    seen = acts.train[: min(len(acts.train), steps * batch_size)]
    stride = max(1, len(seen) // MEASURED_TOKENS)
    quality = {
        name: measure(trainer.sae.encode, trainer.sae.decode, x * scale)._asdict()
        for name, x in (("train", seen[::stride]), ("held_out", acts.held_out))
    }
    return {
        "cell": cell,
        "d_sae": d_sae,
        "train_tokens": len(acts.train),
        "l0_last_steps": sum(last) / len(last),
        "sparsity_coef": trainer.trained_coef,
        "validation_l0_ratio": trainer.controller.validation_ratio if trainer.controller else None,
        "coef_path": trainer.controller.path if trainer.controller else None,
        **quality,
        "trend": trend._asdict() if trend else None,
        "warnings": trainer.warnings(),
        "date": date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activations", type=Path, required=True)
    parser.add_argument("--train-tokens", type=int, help="Use only so many of the training activations.")
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("cells", nargs="+")
    options = parser.parse_args()
    acts = load_activations(options.activations)
    validation = load_file(options.activations)["validation"]
    acts = acts._replace(train=acts.train[: options.train_tokens])
    for cell in options.cells:
        row = train(acts, validation, cell, options.d_sae)
        append_line(options.out, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
