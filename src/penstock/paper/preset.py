"""Presets: experiments whose every setting names its source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from penstock.devices import AUTO, resolve_device
from penstock.evaluation.evaluate import LOGITS
from penstock.paper.reproduction import Plan
from penstock.runs.estimate import estimate, parameters
from penstock.runs.splitting import split, undivided
from penstock.saes import training_of
from penstock.studies import STUDIES
from penstock.training.settings import (
    DataConfig,
    EvalConfig,
    LanguageModelConfig,
    OptimConfig,
    ResamplingConfig,
    ResolvedRun,
    RunConfig,
    SAEConfig,
)
from penstock.training.settings.defaults import PlannedModel

UNSTATED = "not stated in the paper; chosen: "
"""Prefix of the source of a setting that the paper does not state."""

OURS = "ours: "
"""Prefix of the source of a setting that no experiment of the paper has."""

QUICK_EVAL = 10_000
"""The number of held-out tokens in a quick run."""


class Cited(NamedTuple):
    """The value of a setting, and its source."""

    value: Any
    source: str


@dataclass(frozen=True, kw_only=True)
class ArmPreset:
    """One arm at one site: SAEs of one architecture and width at several sparsities."""

    arch: str
    d_sae: Cited
    lr: Cited
    """The learning rate; None uses the rule in docs/training.md."""
    coefs: Cited
    """The paper's lambdas in descending order; Gated arms are trained with them."""
    target_l0s: Cited
    """Target L0s in ascending order, for arms that are not Gated or have no lambdas."""
    published: Cited
    """The paper's results for this arm, as `PublishedRun`s."""


