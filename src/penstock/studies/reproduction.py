"""The paper's experiments in one go: runs trained, evaluated and studied, and nothing that is done is done again."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from penstock.studies.ablations import AblationsConfig, ablations
from penstock.studies.after_training import (
    PruningConfig,
    PursuitConfig,
    RefitStudyConfig,
    pruning,
    pursuit,
    refit,
)
from penstock.studies.cost import CostConfig, cost
from penstock.studies.dictionaries import ConceptsConfig, DictionariesConfig, concepts, dictionaries
from penstock.studies.finished_run import FinishedRun
from penstock.studies.sensitivity import SensitivityConfig, sensitivity
from penstock.studies.series import compare_study
from penstock.studies.shrinkage import ShrinkageConfig, shrinkage
from penstock.studies.splitting import join
from penstock.studies.stored import Record, stored
from penstock.studies.sweep import evaluate_run, is_trained, load_model, prepare_once, read_config, train_to_end
from penstock.training.config import RunConfig
from penstock.training.run import decide

logger = logging.getLogger(__name__)


class Study(NamedTuple):
    """A study of a finished run."""

    settings: Callable[[], Any]
    """Its settings' dataclass; called without arguments it gives the defaults."""
    records: Callable[[FinishedRun, Any], list[Record]]
    """Makes its records."""
    of_saes: bool
    """Whether each record is an SAE's, measured as those of the run; else rows of their own kind."""


class Plan(NamedTuple):
    """A run and what is made of it."""

    run: RunConfig
    studies: Mapping[str, Any]
    """For each study its settings."""
    divide: Callable[[RunConfig], Sequence[RunConfig]] = lambda whole: (whole,)
    """The runs that a run, its settings decided, is trained in; more than one where memory does not hold it."""


STUDIES: dict[str, Study] = {
    "shrinkage": Study(ShrinkageConfig, shrinkage, of_saes=False),
    "ablations": Study(AblationsConfig, ablations, of_saes=True),
    "refit": Study(RefitStudyConfig, refit, of_saes=True),
    "pursuit": Study(PursuitConfig, pursuit, of_saes=True),
    "pruning": Study(PruningConfig, pruning, of_saes=True),
    "cost": Study(CostConfig, cost, of_saes=False),
    "sensitivity": Study(SensitivityConfig, sensitivity, of_saes=False),
    "dictionaries": Study(DictionariesConfig, dictionaries, of_saes=False),
    "concepts": Study(ConceptsConfig, concepts, of_saes=False),
}


def study_run(
    folder: Path, name: str, settings: Any, load: Callable[[Path], FinishedRun] = FinishedRun.load
) -> list[Record]:
    """One study of a finished run, from disk if it was made before; only else is the run loaded.

    Raises:
        FileNotFoundError: there is no run in `folder`.
        ValueError: its training is not over, or the settings do not fit it.
    """
    read_config(folder)
    records = stored(folder, name, settings, lambda: STUDIES[name].records(load(folder), settings))
    if STUDIES[name].of_saes:
        compare_study(folder, name)
    return records


def reproduce(plans: Mapping[str, Plan], out: Path) -> None:
    """Train, evaluate and study every run, each in a folder of its name below `out`; goes on where it was stopped.

    Raises:
        ValueError: a folder holds a run with other settings.
        InterruptedError: a signal asked to stop; what was done is kept.
    """
    for number, (name, plan) in enumerate(plans.items(), start=1):
        folder = out / name
        logger.info("Run %d of %d: %s", number, len(plans), folder)
        finish(plan, folder)
        # Once for all studies of a run: the language model may be large.
        load = cache(FinishedRun.load)
        for study, settings in plan.studies.items():
            logger.info("%s: %s", folder, study)
            study_run(folder, study, settings, load)


def finish(plan: Plan, folder: Path) -> None:
    """Bring a run to its end: prepared, trained and evaluated, whatever of that is missing.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    model = load_model(plan.run)
    decided = decide(plan.run, model, {site: model.d_in(site) for site in plan.run.sites})
    parts = plan.divide(decided)
    if len(parts) > 1 and not is_trained(decided, folder):
        prepare_once(decided, folder, model)
        folders = [folder / "parts" / str(number) for number in range(len(parts))]
        for part, at in zip(parts, folders, strict=True):
            train_to_end(part, at, model)
        join(folder, folders)
    train_to_end(decided, folder, model)
    if not (folder / "records.jsonl").is_file():
        evaluate_run(folder, model)
