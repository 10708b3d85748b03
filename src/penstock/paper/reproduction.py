"""Reproduces an experiment: trains and evaluates a run and makes its studies, without repeating finished work."""

import logging
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from penstock.evaluation.sae_record import Records
from penstock.kernels.threads import cpu_threads
from penstock.runs.finished_run import FinishedRun
from penstock.runs.load_model import load_model
from penstock.runs.run_evaluation import evaluate_run
from penstock.runs.run_lock import locked
from penstock.runs.splitting import Divide, train_divided, undivided
from penstock.studies import STUDIES
from penstock.studies.study_run import study_run
from penstock.training.settings import ResolvedRun, RunConfig
from penstock.training.settings.defaults import ModelFacts
from penstock.training.trainer import DivergenceError

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """A run and its studies."""

    run: RunConfig
    studies: Mapping[str, Any]
    """The settings of each study."""
    divide: Divide = undivided
    """Splits the run, and the runs that studies train, into parts that fit into memory."""
    max_bytes: int | None = None
    """The largest number of bytes for SAEs' weights during an evaluation (see `measure`)."""


def reproduce(plan: Plan, folder: Path) -> dict[str, Records]:
    """Train and evaluate a run and make its studies, continuing where an earlier call stopped.

    Args:
        plan: The run and its studies.
        folder: The run's directory.

    Returns:
        The records of each study. Studies in which all SAEs diverged are left out, with an error in the log.

    Raises:
        ValueError: the folder holds a run with other settings, or see `finish`.
        DivergenceError: all SAEs of the run diverged.
        InterruptedError: a signal stopped the work; finished parts are kept.
        RunInUseError: another process works on the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        return _reproduce(plan, folder)


def _reproduce(plan: Plan, folder: Path) -> dict[str, Records]:
    finish(plan, folder)
    # Loaded once for all studies of a run, because the language model may be large.
    load = cache(
        partial(
            FinishedRun.load,
            divide=plan.divide,
            max_bytes=plan.max_bytes,
            device=plan.run.language_model.device,
        )
    )
    made = {}
    for number, (study, settings) in enumerate(plan.studies.items(), start=1):
        logger.info("%s: study %d of %d, %s", folder, number, len(plan.studies), study)
        try:
            made[study] = study_run(folder, study, settings, load)
        except DivergenceError as error:
            # Training is deterministic. Raising here would stop every call at this point, before the other studies.
            logger.error("%s: the study %s is left out. %s", folder, study, error)
    return made


def finish(plan: Plan, folder: Path) -> None:
    """Prepare, train and evaluate a run, skipping the steps that are done.

    Raises:
        ValueError: the folder holds a run with other settings, or an SAE of the run or of a study does not fit into
            memory. Raised before anything is trained.
    """
    model = load_model(plan.run)
    _, studies = foreseen(plan, model)
    for run in studies.values():
        # Raises now, before anything is trained, if the study's SAEs do not fit into memory.
        plan.divide(run)
    with cpu_threads(plan.run.threads):
        train_divided(plan.run, folder, model, plan.divide)
        if not (folder / "records.jsonl").is_file():
            evaluate_run(folder, model, plan.max_bytes)


def foreseen(plan: Plan, model: ModelFacts) -> tuple[ResolvedRun, dict[str, ResolvedRun]]:
    """The runs that a plan would train, computed from its settings.

    Args:
        plan: The plan.
        model: The language model of its run, or its facts.

    Returns:
        The plan's run, and a run for each study that trains SAEs. SAEs which start from the final sparsity coefficient
        of another SAE have a coefficient of 1 here, because the final one is only known after training.

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
