"""One training run of any arm on cached activations: its seconds, and what the SAE is worth on held-out tokens."""

# The peers live in their own environment, not in the one that type-checks this project.
# pyright: reportMissingImports=false

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from common import Activations, batches, scale_to  # noqa: E402
from peers import ARMS, TRAINERS, Run, Trained, default_warmups  # noqa: E402
from penstock_arms import make_trainer  # noqa: E402

from penstock.activations.harvest import Text  # noqa: E402
from penstock.evaluation.evaluate import Candidate, evaluate  # noqa: E402
from penstock.language_models.loading import LanguageModel  # noqa: E402
from penstock.metrics import metrics_of  # noqa: E402
from penstock.sparse import SparseCode  # noqa: E402
from penstock.training.settings import OptimConfig, SAEConfig  # noqa: E402
from penstock.training.trainer import DivergenceError  # noqa: E402

SITE = "resid_post.2"
"""Site of the embedded model."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of one run; they are the first keys of its line in the results."""

    setting: str
    """`small` or `large`."""
    arm: str
    """`penstock-gated`, `penstock-relu`, or a peer's arm."""
    lr: float | None
    """Peak learning rate; None is penstock's rule."""
    knob: float
    """What is turned to move L0: penstock's target_l0, a peer's sparsity coefficient."""
    steps: int
    batch_size: int
    d_sae: int


class Judge:
    """Splices reconstructions into the embedded model on a fixed set of held-out tokens."""

    def __init__(self, num_tokens: int) -> None:
        self.model = LanguageModel.load("embedded")
        text = Text(model=self.model, source="embedded", text_field="text", context=256, packing="packed")
        self.rows = text.held_out(num_tokens, seed=0)

    def measure(self, trained: Trained, scale: float, d_sae: int) -> dict[str, float | None]:
        """Held-out quality of an SAE that was trained on `scale` times the activations; None where not finite."""
        candidate = Candidate(
            name="sae",
            site=SITE,
            d_in=self.model.d_in(SITE),
            encode=lambda x: SparseCode.from_dense(trained.encode(x * scale)),
            decode=lambda code: trained.decode(code.to_dense()) / scale,
            decoder_norm=torch.ones(d_sae),
        )
        sums = evaluate(self.model, self.rows, [candidate])["sae"].sums
        metrics = metrics_of({name: value.sum() for name, value in sums.items()})
        kept = ("l0", "fvu", "loss_recovered", "reconstruction_bias")
        return {name: float(metrics[name]) if metrics[name].isfinite() else None for name in kept}


def run(job: Job, acts: Activations, judge: Judge) -> dict[str, Any]:
    """Train and measure one SAE.

    `cpu_seconds` is the processor's time for making the SAE and for all its steps, drawing batches included, on one
    thread: other work on the machine lengthens `wall_seconds`, hardly this.
    """
    d_in = acts.train.shape[1]
    is_peer = job.arm in ARMS
    # Each library's own convention: dictionary_learning and SAELens at norm sqrt(d_in), penstock at 1.
    scale = scale_to(acts.train, float(d_in) if is_peer else 1.0)
    train = _peer if is_peer else _penstock
    wall, cpu = time.perf_counter(), time.process_time()
    trained = train(job, acts.train, scale)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    if trained is None:
        quality: dict[str, float | None] = dict.fromkeys(("l0", "fvu", "loss_recovered", "reconstruction_bias"))
    else:
        quality = judge.measure(trained, scale, job.d_sae)
    package = ARMS.get(job.arm, "penstock")
    return {
        **quality,
        "cpu_seconds": round(cpu, 3),
        "wall_seconds": round(wall, 3),
        "train_rows": len(acts.train),
        "held_out_tokens": int(judge.rows.mask.sum()),
        "threads": torch.get_num_threads(),
        "allocator": {name: os.environ[name] for name in os.environ if name.startswith("MALLOC_")},
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "date": date.today().isoformat(),
        "versions": {"torch": torch.__version__, package: version(package)},
    }


def _penstock(job: Job, train: Tensor, scale: float) -> Trained | None:
    """penstock's defaults; None if the run diverged."""
    arch = job.arm.removeprefix("penstock-")
    sae = SAEConfig(arch=arch, site=SITE, d_sae=job.d_sae, target_l0=job.knob, lr=job.lr)
    trainer = make_trainer(sae, OptimConfig(batch_size=job.batch_size), steps=job.steps, d_in=train.shape[1])
    started = time.perf_counter()
    try:
        for step, x in enumerate(
            batches(train, batch_size=job.batch_size, steps=job.steps, seed=sae.seed, scale=scale)
        ):
            trainer.step(x, step)
    except DivergenceError:
        return None
    return Trained(trainer.sae.encode, trainer.sae.decode, time.perf_counter() - started)


def _peer(job: Job, train: Tensor, scale: float) -> Trained:
    """A peer's own trainer (recipes/peers.py), decaying over the last fifth as penstock does."""
    assert job.lr is not None
    lr_warmup, sparsity_warmup = default_warmups(job.arm, job.steps)
    settings = Run(
        arm=job.arm,
        lr=job.lr,
        coef=job.knob,
        seed=0,
        steps=job.steps,
        batch_size=job.batch_size,
        d_sae=job.d_sae,
        mean_square_norm=float(train.shape[1]),
        lr_warmup_steps=lr_warmup,
        lr_decay_steps=job.steps // 5,
        sparsity_warmup_steps=sparsity_warmup,
    )
    trainer: Callable[[Run, Tensor, float], Trained] = TRAINERS[ARMS[job.arm]]
    return trainer(settings, train, scale)
