"""Pruning of low activations at inference: does it close the baseline's gap? (an open question in section 7)"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from penstock.evaluation.measuring import Described
from penstock.evaluation.sae_record import Records
from penstock.posthoc.thresholds import (
    best_scale,
    global_threshold,
    optimal_thresholds,
    pruned,
    quantile_thresholds,
    threshold_for_l0,
)
from penstock.runs.finished_run import FinishedRun
from penstock.saes import SAE, baseline_first, trainable
from penstock.shapes import Acts, PerLatent
from penstock.studies.shared.declaration import Study
from penstock.studies.shared.measured_saes import about_changed, check_fit_tokens, measured_records


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    quantiles: tuple[float, ...] = (0.25, 0.5)
    """Shares of each latent's activations to drop, smallest activations first."""
    l0_shares: tuple[float, ...] = (0.75, 0.5)
    """Mean L0s to keep with one threshold for all latents, as shares of the SAE's own L0."""
    prices: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Prices of a firing latent for optimised thresholds, in units of the SAE's squared error per firing latent. An
    activation is kept if it reduces the error by more than its price."""
    archs: tuple[str, ...] = field(default_factory=baseline_first)
    """Architectures whose SAEs are pruned; Gated ones are the control."""
    fit_tokens: int = 50_000
    """Training activations on which thresholds and scales are fitted."""

    def __post_init__(self) -> None:
        for name, values, fits, allowed in (
            ("quantiles", self.quantiles, lambda value: 0 < value < 1, "above 0 and below 1"),
            ("l0_shares", self.l0_shares, lambda value: 0 < value <= 1, "above 0 and at most 1"),
            ("prices", self.prices, lambda value: 0 <= value < float("inf"), "0 or more"),
            ("archs", self.archs, trainable().__contains__, f"one of {', '.join(trainable())}"),
        ):
            wrong = [value for value in values if not fits(value)]
            if wrong:
                raise ValueError(f"{name}={wrong[0]} is out of range: it must be {allowed}.")
        check_fit_tokens(self.fit_tokens)


def pruning(run: FinishedRun, config: PruningConfig) -> Records:
    """Measure SAEs of the run without their low activations, by three rules, with and without rescaling.

    Raises:
        ValueError: the run has no SAE of these architectures, or the settings have no rule.
    """
    names = [name for name in run.saes if run.about[name]["arch"] in config.archs]
    if not names or not (config.quantiles or config.l0_shares or config.prices):
        archs = sorted({str(about["arch"]) for about in run.about.values()})
        raise ValueError(
            f"There is nothing to prune: {run.run_dir} has SAEs of {', '.join(archs)}, and --archs is "
            f"{', '.join(config.archs) or 'empty'}. Change --archs, and give a quantile, an L0 share or a price."
        )
    acts = run.activations(config.fit_tokens)

    def made() -> Iterator[Described]:
        for name in names:
            yield from _pruned(run, name, acts[run.about[name]["site"]], config)

    return measured_records(run, "pruning", made())


def _pruned(run: FinishedRun, name: str, x: Acts, config: PruningConfig) -> Iterator[Described]:
    """One SAE, pruned by every rule with every strength."""
    sae = run.saes[name]
    for rule, strength, thresholds in _thresholds(sae, x, config):
        for scaled in (False, True):
            scale = best_scale(sae, x, thresholds) if scaled else 1.0
            rescaled = ", rescaled" if scaled else ""
            new = f"{name}-{rule}_{strength:g}{'-rescaled' if scaled else ''}"
            about = about_changed(
                run,
                name,
                new,
                series=f"{rule} thresholds{rescaled}",
                curve=f"{rule} thresholds at {strength:g}{rescaled}",
                rule=rule,
                strength=strength,
                rescaled=scaled,
                scale=scale,
            )
            yield Described(pruned(new, run.about[name]["site"], sae, thresholds, scale), about)


def _thresholds(sae: SAE, x: Acts, config: PruningConfig) -> Iterator[tuple[str, float, PerLatent]]:
    """The name of the rule, its strength, and the thresholds of every pruning."""
    code = sae.encode_sparse(x)
    l0 = code.l0.double().mean().item()
    for quantile in config.quantiles:
        yield "quantile", quantile, quantile_thresholds(code, quantile)
    for share in config.l0_shares:
        yield "global", share, global_threshold(sae, threshold_for_l0(code, share * l0))
    error = (sae.decode_sparse(code) - x).double().square().sum().item() / len(x)
    for price in config.prices:
        yield "optimal", price, optimal_thresholds(sae, x, price * error / max(l0, 1e-12))


STUDY = Study(
    name="pruning",
    title="Pruning low activations",
    question="Does dropping low activations at inference close the baseline's gap to Gated SAEs?",
    source="section 7, an open question there",
    reading="Activations below a threshold are dropped at inference. Three rules fit the thresholds on training "
    "activations. The paper leaves open whether this closes the baseline's gap (section 7). Gated SAEs are pruned, "
    "too.",
    settings=PruningConfig,
    records=pruning,
    measures_saes=True,
)
