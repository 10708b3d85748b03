"""Trains additional SAEs like those of a run: on its stream, for its length, measured on its held-out tokens."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from penstock.runs.finished_run import FinishedRun
from penstock.runs.splitting import train_divided
from penstock.runs.trained_saes import FoundSAEs, load_run
from penstock.studies.shared.study_records import study_folder
from penstock.training.settings import SAEConfig
from penstock.training.settings.config_file import config_to_json

CoefOf = Callable[[str], float]
"""The coefficient that an SAE of a run, by its folder, ended with."""


class Variant(NamedTuple):
    """An SAE that a study trains."""

    sae: SAEConfig
    of: str
    """Folder of the SAE of the run that it stems from."""
    change: Any
    """What differs from that, in the study's own terms."""


def train_variants(run: FinishedRun, study: str, saes: Sequence[SAEConfig]) -> FoundSAEs:
    """Train SAEs in a run of their own, RUN/studies/STUDY/run-HASH; a kill costs what came after its last checkpoint.

    Args:
        run: Gives everything but the SAEs' settings, and says how theirs is divided.
        study: Whose folder they go to.
        saes: What to train; names are folders.

    Raises:
        ValueError: settings do not fit each other or the language model, or an SAE the memory.
        DivergenceError: all of them diverged.
        InterruptedError: a signal asked to stop; what was done is kept.
    """
    config = run.config.with_saes(saes, run.model)
    digest = hashlib.sha256(config_to_json(config).encode()).hexdigest()[:8]
    folder = study_folder(run.run_dir, study) / f"run-{digest}"
    try:
        train_divided(config, folder, run.model, run.divide)
    except InterruptedError as error:
        raise InterruptedError(
            f"The study {study} was stopped; what it has trained is saved. Give the same command again to go on."
        ) from error
    return load_run(config, folder)
