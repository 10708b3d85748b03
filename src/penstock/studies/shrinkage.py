"""Shrinkage by the penalty: in the paper's toy model, and for latents that two SAEs share, on the same tokens.

An L1 penalty on magnitudes makes a ReLU SAE underestimate every feature (paper, section 3.1 and figure 2). A Gated SAE
has the penalty only on its gate. So if both have the same latent, the baseline's is the weaker one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from penstock.charts.arm_looks import COLORS, SHAPES, find_arms
from penstock.charts.drawing import MARKERS
from penstock.charts.lines_by_l0 import (
    REFERENCE_LINE,
    Series,
    at_site,
    draw_lines,
    grid,
    legend,
    line_of,
    not_measured,
    pair_series,
    set_ticks,
    sites_of,
)
from penstock.evaluation.sae_record import Records
from penstock.inspection.magnitude_ratios import matched_magnitudes, ratio_summary
from penstock.metrics import token_terms
from penstock.runs.finished_run import FinishedRun
from penstock.saes import ARCHITECTURES, BASELINE, DECODER_RULES, SAE, baseline_first, training_of
from penstock.shapes import Acts
from penstock.studies.shared.declaration import Study, Table, columns
from penstock.studies.shared.pairs import arm_in, pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATIO_TICKS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 5.0, 10.0)

TOY_STEPS, TOY_RATE = 50, 0.2
"""Steps and learning rate of gradient descent on the toy, which bring its error below 1e-9."""

ROWS_AT_ONCE = 4096
"""The number of tokens whose reconstructions are summed at once, in float64."""


@dataclass(frozen=True, kw_only=True)
class ShrinkageConfig:
    toy_coefs: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5)
    """Sparsity coefficients of the toy."""
    most_apart: float = 1.3
    """Largest factor between the L0s of two SAEs that are compared."""
    min_together: int = 20
    """Smallest number of held-out tokens on which two matched latents must both fire to be compared."""
    resamples: int = 500
    """Bootstrap resamples of the latents, for the interval of the median."""

    def __post_init__(self) -> None:
        for coef in self.toy_coefs:
            if not 0 <= coef < 2:
                raise ValueError(
                    f"toy_coefs={self.toy_coefs} is out of range at {coef}: it must be at least 0 and below 2. "
                    "At 2 and above, the penalty outweighs the toy's feature, and nothing fires."
                )
        if self.most_apart < 1:
            raise ValueError(f"most_apart={self.most_apart} is out of range: it must be at least 1.")
        for name in ("min_together", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is out of range: it must be at least 1.")


def shrinkage(run: FinishedRun, config: ShrinkageConfig) -> Records:
    """Shrinkage in the toy, and of the latents that pairs of SAEs of a run have in common.

    A pair is an SAE of another architecture (a) and a baseline (b) of the same seed at nearly equal L0. Two seeds of
    one arm are paired as well, for reference. A latent's ratio is sqrt(sum b^2 / sum a^2) over the tokens where both
    fire. Below 1, b's magnitude is shrunk compared with a's. The ratio is the geometric mean of the slope of b on a and
    the inverse slope of a on b, so noise in one of the two does not pull it towards 0.

    Returns:
        `kind` "toy": arch, sparsity_coef, magnitude (after training), exact (at the minimum).
        `kind` "pair": a, b, compared (`arms` or `seeds`) and site. l0, arch, recipe, d_sae, seed and gamma of a and b,
        such as `l0_a`; gamma is the reconstruction bias on the same tokens, or None if undefined. latents (the number
        of pairs of latents), ratios (4 digits), their median with its 95% bootstrap interval over latents (low, high),
        q25, q75, share_below_1, and the medians of the slopes (slope_b_on_a_median, slope_a_on_b_median). Statistics
        are None if no latents are compared.
    """
    return [*toy_rows(config.toy_coefs), *_pair_rows(run, config)]


def toy_rows(coefs: tuple[float, ...]) -> Records:
    """The toy of the paper's figure 2, for each architecture and each coefficient in [0, 2).

    The toy has one feature x = 1 and one latent f whose decoder row is +1. A ReLU SAE minimises (1 - f)^2 + coef f, so
    f = 1 - coef / 2. A Gated SAE minimises (1 - f)^2 while its gate is open, so f = 1.
    """
    return [
        {
            "kind": "toy",
            "arch": arch,
            "sparsity_coef": coef,
            "magnitude": trained_toy(arch, coef),
            "exact": 1 - coef / 2 if training_of(arch).shrinks_magnitudes else 1.0,
        }
        for arch in baseline_first()
        if "sparsity_coef" in training_of(arch).aims
        for coef in coefs
    ]


def trained_toy(arch: str, coef: float) -> float:
    """The magnitude of an SAE's only latent at x = 1, after its encoder was trained by gradient descent."""
    sae = ARCHITECTURES[arch].make_trainable(1, 1).double()
    with torch.no_grad():
        sae.W_dec.fill_(1.0)
        sae.W_enc.fill_(1.0)
    x = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    # The decoder is fixed: b_dec alone could reconstruct x, and the only row of W_dec has unit norm.
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
def _pair_rows(run: FinishedRun, config: ShrinkageConfig) -> Records:
    x = run.held_out_activations()
    at = {name: x[run.about[name]["site"]] for name in run.saes}
    l0 = {name: sae.encode_sparse(at[name]).l0.double().mean().item() for name, sae in run.saes.items()}
    gamma = {name: _gamma(sae, at[name]) for name, sae in run.saes.items()}
    rows = []
    for a, b, kind in _compared(run, l0, config.most_apart):
        sides = {}
        for side, name in (("a", a), ("b", b)):
            measured = {"seed": run.about[name]["seed"], "l0": l0[name], "gamma": gamma[name]}
            sides |= arm_in(run, name).side_keys(side) | {f"{key}_{side}": value for key, value in measured.items()}
        sums = matched_magnitudes(run.saes[a], run.saes[b], at[a])
        found = ratio_summary(sums, config.min_together, config.resamples, seed=run.config.eval.eval_seed)
        rows.append({"kind": "pair", "a": a, "b": b, "compared": kind, "site": run.about[a]["site"], **sides, **found})
    return rows


