"""Refitting of magnitudes behind a frozen gate: is it enough to fix shrinkage? (section 5.2)"""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from penstock.evaluation.evaluate import Candidate
from penstock.evaluation.measuring import Described
from penstock.evaluation.sae_record import Records
from penstock.formats import load_sae, read_facts, save_sae
from penstock.posthoc.refitting import RefitConfig, fine_tune, rescale_and_shift
from penstock.runs.finished_run import FinishedRun
from penstock.saes import ARCHITECTURES, BASELINE, baseline_first
from penstock.studies.shared.declaration import Study
from penstock.studies.shared.measured_saes import about_changed, check_fit_tokens, measured_records
from penstock.studies.shared.study_records import settings_json, study_folder

logger = logging.getLogger(__name__)


METHODS = {"rescale_and_shift": rescale_and_shift, "fine_tune": fine_tune}
"""The methods of refitting, by name."""


def refittable() -> tuple[str, ...]:
    """Names of the architectures that can be converted to a Gated SAE, so that their magnitudes can be refitted."""
    return tuple(name for name in baseline_first() if ARCHITECTURES[name].as_gated is not None)


@dataclass(frozen=True, kw_only=True)
class RefitStudyConfig:
    refit: RefitConfig = field(default_factory=RefitConfig)
    archs: tuple[str, ...] = field(default_factory=refittable)
    """Architectures whose SAEs are refitted; Gated ones are the control."""
    fit_tokens: int = 500_000
    """Training activations on which magnitudes are refitted. `loss_before` and `loss_after` are losses on some that are
    held back, but on which the SAE was trained. FVU on the held-out tokens shows whether they were enough."""

    def __post_init__(self) -> None:
        wrong = [arch for arch in self.archs if arch not in refittable()]
        if wrong:
            raise ValueError(f"archs={wrong[0]} cannot be refitted: it must be one of {', '.join(refittable())}.")
        check_fit_tokens(self.fit_tokens)


def refit(run: FinishedRun, config: RefitStudyConfig) -> Records:
    """Refit SAEs of the run by each of METHODS, save them in `studies/refit/saes`, and measure them.

    Baselines are refitted if they have the width of another architecture's SAE at their site, or all of them if none
    has. SAEs that an interrupted study with the same settings has saved are not fitted again.

    Raises:
        ValueError: the run has no SAE of these architectures.
    """
    chosen = _to_refit(run, config.archs)
    if not chosen:
        raise ValueError(
            f"{run.run_dir} has no SAE to refit among {', '.join(config.archs) or 'no architecture'}. Give another "
            "architecture with --archs, or train one."
        )
    acts = run.activations(config.fit_tokens)
    digest = hashlib.sha256(settings_json(run.run_dir, config).encode()).hexdigest()
    _make_room(study_folder(run.run_dir, "refit"), {f"{name}-{method}" for name, method in product(chosen, METHODS)})

    def made() -> Iterator[Described]:
        for number, (name, method) in enumerate(product(chosen, METHODS), start=1):
            new, site = f"{name}-{method}", run.about[name]["site"]
            folder = study_folder(run.run_dir, "refit") / "saes" / new
            if not _is_saved(folder, digest):
                logger.info("Refitting %d of %d: %s", number, len(chosen) * len(METHODS), new)
                refitted = METHODS[method](run.saes[name], acts[site], config.refit)
                losses = {"loss_before": refitted.loss_before, "loss_after": refitted.loss_after}
                save_sae(refitted.sae, folder, {**run.metadata[name], "name": new, "asked": digest, **losses})
            sae, facts = load_sae(folder, device=run.config.language_model.device)
            losses = {key: facts.metadata[key] for key in ("loss_before", "loss_after")}
            series = method.replace("_", " ")
            about = about_changed(run, name, new, series=series, curve=series, method=method, **losses)
            yield Described(Candidate.of(new, site, sae), about)

    return measured_records(run, "refit", made())


def _make_room(folder: Path, wanted: set[str]) -> None:
    """Delete an earlier study's settings.json, which marks it as complete, and all of its SAEs but those wanted."""
    (folder / "settings.json").unlink(missing_ok=True)
    for saved in (folder / "saes").glob("*"):
        if saved.name not in wanted:
            shutil.rmtree(saved)


def _to_refit(run: FinishedRun, archs: Sequence[str]) -> list[str]:
    arch = {name: run.about[name]["arch"] for name in run.saes}
    size = {name: (run.about[name]["site"], run.about[name]["d_sae"]) for name in run.saes}
    rival_sizes = {size[name] for name in arch if arch[name] != BASELINE}
    baselines = {name for name in arch if arch[name] == BASELINE}
    matched = {name for name in baselines if size[name] in rival_sizes}
    left_out = baselines - matched if matched else set()
    return [name for name in arch if arch[name] in archs and name not in left_out]


def _is_saved(folder: Path, digest: str) -> bool:
    """Whether a study with the same settings has saved this SAE."""
    return (folder / "cfg.json").is_file() and read_facts(folder).metadata.get("asked") == digest


STUDY = Study(
    name="refit",
    title="Is it enough to fix shrinkage?",
    question="Is it enough to fix shrinkage? Rescales and shifts magnitudes behind a frozen gate, or fine-tunes them "
    "with the decoder.",
    source="section 5.2, figure 9; Wright & Sharkey 2024",
    reading="The gate of the width-matched baseline is frozen, and its magnitudes are fitted to the reconstruction "
    "alone. They are rescaled and shifted (section 5.2), or fine-tuned together with the decoder (after Wright & "
    "Sharkey 2024). Gated SAEs are the control: they do not shrink, so their gain has another cause.",
    settings=RefitStudyConfig,
    records=refit,
    measures_saes=True,
)
