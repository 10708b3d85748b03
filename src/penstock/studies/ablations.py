"""The paper's ablations: the Gated SAEs of a run once more, with one part of the method changed (study 3).

Source: Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, section 5.1 and figure 8, for the first three;
its section 3.2 and an author's comment for what happens without the auxiliary task; the authors' reply on penalties
weighted by decoder norms for the two consistent recipes and for the mixture, which only this study trains.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from penstock.runs.finished_run import FinishedRun
from penstock.saes.gated import GATED
from penstock.studies.shared.declaration import Study
from penstock.studies.shared.measured_saes import measured_records
from penstock.studies.shared.study_records import Record
from penstock.studies.shared.variants import CoefOf, Variant, train_variants
from penstock.training.settings import ResolvedRun, ResolvedSAE, SAEConfig


def _with_recipe(recipe: str) -> Callable[[ResolvedSAE], SAEConfig]:
    """The same SAE with another recipe, and the optimiser settings that belong to that."""
    own = dict.fromkeys(("beta1", "optimiser", "grad_clip", "decoder_init_norm", "resample_at"))
    return lambda sae: sae.asked(recipe=recipe, **own)


def _with_arch(arch: str) -> Callable[[ResolvedSAE], SAEConfig]:
    return lambda sae: replace(sae, arch=arch)


ABLATIONS: dict[str, Callable[[ResolvedSAE], SAEConfig]] = {
    # All else as it was, so that nothing but the stopped gradient differs.
    "auxiliary_unfrozen": lambda sae: replace(sae, recipe="auxiliary_unfrozen"),
    "no_r_mag": _with_arch("gated_no_r_mag"),
    "untied": _with_arch("gated_untied"),
    "no_auxiliary": _with_arch("gated_no_auxiliary"),
    "norm_weighted": _with_recipe("norm_weighted"),
    "norm_weighted_frozen": _with_recipe("norm_weighted_frozen"),
    "inconsistent_mixture": _with_recipe("inconsistent_mixture"),
}
"""By name what becomes of the settings of a Gated SAE."""


@dataclass(frozen=True, kw_only=True)
class AblationsConfig:
    ablations: tuple[str, ...] = tuple(ABLATIONS)
    """What is changed, one thing at a time."""
    target_l0s: tuple[float, ...] = ()
    """Which of the run's Gated SAEs are trained once more, by their target L0; all of them if empty."""

    def __post_init__(self) -> None:
        for name in self.ablations:
            if name not in ABLATIONS:
                raise ValueError(f"ablations={name} is not known: it must be one of {', '.join(ABLATIONS)}.")


def ablations(run: FinishedRun, config: AblationsConfig) -> list[Record]:
    """Every Gated SAE of the run with unit decoder rows trained once more for each ablation, to the same L0.

    What diverges is left out.

    Raises:
        ValueError: the run has no Gated SAE, or none with such a target.
        DivergenceError: everything diverged.
    """
    variants = ablation_variants(run.config, config, run.coef_of)
    of = {variant.sae.folder: (variant.of, variant.change) for variant in variants}
    trained = train_variants(run, "ablations", [variant.sae for variant in variants])
    described = (one._replace(about=_about(one.about, *of[one.about["name"]])) for one in trained.described())
    return measured_records(run, "ablations", described)


def ablation_variants(run: ResolvedRun, config: AblationsConfig, coef_of: CoefOf) -> list[Variant]:
    """What the study trains, each with its ablation as the change.

    Without the auxiliary task nothing holds the gate open, and a steered coefficient would only follow it down: that
    ablation has the coefficient that its Gated SAE ended with.

    Raises:
        ValueError: the run has no Gated SAE, or none with such a target.
    """
    wanted = [sae for sae in run.saes if sae.arch == GATED.name and sae.rule.decoder_norm == "unit"]
    wanted = [sae for sae in wanted if not config.target_l0s or sae.target_l0 in config.target_l0s]
    if not wanted:
        raise ValueError(
            f"The run has no Gated SAE with unit decoder rows{_with_target(config)}, so there is nothing to change. "
            "Train one (--recipes paper or paper_clipped), or name other --target-l0s."
        )
    found = []
    for name in config.ablations:
        for sae in wanted:
            changed = replace(ABLATIONS[name](sae), name=f"{sae.folder}-{name}")
            if name == "no_auxiliary":
                changed = replace(changed, target_l0=None, paper_lambda=None, sparsity_coef=coef_of(sae.folder))
            found.append(Variant(changed, sae.folder, name))
    return found


def _about(own: Mapping[str, Any], base: str, ablation: str) -> dict[str, Any]:
    words = ablation.replace("_", " ").replace("r mag", "r_mag")
    return {**own, "of": base, "series": words, "curve": words, "ablation": ablation}


def _with_target(config: AblationsConfig) -> str:
    return f" and target L0 {' or '.join(f'{target:g}' for target in config.target_l0s)}" if config.target_l0s else ""


STUDY = Study(
    name="ablations",
    title="Ablations",
    question="Which parts of the method matter? Trains the run's Gated SAEs once more with one part changed.",
    source="section 5.1, figure 8",
    reading="The Gated SAEs trained once more with one part of the method changed (paper, figure 8). The inconsistent "
    "mixture (penalty weighted by norms that pass a gradient, decoder frozen in the auxiliary task) is what the "
    "paper's authors warn against. Without the auxiliary task the coefficient is the one that the Gated SAE ended "
    "with; all others are steered to its L0.",
    settings=AblationsConfig,
    records=ablations,
    measures_saes=True,
    trains=ablation_variants,
)