def _compared(run: FinishedRun, l0: dict[str, float], most_apart: float) -> list[_Compared]:
    """Pairs of another architecture (a) and the baseline (b), equal widths first, then pairs of seeds."""

    def found() -> Iterator[_Compared]:
        for a, b, kind in pairs(run, l0, most_apart):
            if kind == "seeds":
                yield _Compared(a, b, kind)
                continue
            by_arch = {run.about[name]["arch"]: name for name in (a, b)}
            # Two arms of one architecture do not tell anything about the difference between architectures.
            if BASELINE in by_arch and len(by_arch) == 2:
                baseline = by_arch.pop(BASELINE)
                (arm,) = by_arch.values()
                yield _Compared(arm, baseline, kind)

    def widths_differ(pair: _Compared) -> bool:
        return run.about[pair.a]["d_sae"] != run.about[pair.b]["d_sae"]

    return sorted(found(), key=lambda pair: (pair.kind, widths_differ(pair)))


def _gamma(sae: SAE, x: Acts) -> float | None:
    """The reconstruction bias on these activations (paper, equation 10)."""
    mean = x.double().mean(dim=0)
    parts = [token_terms(rows, sae(rows), mean) for rows in x.split(ROWS_AT_ONCE)]
    square_x_hat, dot = (sum(part[name].sum().item() for part in parts) for name in ("square_x_hat", "dot"))
    return square_x_hat / dot if dot > 0 else None


