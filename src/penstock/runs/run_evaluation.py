"""Evaluation of a trained run, or of saved SAEs, with the controls that they are read against."""

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
from penstock.evaluation.settings import EvalConfig
from penstock.evaluation.sums import SUMS_FILE, write_sums
from penstock.files import write_whole
from penstock.language_models.loading import LanguageModel
from penstock.runs.load_model import config_for
from penstock.runs.run_lock import locked
from penstock.runs.trained_saes import about_sae, load_run, read_saes
from penstock.training.batches import training_stream, training_text
from penstock.training.settings import ResolvedRun, RunConfig

CONTROL_TOKENS = 100_000
"""Training activations on which PCA and the mean are fitted."""


def evaluate_run(run_dir: Path, model: LanguageModel, max_bytes: int | None = None) -> list[dict[str, Any]]:
    """Evaluate the SAEs and controls of a trained run; writes sums.safetensors, comparison.json and records.jsonl.

    Args:
        run_dir: The run's directory.
        model: Its language model.
        max_bytes: See `measure`.

    Raises:
        ValueError: as `load_run`.
        DivergenceError: as `load_run`.
        RunInUseError: another process works on the run.
    """
    with locked(run_dir):
        return _evaluate(run_dir, model, max_bytes)


def _evaluate(run_dir: Path, model: LanguageModel, max_bytes: int | None) -> list[dict[str, Any]]:
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
    # Last, because the records are what makes a run an evaluated one.
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
