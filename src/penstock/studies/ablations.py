"""The paper's ablations: retrains the Gated SAEs of a run with one part of the method changed.

Source: Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014: section 5.1 and figure 8 for the first three,
section 3.2 and an author's comment for the one without the auxiliary task. The `norm_weighted` recipes and the
inconsistent mixture, which only this study trains, come from the authors' reply on penalties weighted by decoder norms.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from penstock.evaluation.sae_record import AboutSAE, Records
from penstock.runs.finished_run import FinishedRun
from penstock.saes.gated import GATED
from penstock.studies.shared.declaration import Study
from penstock.studies.shared.measured_saes import measured_records
from penstock.studies.shared.variants import CoefOf, Variant, train_variants
from penstock.training.settings import ResolvedRun, ResolvedSAE, SAEConfig


def _with_recipe(recipe: str) -> Callable[[ResolvedSAE], SAEConfig]:
    """A change to another recipe, including the recipe's optimiser settings."""
    own = dict.fromkeys(("beta1", "optimiser", "grad_clip", "decoder_init_norm", "resample_at"))
    return lambda sae: sae.as_config(recipe=recipe, **own)


def _with_arch(arch: str) -> Callable[[ResolvedSAE], SAEConfig]:
    return lambda sae: replace(sae, arch=arch)


ABLATIONS: dict[str, Callable[[ResolvedSAE], SAEConfig]] = {
    # Keeps the optimiser settings, so that only the stopped gradient differs.
    "auxiliary_unfrozen": lambda sae: replace(sae, recipe="auxiliary_unfrozen"),
    "no_r_mag": _with_arch("gated_no_r_mag"),
    "untied": _with_arch("gated_untied"),
    "no_auxiliary": _with_arch("gated_no_auxiliary"),
    "norm_weighted": _with_recipe("norm_weighted"),
    "norm_weighted_frozen": _with_recipe("norm_weighted_frozen"),
    "inconsistent_mixture": _with_recipe("inconsistent_mixture"),
}
"""The ablations by name. Each changes the settings of a Gated SAE."""


@dataclass(frozen=True, kw_only=True)
class AblationsConfig:
    ablations: tuple[str, ...] = tuple(ABLATIONS)
    """Ablations to train, each with one change."""
    target_l0s: tuple[float, ...] = ()
    """Target L0s of the run's Gated SAEs to retrain; by default all."""

    def __post_init__(self) -> None:
        for name in self.ablations:
            if name not in ABLATIONS:
                raise ValueError(f"ablations={name} is not known: it must be one of {', '.join(ABLATIONS)}.")


def ablations(run: FinishedRun, config: AblationsConfig) -> Records:
    """Retrain every Gated SAE of the run with unit decoder rows for each ablation, to the same L0, and measure it.

    SAEs that diverge are left out.

    Raises:
        ValueError: the run has no such Gated SAE with one of the target L0s.
        DivergenceError: all SAEs diverged.
    """
    variants = ablation_variants(run.config, config, run.coef_of)
    of = {variant.sae.folder: (variant.of, variant.change) for variant in variants}
    trained = train_variants(run, "ablations", [variant.sae for variant in variants])
    described = (one._replace(about=_about(one.about, *of[one.about["name"]])) for one in trained.described())
    return measured_records(run, "ablations", described)


def ablation_variants(run: ResolvedRun, config: AblationsConfig, coef_of: CoefOf) -> list[Variant]:
    """The SAEs that the study trains, with the name of the ablation as their change.

    Without the auxiliary task nothing keeps the gate open, and a steered coefficient would only follow it down. So that
    ablation has the final coefficient of the original SAE.

    Raises:
        ValueError: the run has no such Gated SAE with one of the target L0s.
    """
    wanted = [sae for sae in run.saes if sae.arch == GATED.name and sae.rule.decoder_norm == "unit"]
    wanted = [sae for sae in wanted if not config.target_l0s or sae.target_l0 in config.target_l0s]
    if not wanted:
        raise ValueError(
            f"The run has no Gated SAE with unit decoder rows{_with_target(config)}. Train one (--recipe paper or "
            "paper_clipped), or give other --target-l0s."
        )
    found = []
    for name in config.ablations:
        for sae in wanted:
            changed = replace(ABLATIONS[name](sae), name=f"{sae.folder}-{name}")
            if name == "no_auxiliary":
                changed = replace(changed, target_l0=None, paper_lambda=None, sparsity_coef=coef_of(sae.folder))
            found.append(Variant(changed, sae.folder, name))
    return found


def _about(own: AboutSAE, base: str, ablation: str) -> AboutSAE:
    words = ablation.replace("_", " ").replace("r mag", "r_mag")
    return cast("AboutSAE", {**own, "of": base, "series": words, "curve": words, "ablation": ablation})


def _with_target(config: AblationsConfig) -> str:
    return f" and target L0 {' or '.join(f'{target:g}' for target in config.target_l0s)}" if config.target_l0s else ""


STUDY = Study(
    name="ablations",
    title="Ablations",
    question="Which parts of the method matter? Retrains the run's Gated SAEs with one part changed.",
    source="section 5.1, figure 8",
    reading="The run's Gated SAEs, retrained with one part of the method changed (paper, figure 8). The paper's "
    "authors warn against the inconsistent mixture, whose decoder gets a gradient from the norms in the penalty but is "
    "frozen in the auxiliary task. The SAE without the auxiliary task has the final coefficient of the original Gated "
    "SAE; all others are steered to its L0.",
    settings=AblationsConfig,
    records=ablations,
    measures_saes=True,
    trains=ablation_variants,
)
