"""How far a penalty shrinks what fires: the paper's toy, and latents of two SAEs on the same tokens (study 2).

An L1 penalty is paid on every magnitude, so a ReLU SAE reports less of a feature than there is (paper, section 3.1 and
figure 2). A Gated SAE pays on its gate alone. Where both have the same latent, the baseline's is the weaker one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from penstock.evaluation.statistics import interval
from penstock.inspection.agreement import MATCHED
from penstock.inspection.matching import MagnitudeSums, Pairs, magnitude_sums, mutual_nearest
from penstock.metrics import token_terms
from penstock.runs.finished_run import FinishedRun
from penstock.saes import ARCHITECTURES, DECODER_RULES, SAE
from penstock.shapes import Acts
from penstock.sparse import SparseCode
from penstock.studies.shared.pairs import pairs
from penstock.studies.shared.study_records import Record

ARCHS = ("relu", "gated")
"""The baseline, and what it is compared with."""

TOY_STEPS, TOY_RATE = 50, 0.2
"""Gradient descent on the toy, until its error is below 1e-9."""

ROWS = 4096
"""Tokens that are reconstructed at once, in float64."""


@dataclass(frozen=True, kw_only=True)
class ShrinkageConfig:
    toy_coefs: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5)
    """Sparsity coefficients that the toy is trained with."""
    most_apart: float = 1.3
    """Factor between the L0s of two SAEs up to which they are compared."""
    min_together: int = 20
    """Held-out tokens on which two matched latents must both fire to be compared."""
    resamples: int = 500
    """Bootstrap resamples of the latents behind the median's interval."""

    def __post_init__(self) -> None:
        for coef in self.toy_coefs:
            if not 0 <= coef < 2:
                raise ValueError(
                    f"toy_coefs={self.toy_coefs} is out of range at {coef}: allowed is at least 0 and below 2. "
                    "From 2 on the penalty costs more than the toy's feature is worth, and nothing fires."
                )
        if self.most_apart < 1:
            raise ValueError(f"most_apart={self.most_apart} is out of range: it is a factor, at least 1.")
        for name in ("min_together", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is out of range: it must be at least 1.")


def shrinkage(run: FinishedRun, config: ShrinkageConfig) -> list[Record]:
    """Shrinkage in the toy, and of the latents that pairs of SAEs of a run have in common.

    Pairs are a Gated SAE (a) and a ReLU SAE (b) of one seed at nearly equal L0, those of equal width first; then, as
    the yardstick, two seeds of one arm. A latent's `ratio` is sqrt(sum b^2 / sum a^2) over the tokens where both
    fire: below 1, b's is shrunk beside a's. It is the geometric mean of the slope of b on a and the inverse of that of
    a on b, so noise in one of the two does not pull it towards 0.

    Returns:
        `kind` "toy": arch, sparsity_coef, magnitude (trained), exact (of the minimum).
        `kind` "pair": a, b, compared (`arms` or `seeds`), site; l0, arch, recipe, d_sae, seed and gamma (the
        reconstruction bias on the same tokens, None where undefined) of a and b (`l0_a`); latents (pairs of latents
        compared), ratios (4 digits), their median with its 95% bootstrap interval over latents (low, high), q25,
        q75, share_below_1, and the medians of the slopes (slope_b_on_a_median, slope_a_on_b_median). None where no
        latent is compared.
    """
    return [*toy_rows(config.toy_coefs), *_pair_rows(run, config)]


def toy_rows(coefs: tuple[float, ...]) -> list[Record]:
    """The toy of the paper's figure 2 for each architecture and coefficient; all 0 <= coef < 2.

    One feature x = 1, one latent whose decoder row is +1. ReLU minimises (1 - f)^2 + coef f, so f = 1 - coef / 2;
    Gated minimises (1 - f)^2 as long as its gate is open, so f = 1.
    """
    return [
        {
            "kind": "toy",
            "arch": arch,
            "sparsity_coef": coef,
            "magnitude": trained_toy(arch, coef),
            "exact": 1.0 if arch == "gated" else 1 - coef / 2,
        }
        for arch in ARCHS
        for coef in coefs
    ]


def trained_toy(arch: str, coef: float) -> float:
    """The magnitude that an SAE with one latent gives to x = 1 once its encoder is trained by gradient descent."""
    sae = ARCHITECTURES[arch].make_trainable(1, 1).double()
    with torch.no_grad():
        sae.W_dec.fill_(1.0)
        sae.W_enc.fill_(1.0)
    x = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    # b_dec alone could reconstruct x, and the decoder's one row is of unit norm: both stay.
    encoder = [parameter for name, parameter in sae.named_parameters() if name not in ("W_dec", "b_dec")]
    for _ in range(TOY_STEPS):
        gradients = torch.autograd.grad(sae.loss(x, coef, DECODER_RULES["unit"]).total, encoder)
        with torch.no_grad():
            for parameter, gradient in zip(encoder, gradients, strict=True):
                parameter -= TOY_RATE * gradient
    return sae.encode(x).item()


class _Compared(NamedTuple):
    a: str
    b: str
    kind: str
    """`arms` or `seeds`."""


@torch.no_grad()
def _pair_rows(run: FinishedRun, config: ShrinkageConfig) -> list[Record]:
    x = run.held_out_activations()
    at = {name: x[run.about[name]["site"]] for name in run.saes}
    l0 = {name: sae.encode_sparse(at[name]).l0.double().mean().item() for name, sae in run.saes.items()}
    gamma = {name: _gamma(sae, at[name]) for name, sae in run.saes.items()}
    rows = []
    for a, b, kind in _compared(run, l0, config.most_apart):
        sides = {}
        for side, name in (("a", a), ("b", b)):
            about = {key: run.about[name][key] for key in ("arch", "recipe", "d_sae", "seed")}
            sides |= {f"{key}_{side}": value for key, value in (about | {"l0": l0[name], "gamma": gamma[name]}).items()}
        sums = matched_magnitudes(run.saes[a], run.saes[b], at[a])
        found = ratio_summary(sums, config.min_together, config.resamples, seed=run.config.eval.eval_seed)
        rows.append({"kind": "pair", "a": a, "b": b, "compared": kind, "site": run.about[a]["site"], **sides, **found})
    return rows


def _compared(run: FinishedRun, l0: dict[str, float], most_apart: float) -> list[_Compared]:
    """Gated (a) against ReLU (b), equal widths first, then seeds."""

    def found() -> Iterator[_Compared]:
        for a, b, kind in pairs(run, l0, most_apart):
            if kind == "seeds":
                yield _Compared(a, b, kind)
                continue
            by_arch = {run.about[name]["arch"]: name for name in (a, b)}
            # Two arms of one architecture say nothing about the difference between these two.
            if by_arch.keys() == set(ARCHS):
                yield _Compared(by_arch["gated"], by_arch["relu"], kind)

    def widths_differ(pair: _Compared) -> bool:
        return run.about[pair.a]["d_sae"] != run.about[pair.b]["d_sae"]

    return sorted(found(), key=lambda pair: (pair.kind, widths_differ(pair)))


@torch.no_grad()
def matched_magnitudes(sae_a: SAE, sae_b: SAE, x: Acts) -> MagnitudeSums:
    """Sums over the tokens where both fire, for the latents that two SAEs share.

    Latents are matched as in `agreement`: among those that fire on x, mutual nearest with a cosine above MATCHED.
    Magnitudes are in the activations' units, a code times the norm of its decoder row.

    Args:
        sae_a: Any SAE.
        sae_b: Another of the same d_in and dtype.
        x: Held-out activations in the units that both SAEs take.
    """
    code_a, code_b = _in_units(sae_a, x), _in_units(sae_b, x)
    living_a, living_b = (code.firing.nonzero().flatten() for code in (code_a, code_b))
    if not len(living_a) or not len(living_b):
        return magnitude_sums(code_a, code_b, living_a.new_zeros(0, 2))
    mutual = mutual_nearest(sae_a.W_dec[living_a], sae_b.W_dec[living_b])
    of_a, of_b = mutual.pairs[mutual.cosine > MATCHED].T
    matched: Pairs = torch.stack([living_a[of_a], living_b[of_b]], dim=1)
    return magnitude_sums(code_a, code_b, matched)


def ratio_summary(sums: MagnitudeSums, min_together: int, resamples: int, seed: int) -> dict[str, Any]:
    """How much weaker b's latents are than a's, over the pairs that fire together on at least `min_together` tokens.

    The bootstrap is over latents: its interval covers neither the choice of tokens nor the spread between seeds.

    Returns:
        The keys of `shrinkage` from `latents` on.
    """
    enough = sums.tokens >= min_together
    ab, aa, bb = (values[enough] for values in (sums.ab, sums.aa, sums.bb))
    ratios = (bb / aa).sqrt()
    low, high = _median_interval(ratios, resamples, seed)
    return {
        "latents": len(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios.tolist()],
        "median": _quantile(ratios, 0.5),
        "low": low,
        "high": high,
        "q25": _quantile(ratios, 0.25),
        "q75": _quantile(ratios, 0.75),
        "share_below_1": (ratios < 1).double().mean().item() if len(ratios) else None,
        "slope_b_on_a_median": _quantile(ab / aa, 0.5),
        "slope_a_on_b_median": _quantile(ab / bb, 0.5),
    }


def _median_interval(
    values: Float[Tensor, " latents"], resamples: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    if not len(values):
        return None, None
    generator = np.random.default_rng(seed)
    # One resample at a time: all of them at once would not fit for a large dictionary.
    numbers = values.cpu().numpy()
    medians = [np.median(generator.choice(numbers, len(numbers))) for _ in range(resamples)]
    return interval(torch.tensor(medians, dtype=torch.float64, device="cpu")) or (None, None)


def _quantile(values: Float[Tensor, " latents"], share: float) -> float | None:
    return values.quantile(share).item() if len(values) else None


def _in_units(sae: SAE, x: Acts) -> SparseCode:
    acts = sae.encode_sparse(x)
    return SparseCode(acts.support, acts.values * sae.W_dec.norm(dim=1)[acts.support.indices]).nonzero()


def _gamma(sae: SAE, x: Acts) -> float | None:
    """The reconstruction bias on these activations (paper, equation 10)."""
    mean = x.double().mean(dim=0)
    parts = [token_terms(rows, sae(rows), mean) for rows in x.split(ROWS)]
    square_x_hat, dot = (sum(part[name].sum().item() for part in parts) for name in ("square_x_hat", "dot"))
    return square_x_hat / dot if dot > 0 else None
