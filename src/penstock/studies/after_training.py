"""The paper's experiments on SAEs that are already trained: each a function from a finished run to records.

pursuit       inference-time optimisation: the encoder replaced by gradient pursuit (appendix A)
pruning       low activations dropped at inference: does it close the baseline's gap? (section 7, left open there)
refit         magnitudes refitted behind a frozen gate: is it enough to fix shrinkage? (section 5.2)

The records are measured on the run's own held-out tokens, so they stand beside those of its records.jsonl. The sums
behind them are left in RUN/studies/NAME/sums.safetensors, from which `series.py` compares them with the run's arms.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from penstock.evaluation.evaluate import Candidate
from penstock.evaluation.measuring import Described
from penstock.evaluation.sums import SUMS_FILE, write_sums
from penstock.formats.native import load_sae, read_facts, save_sae
from penstock.posthoc.gradient_pursuit import pursued
from penstock.posthoc.refitting import RefitConfig, fine_tune, rescale_and_shift
from penstock.posthoc.thresholds import (
    best_scale,
    global_threshold,
    optimal_thresholds,
    pruned,
    quantile_thresholds,
    threshold_for_l0,
)
from penstock.runs.finished_run import FinishedRun
from penstock.saes import SAE, trainable
from penstock.shapes import Acts, PerLatent
from penstock.studies.study_records import Record, asked, study_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PursuitConfig:
    num_latents: tuple[int, ...] = (4, 8, 16, 32)
    """Latents per token that pursuit may use, one candidate each for every SAE of the run."""

    def __post_init__(self) -> None:
        if not self.num_latents or min(self.num_latents) < 1:
            raise ValueError(
                f"num_latents={self.num_latents} is out of range: give one number or more, each at least 1."
            )


def pursuit(run: FinishedRun, config: PursuitConfig) -> list[Record]:
    """Every decoder of the run with its encoder replaced by gradient pursuit, at each number of latents."""

    def made() -> Iterator[Described]:
        for name, sae in run.saes.items():
            series = f"pursuit on the decoder {_aim(run.about[name])}"
            for num_latents in config.num_latents:
                new = f"{name}-pursuit_{num_latents}"
                about = _about(run, name, new, series=series, curve=series, num_latents=num_latents)
                yield Described(pursued(new, run.about[name]["site"], sae, num_latents), about)

    return measured_records(run, "pursuit", made())


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    quantiles: tuple[float, ...] = (0.25, 0.5)
    """Share of each latent's activations that is dropped."""
    l0_shares: tuple[float, ...] = (0.75, 0.5)
    """Mean L0 that one threshold for all latents leaves, as a share of the SAE's own."""
    prices: tuple[float, ...] = (0.5, 1.0, 2.0)
    """What a firing latent costs where thresholds are optimised, in units of the SAE's squared error per firing latent:
    a firing is kept if it saves more error than it costs."""
    archs: tuple[str, ...] = ("relu", "gated")
    """Architectures whose SAEs are pruned; Gated ones are the control."""
    fit_tokens: int = 50_000
    """Training activations on which thresholds and scales are fitted."""

    def __post_init__(self) -> None:
        for name, values, fits, allowed in (
            ("quantiles", self.quantiles, lambda value: 0 < value < 1, "above 0, below 1"),
            ("l0_shares", self.l0_shares, lambda value: 0 < value <= 1, "above 0, up to 1"),
            ("prices", self.prices, lambda value: 0 <= value < float("inf"), "0 or more"),
            ("archs", self.archs, trainable().__contains__, ", ".join(trainable())),
        ):
            wrong = [value for value in values if not fits(value)]
            if wrong:
                raise ValueError(f"{name}={wrong[0]} is out of range: allowed is {allowed}.")
        _check_fit_tokens(self.fit_tokens)


def pruning(run: FinishedRun, config: PruningConfig) -> list[Record]:
    """SAEs of the run without their low activations, by three rules, with and without rescaling.

    Raises:
        ValueError: the run has no SAE of these architectures, or no rule is asked for.
    """
    names = [name for name in run.saes if run.about[name]["arch"] in config.archs]
    if not names or not (config.quantiles or config.l0_shares or config.prices):
        archs = sorted({str(about["arch"]) for about in run.about.values()})
        raise ValueError(
            f"There is nothing to prune: {run.folder} has SAEs of {', '.join(archs)}, asked for are "
            f"{', '.join(config.archs) or 'none'}. Change --archs, and name a quantile, an L0 share or a price."
        )
    acts = run.activations(config.fit_tokens)

    def made() -> Iterator[Described]:
        for name in names:
            yield from _pruned(run, name, acts[run.about[name]["site"]], config)

    return measured_records(run, "pruning", made())


