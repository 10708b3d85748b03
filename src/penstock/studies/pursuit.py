"""Inference-time optimisation: gradient pursuit in place of the encoder (appendix A)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from penstock.evaluation.measuring import Described
from penstock.evaluation.sae_record import Records
from penstock.posthoc.gradient_pursuit import pursued
from penstock.runs.finished_run import FinishedRun
from penstock.studies.shared.declaration import Study
from penstock.studies.shared.measured_saes import about_changed, measured_records


@dataclass(frozen=True, kw_only=True)
class PursuitConfig:
    num_latents: tuple[int, ...] = (4, 8, 16, 32)
    """Largest numbers of latents per token; every SAE of the run is measured with each of them."""

    def __post_init__(self) -> None:
        if not self.num_latents or min(self.num_latents) < 1:
            raise ValueError(f"num_latents={self.num_latents} is out of range: give one or more numbers of at least 1.")


def pursuit(run: FinishedRun, config: PursuitConfig) -> Records:
    """Measure every decoder of the run with gradient pursuit in place of its encoder, at each number of latents."""

    def made() -> Iterator[Described]:
        for name, sae in run.saes.items():
            series = f"pursuit on the decoder {_aim(run.about[name])}"
            for num_latents in config.num_latents:
                new = f"{name}-pursuit_{num_latents}"
                about = about_changed(run, name, new, series=series, curve=series, num_latents=num_latents)
                yield Described(pursued(new, run.about[name]["site"], sae, num_latents), about)

    return measured_records(run, "pursuit", made())


def _aim(about: Mapping[str, Any]) -> str:
    """The sparsity setting of an SAE, in words."""
    if about.get("target_l0") is not None:
        return f"trained for L0 {about['target_l0']:g}"
    if about.get("paper_lambda") is not None:
        return f"trained with lambda {about['paper_lambda']:g}"
    return f"trained at coefficient {about['sparsity_coef']:.3g}"


STUDY = Study(
    name="pursuit",
    title="Inference-time optimisation",
    question="How good is each decoder with its encoder replaced by non-negative gradient pursuit?",
    source="appendix A, figures 10 and 11",
    reading="Non-negative gradient pursuit replaces the encoder: for every token it picks up to a given number of "
    "latents of the trained decoder. The gap to the solid line of the same arm is the cost of its encoder (paper, "
    "appendix A).",
    settings=PursuitConfig,
    records=pursuit,
    measures_saes=True,
)
