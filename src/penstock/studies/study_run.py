"""Makes a study of a finished run, unless the same study was made before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.evaluation.sae_record import Records
from penstock.runs.finished_run import FinishedRun
from penstock.studies import STUDIES
from penstock.studies.shared.ratios_to_run import compare_study
from penstock.studies.shared.study_records import read_or_make
from penstock.training.settings.config_file import read_config


def study_run(
    run_dir: Path, name: str, settings: Any, load: Callable[[Path], FinishedRun] = FinishedRun.load
) -> Records:
    """Return the records of a study of a finished run. They are read from disk if the same study was made before.

    Args:
        run_dir: The run's directory.
        name: The name of one of STUDIES.
        settings: An instance of the study's settings class.
        load: Loads the run; called only if the study has to be made.

    Raises:
        FileNotFoundError: `run_dir` does not hold a run.
        ValueError: the run's training is not finished, or the settings do not fit the run.
    """
    read_config(run_dir)
    records = read_or_make(run_dir, name, settings, lambda: STUDIES[name].records(load(run_dir), settings))
    if STUDIES[name].measures_saes:
        compare_study(run_dir, name)
    return records