def _pruned(run: FinishedRun, name: str, x: Acts, config: PruningConfig) -> Iterator[Described]:
    """One SAE in every way of pruning."""
    sae = run.saes[name]
    for rule, strength, thresholds in _thresholds(sae, x, config):
        for scaled in (False, True):
            scale = best_scale(sae, x, thresholds) if scaled else 1.0
            rescaled = ", rescaled" if scaled else ""
            new = f"{name}-{rule}_{strength:g}{'-rescaled' if scaled else ''}"
            about = _about(
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
    """Rule, strength and thresholds of every pruning."""
    code = sae.encode_sparse(x)
    l0 = code.l0.double().mean().item()
    for quantile in config.quantiles:
        yield "quantile", quantile, quantile_thresholds(code, quantile)
    for share in config.l0_shares:
        yield "global", share, global_threshold(sae, threshold_for_l0(code, share * l0))
    error = (sae.decode_sparse(code) - x).double().square().sum().item() / len(x)
    for price in config.prices:
        yield "optimal", price, optimal_thresholds(sae, x, price * error / max(l0, 1e-12))


METHODS = {"rescale_and_shift": rescale_and_shift, "fine_tune": fine_tune}
"""How magnitudes are refitted, by name."""


@dataclass(frozen=True, kw_only=True)
class RefitStudyConfig:
    refit: RefitConfig = field(default_factory=RefitConfig)
    archs: tuple[str, ...] = ("relu", "gated")
    """Architectures whose SAEs are refitted; Gated ones are the control."""
    fit_tokens: int = 500_000
    """Training activations on which magnitudes are refitted. `loss_before` and `loss_after` are of those held back, on
    which the SAE was trained, though; whether they were enough, FVU on the held-out tokens says."""

    def __post_init__(self) -> None:
        wrong = [arch for arch in self.archs if arch not in ("relu", "gated")]
        if wrong:
            raise ValueError(f"archs={wrong[0]} cannot be refitted: allowed are relu, gated.")
        _check_fit_tokens(self.fit_tokens)


def refit(run: FinishedRun, config: RefitStudyConfig) -> list[Record]:
    """SAEs of the run with rescaled and shifted magnitudes, and fine-tuned; saved in `studies/refit/saes`.

    Of the baselines those that have the width of a Gated SAE at their site, or all if none has. What an interrupted
    study with the same settings has saved is not fitted again.

    Raises:
        ValueError: the run has no SAE of these architectures.
    """
    chosen = _to_refit(run, config.archs)
    if not chosen:
        raise ValueError(
            f"{run.folder} has no SAE to refit among {', '.join(config.archs) or 'no architecture'}: name another "
            "with --archs, or train one."
        )
    acts = run.activations(config.fit_tokens)
    digest = hashlib.sha256(asked(run.folder, config).encode()).hexdigest()
    _make_room(study_folder(run.folder, "refit"), {f"{name}-{method}" for name, method in product(chosen, METHODS)})

    def made() -> Iterator[Described]:
        for number, (name, method) in enumerate(product(chosen, METHODS), start=1):
            new, site = f"{name}-{method}", run.about[name]["site"]
            folder = study_folder(run.folder, "refit") / "saes" / new
            if not _is_saved(folder, digest):
                logger.info("Refitting %d of %d: %s", number, len(chosen) * len(METHODS), new)
                refitted = METHODS[method](run.saes[name], acts[site], config.refit)
                losses = {"loss_before": refitted.loss_before, "loss_after": refitted.loss_after}
                save_sae(refitted.sae, folder, {**run.metadata[name], "name": new, "asked": digest, **losses})
            sae, saved = load_sae(folder, device=run.config.language_model.device)
            losses = {key: saved[key] for key in ("loss_before", "loss_after")}
            series = method.replace("_", " ")
            about = _about(run, name, new, series=series, curve=series, method=method, **losses)
            yield Described(Candidate.of(new, site, sae), about)

    return measured_records(run, "refit", made())


def _make_room(folder: Path, wanted: set[str]) -> None:
    """Before SAEs of an earlier study are replaced: its settings no longer vouch for them, and others than these go."""
    (folder / "settings.json").unlink(missing_ok=True)
    for saved in (folder / "saes").glob("*"):
        if saved.name not in wanted:
            shutil.rmtree(saved)


def _to_refit(run: FinishedRun, archs: Sequence[str]) -> list[str]:
    arch = {name: run.about[name]["arch"] for name in run.saes}
    size = {name: (run.about[name]["site"], run.about[name]["d_sae"]) for name in run.saes}
    gated_sizes = {size[name] for name in arch if arch[name] == "gated"}
    baselines = {name for name in arch if arch[name] == "relu"}
    matched = {name for name in baselines if size[name] in gated_sizes}
    left_out = baselines - matched if matched else set()
    return [name for name in arch if arch[name] in archs and name not in left_out]


def _is_saved(folder: Path, digest: str) -> bool:
    """Whether a study with the same settings has saved this SAE."""
    return (folder / "cfg.json").is_file() and read_facts(folder).metadata.get("asked") == digest


def _check_fit_tokens(fit_tokens: int) -> None:
    if fit_tokens < 1:
        raise ValueError(f"fit_tokens={fit_tokens} is out of range: it must be at least 1.")


def _aim(about: Mapping[str, Any]) -> str:
    """What an SAE was trained for, in words."""
    if about.get("target_l0") is not None:
        return f"trained for L0 {about['target_l0']:g}"
    if about.get("paper_lambda") is not None:
        return f"trained with lambda {about['paper_lambda']:g}"
    return f"trained at coefficient {about['sparsity_coef']:.3g}"


def _about(run: FinishedRun, name: str, new: str, **study: Any) -> dict[str, Any]:
    """What the record of a candidate made from an SAE of the run says.

    `of` names that SAE, and `series` what belongs together in a figure. The candidates of one arm and seed with the
    same `curve` differ only in what moves them along the frontier.
    """
    # No target: what is changed after training need not meet it.
    return {**run.about[name], "name": new, "of": name, "target_l0": None, **study, "warnings": []}


def measured_records(run: FinishedRun, study: str, described: Iterable[Described]) -> list[Record]:
    """Records of a study's candidates; their sums are left in its folder."""
    measured = run.measure(described)
    folder = study_folder(run.folder, study)
    folder.mkdir(parents=True, exist_ok=True)
    # The settings of an earlier study vouch for its sums, too: they go first (`stored`).
    (folder / "settings.json").unlink(missing_ok=True)
    write_sums(folder / SUMS_FILE, measured.evaluations)
    return measured.records
