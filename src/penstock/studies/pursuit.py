"""Inference-time optimisation: the encoder replaced by gradient pursuit (appendix A)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from penstock.evaluation.measuring import Described
from penstock.posthoc.gradient_pursuit import pursued
from penstock.runs.finished_run import FinishedRun
from penstock.studies.shared.declaration import Study
from penstock.studies.shared.measured_saes import about_changed, measured_records
from penstock.studies.shared.study_records import Record


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
                about = about_changed(run, name, new, series=series, curve=series, num_latents=num_latents)
                yield Described(pursued(new, run.about[name]["site"], sae, num_latents), about)

    return measured_records(run, "pursuit", made())


def _aim(about: Mapping[str, Any]) -> str:
    """What an SAE was trained for, in words."""
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
    reading="The encoder is left out: each decoder is given to non-negative gradient pursuit, with a number of "
    "latents for every token. The gap to the solid line of the same arm is what its encoder costs (paper, appendix "
    "A).",
    settings=PursuitConfig,
    records=pursuit,
    measures_saes=True,
)