def draw_shrinkage(records: Records) -> "Figure":
    pairs = [record for record in records if record["kind"] == "pair"]
    figure, axes = grid(max(1, len(sites_of(pairs))), 3, width=11.5)
    _draw_toy(axes[0][0], [record for record in records if record["kind"] == "toy"])
    for ax in axes[1:, 0]:
        ax.set_axis_off()
    for (_, ratios, medians), site in zip(axes, sites_of(pairs) or ["no pair of SAEs"], strict=True):
        series = pair_series(at_site(pairs, site), "compared")
        ratios.set_title(f"Magnitudes of shared latents, {site}")
        _draw_ratios(ratios, series)
        medians.set_title(f"Median ratio, {site}")
        medians.set_ylabel("magnitude ratio b / a")
        median, low, high = (lambda record, key=key: record.get(key) for key in ("median", "low", "high"))
        lines = [line_of(one, median, low, high) for one in series]
        draw_lines(medians, lines)
        if any(line.points for line in lines):
            medians.axhline(1, **REFERENCE_LINE)
    legend(figure, axes[0][1:])
    return figure


def _draw_toy(ax: "Axes", toy: Records) -> None:
    ax.set_title("Toy: one latent, x = 1")
    ax.set_xlabel("sparsity coefficient λ")
    ax.set_ylabel("magnitude")
    if not toy:
        not_measured(ax)
        return
    for arm in find_arms([{"arch": record["arch"]} for record in toy]):
        mine = sorted((r for r in toy if r["arch"] == arm.arch), key=lambda r: r["sparsity_coef"])
        coefs, color = [record["sparsity_coef"] for record in mine], COLORS[arm.slot % len(COLORS)]
        ax.plot(coefs, [record["exact"] for record in mine], color=color, linewidth=1.4, label=f"{arm.label}, exact")
        marker = MARKERS[SHAPES[arm.slot % len(SHAPES)]]
        trained = [record["magnitude"] for record in mine]
        ax.plot(coefs, trained, color=color, linestyle="", marker=marker, label=f"{arm.label}, trained")
    ax.set_ylim(0, 1.12)
    ax.legend(loc="lower left", fontsize=7.5)


def _draw_ratios(ax: "Axes", series: Sequence[Series]) -> None:
    """Draw the cumulative distribution of ratios of each series; the logarithmic axis covers 98% of the latents."""
    ax.set_xlabel("magnitude ratio b / a")
    ax.set_ylabel("share of latents below")
    pooled = [sorted(ratio for record in one.records for ratio in record.get("ratios") or []) for one in series]
    far = sorted(abs(math.log(ratio)) for ratios in pooled for ratio in ratios if ratio > 0)
    if not far:
        not_measured(ax)
        return
    for one, ratios in zip(series, pooled, strict=True):
        shares = [(place + 1) / len(ratios) for place in range(len(ratios))]
        ax.step(ratios, shares, where="post", color=one.color, linestyle=one.dashes, linewidth=1.4)
    reach = max(0.5, far[math.ceil(0.98 * len(far)) - 1])
    ax.set_xscale("log")
    ax.set_xlim(math.exp(-reach), math.exp(reach))
    ax.set_ylim(0, 1)
    set_ticks(ax.xaxis, [tick for tick in RATIO_TICKS if abs(math.log(tick)) <= reach])
    ax.axvline(1, **REFERENCE_LINE)


_COLUMNS = columns(
    *("compared", "a", "b", "l0_a", "l0_b", "gamma_a", "gamma_b", "latents", "median", "low", "high", "q25", "q75"),
    "share_below_1",
)


def _table(records: Records) -> Table:
    """The table of pairs. The toy is only in the figure."""
    return _COLUMNS([record for record in records if record.get("kind") != "toy"])


STUDY = Study(
    name="shrinkage",
    title="Shrinkage",
    question="How much weaker are the baseline's latents than the Gated SAE's, on the same tokens? Includes the "
    "paper's toy with one latent.",
    source="section 3.1, figures 2 and 6",
    reading="A penalty on magnitudes shrinks them: with one latent and one feature by half of the coefficient (paper, "
    "figure 2). Latents that two trained SAEs share are compared on the same tokens. A ratio below 1 means that the "
    "second SAE's latent is the weaker one. Two seeds of one arm are the reference. The figures of the frontier above "
    "show γ against L0.",
    settings=ShrinkageConfig,
    records=shrinkage,
    table=_table,
    figure=draw_shrinkage,
)
