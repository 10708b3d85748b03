"""The paper's experiments in one go: runs trained, evaluated and studied, and nothing that is done is done again."""

import logging
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from penstock.kernels.threads import cpu_threads
from penstock.runs.finished_run import FinishedRun
from penstock.runs.run_lock import locked
from penstock.runs.splitting import Divide, train_divided, undivided
from penstock.runs.sweep import evaluate_run, load_model
from penstock.studies import STUDIES
from penstock.studies.shared.study_records import Record
from penstock.studies.study_run import study_run
from penstock.training.settings import ResolvedRun, RunConfig
from penstock.training.settings.defaults import ModelFacts
from penstock.training.trainer import DivergenceError

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """A run and what is made of it."""

    run: RunConfig
    studies: Mapping[str, Any]
    """For each study its settings."""
    divide: Divide = undivided
    """What becomes of the run, and of those that its studies train."""
    max_bytes: int | None = None
    """Most bytes of SAEs' weights in memory during an evaluation (see `measure`)."""


def reproduce(plan: Plan, folder: Path) -> dict[str, list[Record]]:
    """Train, evaluate and study a run; goes on where it was stopped.

    Args:
        plan: The run and its studies.
        folder: The run's directory.

    Returns:
        For each study its records; without those of which everything diverged, which is logged.

    Raises:
        ValueError: the folder holds a run with other settings; or as `finish`, before the run is trained.
        DivergenceError: all SAEs of the run have diverged.
        InterruptedError: a signal asked to stop; what was done is kept.
        RunInUseError: another process works on the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        return _reproduce(plan, folder)


def _reproduce(plan: Plan, folder: Path) -> dict[str, list[Record]]:
    finish(plan, folder)
    # Once for all studies of a run: the language model may be large.
    load = cache(partial(FinishedRun.load, divide=plan.divide, max_bytes=plan.max_bytes))
    made = {}
    for number, (study, settings) in enumerate(plan.studies.items(), start=1):
        logger.info("%s: study %d of %d, %s", folder, number, len(plan.studies), study)
        try:
            made[study] = study_run(folder, study, settings, load)
        except DivergenceError as error:
            # Training is deterministic: to stop here would be to stop here every time, before all other studies.
            logger.error("%s: the study %s is left out. %s", folder, study, error)
    return made


def finish(plan: Plan, folder: Path) -> None:
    """Bring a run to its end: prepared, trained and evaluated, whatever of that is missing.

    Raises:
        ValueError: the folder holds a run with other settings; or an SAE, of the run or of one of its studies, does not
            fit into memory.
    """
    model = load_model(plan.run)
    _, studies = foreseen(plan, model)
    for run in studies.values():
        # Refused before anything is trained rather than when the study's turn comes.
        plan.divide(run)
    with cpu_threads(plan.run.threads):
        train_divided(plan.run, folder, model, plan.divide)
        if not (folder / "records.jsonl").is_file():
            evaluate_run(folder, model, plan.max_bytes)


def foreseen(plan: Plan, model: ModelFacts) -> tuple[ResolvedRun, dict[str, ResolvedRun]]:
    """What a plan would train, from its settings alone.

    Args:
        plan: The plan.
        model: The language model of its run, or what is known of it.

    Returns:
        The run; and for each study that trains SAEs itself the run that they make up. Where such an SAE takes the
        coefficient that one of the run ends with, which is not known beforehand, it has 1.

    Raises:
        ValueError: the settings of a study do not fit the run, or an SAE has no width.
    """
    run = plan.run.resolve(model)
    studies = {}
    for name, settings in plan.studies.items():
        trains = STUDIES[name].trains
        if trains is not None:
            variants = trains(run, settings, lambda _: 1.0)
            studies[name] = run.with_saes([variant.sae for variant in variants], model)
    return run, studies
