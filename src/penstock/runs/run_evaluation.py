"""Evaluation of a trained run, with controls, or of saved SAEs."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from penstock.activations.harvest import Text, fill_cache
from penstock.devices import AUTO, check_device, resolve_device
from penstock.evaluation.comparison import compare, warnings_of
from penstock.evaluation.controls import controls
from penstock.evaluation.evaluate import Candidate
from penstock.evaluation.measuring import Described, measure
from penstock.evaluation.sae_record import AboutSAE, SAERecord, about_sae
from penstock.evaluation.settings import EvalConfig
from penstock.evaluation.sums import SUMS_FILE, write_sums
from penstock.files import write_whole
from penstock.language_models.loading import LanguageModel
from penstock.runs.load_model import config_for
from penstock.runs.run_lock import locked
from penstock.runs.trained_saes import load_run, read_saes
from penstock.training.batches import training_stream, training_text
from penstock.training.settings import ResolvedRun, RunConfig

CONTROL_TOKENS = 100_000
"""The number of training activations on which PCA and the mean are fitted."""


def evaluate_run(run_dir: Path, model: LanguageModel, max_bytes: int | None = None) -> list[SAERecord]:
    """Evaluate the SAEs and controls of a trained run, and return their records.

    Writes sums.safetensors, comparison.json and records.jsonl to the run's directory.

    Args:
        run_dir: The run's directory.
        model: The run's language model.
        max_bytes: See `measure`.

    Raises:
        ValueError: see `load_run`.
        DivergenceError: see `load_run`.
        RunInUseError: another process works on the run.
    """
    with locked(run_dir):
        return _evaluate(run_dir, model, max_bytes)


def _evaluate(run_dir: Path, model: LanguageModel, max_bytes: int | None) -> list[SAERecord]:
    config = config_for(run_dir, model)
    loaded = load_run(config, run_dir)
    beside = (Described(control, _about_control(control, config)) for control in _controls_of(config, model))
    text = training_text(config, model)
    measured = measure(text, config.eval, chain(loaded.described(), beside), max_bytes)
    comparisons = compare(measured.points)
    diverged = [f"diverged: {message}" for message in loaded.diverged.values()]
    summary = {"comparisons": comparisons, "warnings": [*diverged, *warnings_of(measured.records, comparisons)]}
    write_sums(run_dir / SUMS_FILE, measured.evaluations)
    write_whole(run_dir / "comparison.json", json.dumps(summary, indent=1) + "\n")
    # Written last, because records.jsonl marks a run as evaluated.
    write_whole(run_dir / "records.jsonl", "".join(json.dumps(record) + "\n" for record in measured.records))
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
) -> list[SAERecord]:
    """Evaluate saved SAEs, and return their records.

    Args:
        folders: The folders of SAEs of one language model.
        settings: The settings of the evaluation.
        model: Language model; by default the one that the SAEs were trained on.
        dtype: Precision of the language model.
        device: Device of the language model and the SAEs; `auto` is cuda on a machine with a GPU.
        text: Text; by default the one that the SAEs were trained on.
        text_field: Column of the text; by default the same as in training.
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
    """The value that all SAEs have in their metadata under a key, or the default if they do not have the key."""
    values = list(dict.fromkeys(one.get(key, default) for one in metadata))
    if len(values) > 1:
        raise ValueError(
            f"The SAEs differ in their {key}: {', '.join(map(str, values))}. Evaluate only those together that have "
            f"the same, or give one for all with --{key}."
        )
    if values[0] is _NEEDED:
        raise ValueError(f"The SAEs do not say which {key} they were trained on. Give it with --{key}.")
    return values[0]


def _controls_of(config: ResolvedRun, model: LanguageModel) -> list[Candidate]:
    acts = fill_cache(training_stream(config, model), min(CONTROL_TOKENS, config.data.tokens), seed=0).acts
    targets = {round(sae.aimed_l0) for sae in config.saes if sae.aimed_l0 is not None} or {8, 32}
    found = []
    for site in config.sites:
        d_in = acts[site].shape[1]
        components = tuple(sorted({k for k in targets if 1 <= k <= d_in}))
        found += controls(site, acts[site], components)
    return found


def _about_control(candidate: Candidate, config: RunConfig) -> AboutSAE:
    arch = candidate.name.split("-")[0].split("_")[0]
    known = {"name": candidate.name, "model": config.language_model.model, "site": candidate.site}
    return about_sae(arch, candidate.d_in, len(candidate.decoder_norm), known)
