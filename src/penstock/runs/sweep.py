"""Train many SAEs on one stream, evaluate them and the controls on the same held-out tokens, compare.

    prepare(config, folder)  ->  train(folder)  ->  evaluate_run(folder)

Each step reads what the one before left in the run's directory, so that any of them can be done again.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from penstock.activations.harvest import Text, fill_cache
from penstock.evaluation.comparison import compare, warnings_of
from penstock.evaluation.controls import controls
from penstock.evaluation.evaluate import Candidate
from penstock.evaluation.measuring import Described, measure
from penstock.evaluation.settings import EvalConfig
from penstock.evaluation.sums import SUMS_FILE, write_sums
from penstock.files import write_whole
from penstock.kernels.buffers import release
from penstock.kernels.threads import cpu_threads
from penstock.language_models.devices import AUTO, available_or_cpu, check_device, described, resolve_device
from penstock.language_models.loading import LanguageModel
from penstock.language_models.settings import LanguageModelConfig
from penstock.runs.environment import environment_of
from penstock.runs.run_lock import locked
from penstock.runs.trained_saes import about_sae, load_run, read_saes
from penstock.shell import resume_command
from penstock.training.checkpoint import remove_checkpoints
from penstock.training.metrics_log import MetricsLog
from penstock.training.outcome import outcome_of
from penstock.training.run import TrainingRun, check_memory, training_stream, training_text
from penstock.training.settings import ResolvedRun, RunConfig
from penstock.training.settings.config_json import config_from_json, config_to_json, resolved_from_json
from penstock.training.trackers import Tracker
from penstock.training.trainer import DivergenceError

logger = logging.getLogger(__name__)

CONTROL_TOKENS = 100_000
"""Training activations on which PCA and the mean are fitted."""


def load_language_model(settings: LanguageModelConfig) -> LanguageModel:
    """The language model that the settings name.

    Raises:
        ValueError: a setting would have no effect, the device is not available, or see `LanguageModel.load`.
    """
    settings = settings.resolve()
    check_device(settings.device)
    logger.info("Device: %s", described(settings.device))
    return LanguageModel.load(
        settings.model,
        dtype=settings.dtype,
        # With a device_map the model is spread out, and `device` says where the SAEs live.
        device="cpu" if settings.device_map else settings.device,
        device_map=settings.device_map,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )


def load_model(config: RunConfig, *, trust_remote_code: bool = False) -> LanguageModel:
    """The language model of a run.

    Args:
        config: The run's settings. They may come from a file that was handed over, so `trust_remote_code` in them is
            not enough to run code. See `ResolvedRun.on_device` to load it on another device than they say.
        trust_remote_code: Whether code that comes with the model may run on this machine.

    Raises:
        ValueError: the settings ask for remote code, and the caller does not allow it; and as `LanguageModel.load`.
    """
    settings = config.language_model
    if settings.trust_remote_code and not trust_remote_code:
        raise ValueError(
            f"The settings ask to run code that comes with the language model {settings.model!r}. A settings file is "
            "not enough for that, because it may come from anyone. Look at the code, and add --trust-remote-code to "
            "this command if you trust it."
        )
    return load_language_model(settings)


def run_sweep(config: RunConfig, folder: Path, *, trust_remote_code: bool = False) -> list[dict[str, Any]]:
    """Train the SAEs of `config`, evaluate them and the controls, and compare the arms.

    Args:
        config: What to train and on what.
        folder: A new directory for the run.
        trust_remote_code: Whether code that comes with the model may run, if `config` asks for it.

    Returns:
        One record for each SAE and control (docs/records.md); the same as in records.jsonl.
    """
    model = load_model(config)
    with cpu_threads(config.threads):
        prepare(config, folder, model)
        train(folder, model)
        return evaluate_run(folder, model)


def check_run_dir(folder: Path) -> None:
    """Check that a directory can be that of a new run, before anything is loaded; makes nothing.

    Raises:
        FileExistsError: the directory already holds a run.
        OSError: it cannot be made or written to.
    """
    if (folder / "config.json").exists():
        raise FileExistsError(
            f"{folder} already holds a run. Continue it with: {resume_command(folder)}. Or choose another --out."
        )
    # The path itself where it exists, or the folder in which it would be made.
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{folder} cannot be the run's directory: {existing} is a file. Choose another --out.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(
            f"The run's directory {folder} cannot be written: {existing} is read-only, or belongs to others. Choose an "
            "--out below a folder that you may write to."
        )


def prepare(config: RunConfig, folder: Path, model: LanguageModel) -> ResolvedRun:
    """Make the run's directory with config.json (every setting decided) and environment.json.

    Raises:
        FileExistsError: the directory already holds a run.
        OSError: the directory cannot be made or written to.
        RunInUseError: another process is about to make it one.
        ValueError: the settings do not fit the model or into memory, or the text has nothing to train or evaluate on.
    """
    check_run_dir(folder)
    decided = config.resolve(model)
    check_memory(decided, model)
    training_text(decided, model).check()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            # Again, because another process may have made it a run while this one looked at the text.
            check_run_dir(folder)
            write_whole(folder / "environment.json", json.dumps(environment_of(decided), indent=1) + "\n")
            # Last, because it is what makes the folder a run.
            write_whole(folder / "config.json", config_to_json(decided))
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(
            f"The run's directory {folder} cannot be written: {error.strerror or error}. Make room, or choose an "
            "--out below a folder that you may write to."
        ) from error
    return decided


def train(folder: Path, model: LanguageModel, trackers: tuple[Tracker, ...] = ()) -> None:
    """Train the SAEs of a prepared run, from its last checkpoint if it has one, and save them.

    Does nothing where all of them are saved already. Checkpoints are removed at the end, unless `keep_checkpoints`.

    Raises:
        RunInUseError: another process works on the run.
        CheckpointError: a checkpoint is damaged or cannot be written.
        DivergenceError: no SAE is left.
        InterruptedError: a signal asked to stop; the state is saved.
    """
    config = _config_for(folder, model)
    if is_trained(config, folder):
        logger.info("All SAEs of %s are trained already; delete its folder saes to train them again.", folder)
        return
    log = MetricsLog(folder / "metrics.jsonl", every=config.log_steps, last_step=config.num_steps, trackers=trackers)
    try:
        with locked(folder), cpu_threads(config.threads):
            run = TrainingRun.begin(config, folder, model)
            try:
                run.train(log)
            finally:
                log.close()
            run.save_saes()
            if not config.keep_checkpoints:
                remove_checkpoints(folder / "checkpoints")
    finally:
        release()


def train_to_end(config: RunConfig, folder: Path, model: LanguageModel) -> None:
    """Prepare a run and train it, whatever of that is missing; raises as `prepare_once`, and as `train`.

    It does not raise if all its SAEs diverge, which its folder says: the run may be a part of one that has others.
    """
    prepare_once(config, folder, model)
    if not is_trained(config, folder):
        try:
            train(folder, model)
        except DivergenceError as error:
            logger.warning("%s", error)


def prepare_once(config: RunConfig, folder: Path, model: LanguageModel) -> None:
    """Prepare a run, unless its folder holds the same already.

    Raises:
        ValueError: the folder holds a run with other settings, or the settings do not fit the model.
        OSError: as `prepare`.
    """
    if not (folder / "config.json").exists():
        prepare(config, folder, model)
    elif not _is_run_of(config, read_config(folder), model):
        raise ValueError(
            f"{folder} holds a run with other settings. Delete it, choose another --out, or give the settings that it "
            "was begun with."
        )


def _is_run_of(config: RunConfig, begun: ResolvedRun, model: LanguageModel) -> bool:
    """Whether a run was begun with these settings, perhaps on another machine."""
    # Without a word of the user, these two depend on the machine on which the run was begun.
    precision = config.optim.encoder_precision or begun.optim.encoder_precision
    optim = replace(config.optim, encoder_precision=precision)
    again = replace(config, optim=optim, threads=config.threads or begun.threads).resolve(model)
    return begun.on_device("cpu") == again.on_device("cpu")


def is_trained(config: RunConfig, folder: Path) -> bool:
    """Whether every SAE of a run is saved, or has diverged."""
    return not outcome_of(config, folder).missing


def evaluate_run(folder: Path, model: LanguageModel, max_bytes: int | None = None) -> list[dict[str, Any]]:
    """Evaluate the SAEs and controls of a trained run; writes sums.safetensors, comparison.json and records.jsonl.

    Args:
        folder: The run's directory.
        model: Its language model.
        max_bytes: See `measure`.

    Raises:
        ValueError: as `load_run`.
        DivergenceError: as `load_run`.
        RunInUseError: another process works on the run.
    """
    with locked(folder):
        return _evaluate(folder, model, max_bytes)


def _evaluate(folder: Path, model: LanguageModel, max_bytes: int | None) -> list[dict[str, Any]]:
    config = _config_for(folder, model)
    loaded = load_run(config, folder)
    beside = (Described(control, _about_control(control, config)) for control in _controls_of(config, model))
    text = training_text(config, model)
    measured = measure(text, config.eval, chain(loaded.described(), beside), max_bytes)
    comparisons = compare(measured.points)
    diverged = [f"diverged: {message}" for message in loaded.diverged.values()]
    summary = {"comparisons": comparisons, "warnings": [*diverged, *warnings_of(measured.records, comparisons)]}
    write_sums(folder / SUMS_FILE, measured.evaluations)
    write_whole(folder / "comparison.json", json.dumps(summary, indent=1) + "\n")
    # Last, because the records are what makes a run an evaluated one.
    write_whole(folder / "records.jsonl", "".join(json.dumps(record) + "\n" for record in measured.records))
    return measured.records


def evaluate_saes(
    folders: Sequence[Path],
    settings: EvalConfig,
    *,
    model: str | None = None,
    dtype: str = "float32",
    device: str = AUTO,
    text: str | None = None,
    text_field: str | None = None,
    trust_remote_code: bool = False,
) -> list[dict[str, Any]]:
    """Records of saved SAEs.

    Args:
        folders: Of SAEs that share a language model.
        settings: How many tokens, how many resamples.
        model: Another language model than theirs.
        dtype: Its precision.
        device: Where it and the SAEs go; `auto` is cuda on a machine with a GPU.
        text: Another text than theirs.
        text_field: Its column.
        trust_remote_code: Whether code that comes with the model may run on this machine.

    Raises:
        ValueError: the SAEs belong to different models or texts, or do not fit this model.
    """
    device = resolve_device(device)
    check_device(device)
    loaded = read_saes(folders, device=device)
    metadata = list(loaded.metadata.values())
    own = LanguageModel.load(
        model or _common(metadata, "model"),
        dtype=dtype,
        device=device,
        revision=None if model else _common(metadata, "revision", None),
        trust_remote_code=trust_remote_code,
    )
    read = Text(
        model=own,
        source=text or _common(metadata, "text"),
        text_field=text_field or (None if text else _common(metadata, "text_field", None)) or "text",
        context=min(_common(metadata, "context", 1024), own.context),
        packing=_common(metadata, "packing", "packed"),
        mask_special_tokens=_common(metadata, "mask_special_tokens", False),
        sites=tuple(dict.fromkeys(one["site"] for one in metadata)),
        skip_nonfinite=_common(metadata, "skip_nonfinite", False),
        max_norm_multiple=_common(metadata, "max_norm_multiple", None),
    )
    return measure(read, settings, loaded.described()).records


_NEEDED = object()


def _common(metadata: Sequence[Mapping[str, Any]], key: str, default: Any = _NEEDED) -> Any:
    """What all SAEs have noted under a key, or the default where they have not."""
    values = list(dict.fromkeys(one.get(key, default) for one in metadata))
    if len(values) > 1:
        raise ValueError(
            f"The SAEs differ in their {key}: {', '.join(map(str, values))}. Evaluate those that share one "
            f"together, or name one for all (--{key})."
        )
    if values[0] is _NEEDED:
        raise ValueError(f"The SAEs do not say which {key} they were trained on: name one with --{key}.")
    return values[0]


def read_config(folder: Path) -> ResolvedRun:
    """The settings of a run.

    Raises:
        FileNotFoundError: there is no run in `folder`.
        ValueError: config.json has unknown keys or values out of range.
    """
    path = folder / "config.json"
    return resolved_from_json(_text_of(path), str(path))


def config_to_measure(folder: Path, device: str | None = None) -> ResolvedRun:
    """Return the settings of a run that is to be evaluated or studied, perhaps on another machine.

    Args:
        folder: The run's directory.
        device: Where language model and SAEs go. By default where they were trained, or to the CPU, with a warning, if
            this machine has no such device.

    Raises:
        FileNotFoundError: there is no run in `folder`.
        ValueError: see `read_config`; or the device is unknown.
    """
    config = read_config(folder)
    if device is not None:
        return config.on_device(resolve_device(device))
    trained_on = config.language_model.device
    available = available_or_cpu(trained_on)
    return config if available == trained_on else config.on_device(available)


def _config_for(folder: Path, model: LanguageModel) -> ResolvedRun:
    """Return the settings of a run, with its SAEs where its language model was loaded this time."""
    config = read_config(folder)
    return config if model.is_spread else config.on_device(str(model.device))


def config_from_file(path: Path) -> RunConfig:
    """The settings in a config.json, or in that of a run's directory, to ask for them again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `read_config`.
    """
    if path.is_dir():
        path = path / "config.json"
    return config_from_json(_text_of(path), str(path))


def _text_of(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist, so there is no run to read. Start one with penstock train or sweep --out DIR."
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}. Restore the file."
        ) from error


def _controls_of(config: ResolvedRun, model: LanguageModel) -> list[Candidate]:
    acts = fill_cache(training_stream(config, model), min(CONTROL_TOKENS, config.data.tokens), seed=0).acts
    targets = {round(sae.aimed_l0) for sae in config.saes if sae.aimed_l0 is not None} or {8, 32}
    found = []
    for site in config.sites:
        d_in = acts[site].shape[1]
        components = tuple(sorted({k for k in targets if 1 <= k <= d_in}))
        found += controls(site, acts[site], components)
    return found


def _about_control(candidate: Candidate, config: RunConfig) -> dict[str, Any]:
    blank = dict.fromkeys(about_sae("", 0, 0, {"name": ""}))
    return blank | {
        "name": candidate.name,
        "arch": candidate.name.split("-")[0].split("_")[0],
        "model": config.language_model.model,
        "site": candidate.site,
        "d_in": candidate.d_in,
        "d_sae": len(candidate.decoder_norm),
    }
