"""Trains many SAEs on one stream, and evaluates and compares them and the controls on the same held-out tokens.

    prepare(config, run_dir)  ->  train(run_dir)  ->  evaluate_run(run_dir)

Each step reads the results of the step before from the run's directory, so each of them can be repeated.
"""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

from penstock.evaluation.sae_record import SAERecord
from penstock.files import write_whole
from penstock.kernels.buffers import release
from penstock.kernels.threads import cpu_threads
from penstock.language_models.loading import LanguageModel
from penstock.runs.environment import environment_of
from penstock.runs.load_model import config_for, load_model
from penstock.runs.run_evaluation import evaluate_run
from penstock.runs.run_lock import locked
from penstock.shell import resume_command
from penstock.training.batches import check_memory, training_text
from penstock.training.checkpoint import remove_checkpoints
from penstock.training.metrics_log import MetricsLog
from penstock.training.outcome import outcome_of
from penstock.training.run import TrainingRun
from penstock.training.settings import ResolvedRun, RunConfig
from penstock.training.settings.config_file import config_to_json, read_config
from penstock.training.trackers import Tracker
from penstock.training.trainer import DivergenceError

logger = logging.getLogger(__name__)


def run_sweep(config: RunConfig, run_dir: Path, *, trust_remote_code: bool = False) -> list[SAERecord]:
    """Train the SAEs of `config`, evaluate them and the controls, and compare the arms.

    Args:
        config: The settings of the run.
        run_dir: A new directory for the run.
        trust_remote_code: Whether code that comes with the model may run, if `config` requests it.

    Returns:
        One record for each SAE and control, the same as in records.jsonl (see docs/records.md).

    Raises:
        ValueError: see `prepare` and `load_model`.
        OSError: see `prepare`.
        DivergenceError: all SAEs diverged.
        InterruptedError: a signal stopped training; the state is saved.
    """
    model = load_model(config)
    with cpu_threads(config.threads):
        prepare(config, run_dir, model)
        train(run_dir, model)
        return evaluate_run(run_dir, model)


def check_run_dir(run_dir: Path) -> None:
    """Check that a directory can be used for a new run, without creating it.

    Raises:
        FileExistsError: the directory already holds a run.
        OSError: the directory cannot be created or written to.
    """
    if (run_dir / "config.json").exists():
        raise FileExistsError(
            f"{run_dir} already holds a run. Continue it with: {resume_command(run_dir)}, or choose another --out."
        )
    # The path itself if it exists, otherwise the folder in which it would be created.
    existing = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(
            f"{run_dir} cannot be the run's directory: {existing} is a file. Choose another --out."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(
            f"The run's directory {run_dir} cannot be written, because {existing} is read-only or belongs to others. "
            "Choose an --out below a folder that you may write to."
        )


def prepare(config: RunConfig, run_dir: Path, model: LanguageModel) -> ResolvedRun:
    """Create the run's directory with config.json and environment.json, and return the resolved settings.

    Raises:
        FileExistsError: the directory already holds a run.
        OSError: the directory cannot be created or written to.
        RunInUseError: another process is preparing a run in the directory.
        ValueError: the settings do not fit the model or into memory, or the text has nothing to train or evaluate on.
    """
    check_run_dir(run_dir)
    decided = config.resolve(model)
    check_memory(decided, model)
    training_text(decided, model).check()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with locked(run_dir):
            # Checked again, because another process may have prepared a run while this one read the text.
            check_run_dir(run_dir)
            write_whole(run_dir / "environment.json", json.dumps(environment_of(decided), indent=1) + "\n")
            # Written last, because config.json marks the folder as a run.
            write_whole(run_dir / "config.json", config_to_json(decided))
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(
            f"The run's directory {run_dir} cannot be written: {error.strerror or error}. Make room, or choose an "
            "--out below a folder that you may write to."
        ) from error
    return decided


def train(run_dir: Path, model: LanguageModel, trackers: tuple[Tracker, ...] = ()) -> None:
    """Train the SAEs of a prepared run, from its last checkpoint if it has one, and save them.

    Does nothing if all SAEs are saved already. Removes checkpoints at the end, unless `keep_checkpoints` is set.

    Raises:
        RunInUseError: another process works on the run.
        CheckpointError: a checkpoint is damaged or cannot be written.
        DivergenceError: all SAEs diverged.
        InterruptedError: a signal stopped training; the state is saved.
    """
    config = config_for(run_dir, model)
    if is_trained(config, run_dir):
        logger.info("All SAEs of %s are trained already. To train them again, delete its folder saes.", run_dir)
        return
    log = MetricsLog(run_dir / "metrics.jsonl", every=config.log_steps, last_step=config.num_steps, trackers=trackers)
    try:
        with locked(run_dir), cpu_threads(config.threads):
            run = TrainingRun.begin(config, run_dir, model)
            try:
                run.train(log)
            finally:
                log.close()
            run.save_saes()
            if not config.keep_checkpoints:
                remove_checkpoints(run_dir / "checkpoints")
    finally:
        release()


def train_to_end(config: RunConfig, run_dir: Path, model: LanguageModel) -> None:
    """Prepare and train a run, skipping finished work.

    If all SAEs diverge, this only logs a warning, because the run may be a part of another.

    Raises:
        The exceptions of `prepare_once` and `train`, except DivergenceError.
    """
    prepare_once(config, run_dir, model)
    if not is_trained(config, run_dir):
        try:
            train(run_dir, model)
        except DivergenceError as error:
            logger.warning("%s", error)


def prepare_once(config: RunConfig, run_dir: Path, model: LanguageModel) -> None:
    """Prepare a run, unless its folder holds the same run already.

    Raises:
        ValueError: the folder holds a run with other settings, or the settings do not fit the model.
        OSError: see `prepare`.
    """
    if not (run_dir / "config.json").exists():
        prepare(config, run_dir, model)
    elif not _is_run_of(config, read_config(run_dir), model):
        raise ValueError(
            f"{run_dir} holds a run with other settings. Delete it, choose another --out, or give the settings that it "
            "was started with."
        )


def _is_run_of(config: RunConfig, begun: ResolvedRun, model: LanguageModel) -> bool:
    """Whether a run was started with these settings, maybe on another machine."""
    # The defaults of these two settings depend on the machine on which the run was started.
    precision = config.optim.encoder_precision or begun.optim.encoder_precision
    optim = replace(config.optim, encoder_precision=precision)
    again = replace(config, optim=optim, threads=config.threads or begun.threads).resolve(model)
    return begun.on_device("cpu") == again.on_device("cpu")


def is_trained(config: RunConfig, run_dir: Path) -> bool:
    """Whether every SAE of a run is saved or diverged."""
    return not outcome_of(config, run_dir).missing