@dataclass(frozen=True, kw_only=True)
class SitePreset:
    """A site with its arms: `gated`, `compute_matched` (1.5 times the latents) and `width_matched`."""

    name: str
    source: str
    d_in: Cited
    arms: Mapping[str, ArmPreset]
    studies: Cited
    """Names of the studies made at this site."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """An experiment. Its groups of settings have the names and keys of `RunConfig`."""

    name: str
    language_model: Mapping[str, Cited]
    num_layers: Cited
    """The number of the language model's blocks."""
    model_parameters: Cited
    """The number of the language model's parameters, including embeddings."""
    data: Mapping[str, Cited]
    optim: Mapping[str, Cited]
    resampling: Mapping[str, Cited]
    eval: Mapping[str, Cited]
    recipe: Cited
    steps: Cited
    quick_steps: Cited
    """The number of steps in `quick()`."""
    seeds: Cited
    study_settings: Mapping[str, Cited]
    """Settings by study; studies that are not listed use their defaults."""
    quick_study_settings: Mapping[str, Cited]
    """The same for `quick()`."""
    sites: tuple[SitePreset, ...]
    deviations: tuple[str, ...]
    """The known differences from the paper's experiments."""

    def cited(self) -> dict[str, Cited]:
        """All settings by path, such as `data.context` or `resid_post.20.gated.d_sae`."""
        names = ("language_model", "data", "optim", "resampling", "eval", "study_settings")
        groups = {name: getattr(self, name) for name in names}
        found = {f"{group}.{key}": cited for group, settings in groups.items() for key, cited in settings.items()}
        found |= {name: cited for name, cited in vars(self).items() if isinstance(cited, Cited)}
        for site in self.sites:
            found |= {site.name: Cited(site.name, site.source), f"{site.name}.d_in": site.d_in}
            found[f"{site.name}.studies"] = site.studies
            for name, arm in site.arms.items():
                settings = {key: cited for key, cited in vars(arm).items() if isinstance(cited, Cited)}
                found |= {f"{site.name}.{name}.{key}": cited for key, cited in settings.items()}
        return found

    def unstated(self) -> dict[str, Cited]:
        """The settings that the paper does not state, by path."""
        return {path: cited for path, cited in self.cited().items() if UNSTATED in cited.source}

    def quick(self) -> "Preset":
        """A short version of the preset that shows that everything works, but is too small for conclusions.

        It has the first site, the first and last value of each list, `quick_steps` steps and QUICK_EVAL tokens.
        """
        site = self.sites[0]
        arms = {
            name: replace(arm, coefs=_ends(arm.coefs), target_l0s=_ends(arm.target_l0s))
            for name, arm in site.arms.items()
        }
        shorter = (
            f"quick: only {site.name}, only the first and last value of each list, {self.quick_steps.value} steps, "
            f"evaluation on {QUICK_EVAL:,} tokens."
        )
        return replace(
            self,
            name=f"{self.name}-quick",
            steps=self.quick_steps,
            eval={
                **self.eval,
                "eval_tokens": Cited(QUICK_EVAL, f"{OURS}few, so that every study takes a minute or two"),
            },
            sites=(replace(site, arms=arms),),
            study_settings=self.quick_study_settings,
            deviations=(*self.deviations, shorter),
        )

    def run_configs(self, *, model: str | None = None, device: str = AUTO) -> tuple[RunConfig, ...]:
        """The run of each site: SAEs of every arm, seed and sparsity.

        The sparsities are lambdas in Gated arms that have them, otherwise target L0s.

        Args:
            model: Another path of the same language model, e.g. a local folder.
            device: The device for the language model and the SAEs.
        """
        tokens = self.steps.value * self.optim["batch_size"].value
        language_model = LanguageModelConfig(**_values(self.language_model), device=resolve_device(device))
        return tuple(
            RunConfig(
                saes=self._saes(site),
                language_model=replace(language_model, model=model or language_model.model),
                data=DataConfig(**_values(self.data), tokens=tokens),
                optim=OptimConfig(**_values(self.optim)),
                resampling=ResamplingConfig(**_values(self.resampling)),
                eval=EvalConfig(**_values(self.eval)),
            )
            for site in self.sites
        )

    def plans(self, *, model: str | None = None, device: str = AUTO, max_bytes: int | None = None) -> dict[str, Plan]:
        """Return the run and the studies of each site, for `reproduce`.

        Args:
            model: See `run_configs`.
            device: See `run_configs`.
            max_bytes: The memory limit in bytes. Runs for which `estimate` exceeds it are trained in parts. An
                evaluation holds as many SAEs at once as fit next to the language model and its logits.
        """
        configs = self.run_configs(model=model, device=device)
        settings = {name: cited.value for name, cited in self.study_settings.items()}
        facts = self.planned_model()

        def divide(whole: ResolvedRun) -> Sequence[ResolvedRun]:
            if max_bytes is None:
                return undivided(whole)
            return split(whole, facts.widths, self.model_parameters.value, self.num_layers.value, max_bytes)

        return {
            site.name: Plan(
                run,
                {name: settings.get(name) or STUDIES[name].settings() for name in site.studies.value},
                divide,
                None if max_bytes is None else max(0, max_bytes - self._reserved(run.resolve(facts), site.d_in.value)),
            )
            for site, run in zip(self.sites, configs, strict=True)
        }

    def planned_model(self) -> PlannedModel:
        """The facts of the language model that the preset states, so that it need not be loaded."""
        widths = {site.name: site.d_in.value for site in self.sites}
        return PlannedModel(self.language_model["model"].value, self.data["context"].value, widths)

    def _reserved(self, run: ResolvedRun, d_in: int) -> int:
        """The bytes that an evaluation needs besides the SAEs in memory.

        They are for the language model, its logits (clean, spliced, and the log-probabilities of both), and the SAE
        that is read next.
        """
        cost = estimate(run, {run.sites[0]: d_in}, self.model_parameters.value, self.num_layers.value)
        logits = LOGITS.get(torch.device(run.language_model.device).type, LOGITS["cpu"])
        return cost.bytes_language_model + 4 * 4 * logits + max(4 * parameters(sae, d_in) for sae in run.saes)

    def _saes(self, site: SitePreset) -> tuple[SAEConfig, ...]:
        saes: list[SAEConfig] = []
        for arm in site.arms.values():
            aims: list[dict[str, Any]] = [{"target_l0": target} for target in arm.target_l0s.value]
            if "paper_lambda" in training_of(arm.arch).aims and arm.coefs.value:
                aims = [{"paper_lambda": coef} for coef in arm.coefs.value]
            settings: dict[str, Any] = {
                "arch": arm.arch,
                "site": site.name,
                "d_sae": arm.d_sae.value,
                "recipe": self.recipe.value,
                "lr": arm.lr.value,
                "lr_rule": arm.lr.source if arm.lr.value else None,
            }
            saes += [SAEConfig(**settings, **aim, seed=seed) for aim in aims for seed in self.seeds.value]
        return tuple(saes)


def _values(settings: Mapping[str, Cited]) -> dict[str, Any]:
    return {name: cited.value for name, cited in settings.items()}


def _ends(cited: Cited) -> Cited:
    return Cited(cited.value[:1] + cited.value[1:][-1:], f"{cited.source} (first and last)")
