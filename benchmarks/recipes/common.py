"""What every arm of the recipe comparison shares: the data, the order of the batches, the measurement.

An activations file is a safetensors file with `train` [num_train, d_in] and `held_out` [num_held_out, d_in],
float32, in the units the language model produced. Each arm multiplies them by one constant, measured on
`train`. L0, FVU, gamma and the alive share do not depend on that constant, so the arms compare directly.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

MEASURE_ROWS = 4096


class Activations(NamedTuple):
    """Raw activations of one site: `train` [num_train, d_in] and `held_out` [num_held_out, d_in], float32."""

    train: Tensor
    held_out: Tensor


class Quality(NamedTuple):
    """Quality on held-out activations; None where the value is not a finite number (a diverged run)."""

    l0: float | None
    fvu: float | None
    gamma: float | None
    frac_alive: float | None


def load_activations(path: Path) -> Activations:
    """Read an activations file.

    Args:
        path: safetensors file with keys `train` and `held_out`, float32, of equal width.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key is missing, or the tensors are not two float32 matrices of one width.
    """
    if not path.is_file():
        raise FileNotFoundError(f"activations file {path} does not exist")
    tensors = load_file(path)
    if missing := {"train", "held_out"} - tensors.keys():
        raise ValueError(f"{path} has keys {sorted(tensors)}; it lacks {sorted(missing)}")
    train, held_out = tensors["train"], tensors["held_out"]
    for name, x in (("train", train), ("held_out", held_out)):
        if x.ndim != 2 or x.dtype != torch.float32 or len(x) == 0:
            raise ValueError(f"{name} in {path} is {x.dtype} {list(x.shape)}, not float32 [tokens, d_in]")
    if train.shape[1] != held_out.shape[1]:
        raise ValueError(f"d_in differs in {path}: train {train.shape[1]}, held_out {held_out.shape[1]}")
    return Activations(train, held_out)


def scale_to(train: Tensor, mean_square_norm: float) -> float:
    """The constant c for which c * train has the given mean squared norm per row (float64 sums)."""
    total = sum(float(rows.double().square().sum()) for rows in train.split(MEASURE_ROWS))
    return math.sqrt(mean_square_norm * len(train) / total)


def batches(train: Tensor, *, batch_size: int, steps: int, seed: int, scale: float = 1.0) -> Iterator[Tensor]:
    """The shared batch order: a fresh permutation of all rows per pass, cut into full batches.

    The order depends on `seed`, `batch_size` and the number of rows only, so arms given the same three see
    the same rows at the same step. The rows left over at the end of a pass are skipped for that pass.

    Args:
        train: rows to draw from, at least `batch_size` of them.
        batch_size: rows per batch.
        steps: number of batches to yield.
        seed: seed of the permutations' own generator; global random state is left alone.
        scale: constant each batch is multiplied by.
    """
    if not 1 <= batch_size <= len(train):
        raise ValueError(f"batch_size {batch_size} is outside 1 to {len(train)}, the rows of train")
    generator = torch.Generator().manual_seed(seed)
    per_pass = len(train) // batch_size
    for first_step in range(0, steps, per_pass):
        order = torch.randperm(len(train), generator=generator)
        for rows in order.split(batch_size)[: min(per_pass, steps - first_step)]:
            yield train[rows] * scale


@torch.no_grad()
def measure(encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], held_out: Tensor) -> Quality:
    """Quality of an SAE on held-out activations, from sums over all rows in float64.

    l0 = mean number of latents with f > 0;
    fvu = sum |x - x_hat|^2 / sum |x - mean|^2, with the mean of all rows;
    gamma = sum |x_hat|^2 / sum x . x_hat (1 is unbiased, below 1 is shrinkage);
    frac_alive = share of latents with f > 0 on at least one row.

    Args:
        encode: maps rows to latents, [batch, d_in] to [batch, d_sae].
        decode: maps latents to reconstructions, in the units of the rows.
        held_out: rows in the units the SAE was trained in.
    """
    mean = held_out.mean(dim=0, dtype=torch.float64)
    fired, residual, variance, square, dot = 0, 0.0, 0.0, 0.0, 0.0
    alive: Tensor | None = None
    for x in held_out.split(MEASURE_ROWS):
        f = encode(x)
        active = f > 0
        fired += int(active.sum())
        alive = active.any(dim=0) if alive is None else alive | active.any(dim=0)
        exact, x_hat = x.double(), decode(f).double()
        residual += float((exact - x_hat).square().sum())
        variance += float((exact - mean).square().sum())
        square += float(x_hat.square().sum())
        dot += float((exact * x_hat).sum())
    assert alive is not None  # load_activations refuses an empty held_out
    finite = math.isfinite(residual)
    return Quality(
        l0=fired / len(held_out) if finite else None,
        fvu=residual / variance if finite and variance > 0 else None,
        gamma=square / dot if finite and dot != 0 else None,
        frac_alive=float(alive.double().mean()) if finite else None,
    )


def append_line(path: Path, row: dict[str, object]) -> None:
    """Append one run to a JSON-lines file; NaN and infinity, which JSON cannot hold, are errors."""
    line = json.dumps(row, allow_nan=False)
    with path.open("a") as file:
        file.write(line + "\n")
