"""Training of variants of a run's SAEs: on the same stream, for the same number of steps."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from penstock.runs.finished_run import FinishedRun
from penstock.runs.splitting import train_divided
from penstock.runs.trained_saes import TrainedSAEs, load_run
from penstock.studies.shared.study_records import study_folder
from penstock.training.settings import SAEConfig
from penstock.training.settings.config_file import config_to_json

CoefOf = Callable[[str], float]
"""Returns the final sparsity coefficient of an SAE of the run, given its folder."""


class Variant(NamedTuple):
    """An SAE that a study trains."""

    sae: SAEConfig
    of: str
    """The folder of the original SAE in the run."""
    change: Any
    """The difference from the original, in the study's own terms."""


def train_variants(run: FinishedRun, study: str, saes: Sequence[SAEConfig]) -> TrainedSAEs:
    """Train SAEs in a separate run, RUN/studies/STUDY/run-HASH. After a kill, training continues from a checkpoint.

    Args:
        run: The run, whose other settings the new run takes, including its division into parts.
        study: The study whose folder the new run goes to.
        saes: The SAEs to train, each with a name that becomes its folder.

    Raises:
        ValueError: settings do not fit each other or the language model, or an SAE does not fit into memory.
        DivergenceError: all SAEs diverged.
        InterruptedError: a signal stopped training; finished work is kept.
    """
    config = run.config.with_saes(saes, run.model)
    digest = hashlib.sha256(config_to_json(config).encode()).hexdigest()[:8]
    folder = study_folder(run.run_dir, study) / f"run-{digest}"
    try:
        train_divided(config, folder, run.model, run.divide)
    except InterruptedError as error:
        raise InterruptedError(
            f"The study {study} was stopped; finished training is saved. To continue, give the same command again."
        ) from error
    return load_run(config, folder)
