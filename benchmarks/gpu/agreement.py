"""Does training on a GPU agree with training on the CPU, and each kernel with its definition in float64?

    python benchmarks/gpu/agreement.py

Kernels run at sizes of real use and at awkward ones against `kernels/reference.py` in float64 on the CPU. Then every
architecture and recipe takes the same steps on both devices, from the same weights and batches; printed are the
relative differences of the loss at the end and of the decoder.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from penstock.kernels import reference
from penstock.sparse import SparseCode, Support

sys.path.append(f"{__file__.rsplit('/', 2)[0]}/engine")
from common import print_table  # noqa: E402

SHAPES = ((1, 1, 1), (1, 768, 3), (7, 21, 300), (4096, 768, 16384), (1000, 2304, 30000), (5, 2304, 70000))
"""batch, d_in, d_sae."""


def support_of(batch: int, d_sae: int, generator: torch.Generator) -> Support:
    """Pairs at random: an empty row, a full row, and a latent that fires on every other token."""
    share = min(0.3, 64 / d_sae)
    acts = torch.zeros(batch, d_sae)
    picked = max(1, round(share * d_sae))
    columns = torch.randint(d_sae, (batch, picked), generator=generator)
    acts.scatter_(1, columns, 1.0)
    acts[:, d_sae // 2] = 1
    acts[batch // 2] = 0
    acts[0, : min(d_sae, 70_000)] = 1
    return SparseCode.from_dense(acts).support


def errors(shape: tuple[int, int, int], device: str) -> Iterator[tuple[str, float]]:
    """Each kernel's relative error in norm on one shape."""
    from penstock.kernels import cuda

    batch, d_in, d_sae = shape
    generator = torch.Generator().manual_seed(batch + d_in + d_sae)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    support = support_of(batch, d_sae, generator)
    there = Support(support.offsets.to(device), support.indices.to(device), d_sae)
    W, x, bias = normal(d_sae, d_in) / d_in**0.5, [normal(batch, d_in) for _ in range(2)], normal(d_in)
    codes = [normal(len(support.indices)) for _ in range(2)]

    def both(name: str, *arguments: Any) -> tuple[str, float]:
        def moved(value: Any, to: Any) -> Any:
            if isinstance(value, list):
                return [moved(one, to) for one in value]
            return to(value) if isinstance(value, Tensor) and value.is_floating_point() else value

        exact = getattr(reference, name)(support, *moved(list(arguments), Tensor.double))
        found = getattr(cuda, name)(there, *moved(list(arguments), lambda tensor: tensor.to(device)))
        pairs = zip(found, exact, strict=True) if isinstance(found, list) else [(found, exact)]
        return name, max(relative(one, other) for one, other in pairs)

    yield both("decode", codes, W, bias)
    yield both("value_gradients", x, W)
    yield both("weight_gradient", codes, x)
    yield both("sum_by_latent", codes[0])
    cut = torch.full((d_sae,), 2.0)
    for factors in (None, torch.bfloat16):
        code = cuda.select(x[0].to(device), W.to(device).T, cut.to(device), factors)
        given = [x[0], W] if factors is None else [x[0].to(factors), W.to(factors)]
        dense = given[0].double() @ given[1].double().T
        exact = torch.where(dense > 2, dense, 0)
        found = code.to_dense().cpu().double()
        edge = (dense - 2).abs() < 1e-4  # a rounding error may decide there
        yield f"select {factors or 'float32'}", relative(found.masked_fill(edge, 0), exact.masked_fill(edge, 0))


def relative(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact| in float64; infinite where found is not finite."""
    difference = float((found.cpu().double() - exact).norm() / exact.norm().clamp(min=1e-30))
    return difference if difference == difference else float("inf")


def trained(arch: str, recipe: str, device: str, precision: str, steps: int) -> tuple[float, Tensor]:
    """The loss of the last ten steps, and the decoder, of a small SAE on planted features."""
    from penstock.kernels.dispatch import forced
    from penstock.training.schedules import Schedule
    from penstock.training.trainer import SAETrainer

    trainer: Any = make_trainer(SAETrainer, Schedule, arch, recipe, device, precision, steps)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(96, 64, generator=generator)
    features /= features.norm(dim=1, keepdim=True)
    losses = []
    for step in range(steps):
        acts = torch.relu(torch.randn(512, 96, generator=generator) - 1.5)
        x = (acts @ features).to(device)
        if device == "cpu":
            losses.append(trainer.step(x, step)["loss"])
        else:
            with forced("cuda"):
                losses.append(trainer.step(x, step)["loss"])
    return sum(losses[-10:]) / 10, trainer.sae.W_dec.detach().cpu()


def make_trainer(trainer: Any, schedule: Any, arch: str, recipe: str, device: str, precision: str, steps: int) -> Any:
    """A trainer of 256 latents with fixed settings."""
    from penstock.training.settings import SAEConfig

    unit = recipe in ("paper", "paper_clipped")
    config = SAEConfig(
        arch=arch, site="toy", d_sae=256, recipe=recipe, sparsity_coef=0.05, lr=1e-3, beta1=0.0,
        optimiser="latent_adam", grad_clip=1.0, decoder_init_norm=1.0 if unit else 0.3,
    )  # fmt: skip
    return trainer(
        config,
        schedule(num_steps=steps, warmup=10, decay=20, sparsity_warmup=10),
        d_in=64,
        beta2=0.999,
        encoder_precision=precision,
        dead_window=10**6,
        encoder_scale=0.2,
        device=device,
    )


def main() -> None:
    """Print both tables; fail where a difference is more than rounding explains."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--dry", action="store_true", help="toy sizes on the CPU")
    args = parser.parse_args()
    device = "cpu" if args.dry else "cuda"
    shapes, steps = (SHAPES[:3], 5) if args.dry else (SHAPES, 200)
    wrong = []
    rows = []
    for shape in shapes:
        for name, error in errors(shape, device):
            rows.append([str(shape), name, f"{error:.2e}"])
            if not error < 1e-5:
                wrong.append(f"{name} at {shape}: {error:.2e}")
    print_table(["batch, d_in, d_sae", "kernel", "relative error"], rows)
    rows = []
    for arch, recipe in (
        ("gated", "paper_clipped"),
        ("gated", "norm_weighted"),
        ("relu", "paper_clipped"),
        ("relu", "norm_weighted"),
    ):
        loss, W_dec = trained(arch, recipe, "cpu", "float32", steps)
        for precision, allowed in (("float32", 5e-3), ("bfloat16", 2e-2)):
            other, other_W = trained(arch, recipe, device, precision, steps)
            by_loss, by_W = abs(other / loss - 1), relative(other_W, W_dec.double())
            rows.append([arch, recipe, precision, f"{loss:.6g}", f"{by_loss:.2e}", f"{by_W:.2e}"])
            if not by_loss < allowed:
                wrong.append(f"training {arch} {recipe} {precision}: loss {other} beside {loss}")
    print_table(["arch", "recipe", "encoder", f"loss after {steps} steps", "loss differs", "W_dec differs"], rows)
    print("\n".join(wrong) or "all agree")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
