"""The paper's experiments in one go: runs trained, evaluated and studied, and nothing that is done is done again."""

import logging
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

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
from penstock.studies.stored import Record, stored
from penstock.studies.sweep import evaluate_run, load_model, prepare, read_config, train
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


STUDIES: dict[str, Study] = {
    "pursuit": Study(PursuitConfig, pursuit, of_saes=True),
    "pruning": Study(PruningConfig, pruning, of_saes=True),
    "refit": Study(RefitStudyConfig, refit, of_saes=True),
    "cost": Study(CostConfig, cost, of_saes=False),
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
    return stored(folder, name, settings, lambda: STUDIES[name].records(load(folder), settings))


def reproduce(configs: Mapping[str, RunConfig], out: Path) -> None:
    """Train, evaluate and study every run, each in a folder of its name below `out`; goes on where it was stopped.

    Raises:
        ValueError: a folder holds a run with other settings.
        InterruptedError: a signal asked to stop; what was done is kept.
    """
    for number, (name, config) in enumerate(configs.items(), start=1):
        folder = out / name
        logger.info("Run %d of %d: %s", number, len(configs), folder)
        finish(config, folder)
        # Once for all studies of a run: the language model may be large.
        load = cache(FinishedRun.load)
        for study in STUDIES:
            logger.info("%s: %s", folder, study)
            study_run(folder, study, STUDIES[study].settings(), load)


def finish(config: RunConfig, folder: Path) -> None:
    """Bring a run to its end: prepared, trained and evaluated, whatever of that is missing.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    model = load_model(config)
    decided = decide(config, model, {site: model.d_in(site) for site in config.sites})
    if not (folder / "config.json").exists():
        prepare(config, folder, model)
    elif read_config(folder) != decided:
        raise ValueError(f"{folder} holds a run with other settings. Choose another --out, or delete it.")
    if not all((folder / "saes" / sae.folder / "cfg.json").is_file() for sae in config.saes):
        train(folder, model)
    if not (folder / "records.jsonl").is_file():
        evaluate_run(folder, model)
