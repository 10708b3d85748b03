"""Train many SAEs on one stream, evaluate them and the controls on the same held-out tokens, compare.

    prepare(config, folder)  ->  train(folder)  ->  evaluate_run(folder)

Each step reads what the one before left in the run's directory, so that any of them can be done again.
"""

import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penstock.activations.harvest import Text, TrainingStream, fill_cache
from penstock.evaluation.evaluate import Candidate, evaluate
from penstock.evaluation.records import record_of
from penstock.evaluation.statistics import resample_weights, resampled_metrics
from penstock.formats.native import load_sae
from penstock.language_models.loading import LanguageModel
from penstock.metrics import metrics_of
from penstock.studies.comparison import Point, compare, warnings_of
from penstock.studies.controls import controls
from penstock.training.config import (
    EvalConfig,
    LanguageModelConfig,
    RunConfig,
    config_from_json,
    config_to_json,
)
from penstock.training.metrics_log import MetricsLog, Tracker
from penstock.training.run import TrainingRun, decide, training_text

logger = logging.getLogger(__name__)

CONTROL_TOKENS = 100_000
"""Training activations on which PCA and the mean are fitted."""


def load_language_model(settings: LanguageModelConfig) -> LanguageModel:
    """The language model that the settings name."""
    return LanguageModel.load(
        settings.model,
        dtype=settings.dtype,
        # With a device_map the model is spread out, and `device` says where the SAEs live.
        device="cpu" if settings.device_map else settings.device,
        device_map=settings.device_map,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )


def load_model(config: RunConfig) -> LanguageModel:
    """The language model of a run."""
    return load_language_model(config.language_model)


def prepare(config: RunConfig, folder: Path, model: LanguageModel) -> RunConfig:
    """Make the run's directory with config.json (every setting decided) and environment.json.

    Raises:
        FileExistsError: the directory already holds a run.
        ValueError: the settings do not fit the model.
    """
    if (folder / "config.json").exists():
        raise FileExistsError(
            f"{folder} already holds a run. Continue it with --resume {folder}, or choose another --out."
        )
    decided = decide(config, model, {site: model.d_in(site) for site in config.sites})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config_to_json(decided))
    (folder / "environment.json").write_text(json.dumps(_environment(decided), indent=1) + "\n")
    return decided


def train(folder: Path, model: LanguageModel, trackers: tuple[Tracker, ...] = ()) -> None:
    """Train the SAEs of a prepared run, from its last checkpoint if it has one, and save them."""
    config = read_config(folder)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    run = TrainingRun(config, folder, model)
    run.resume()
    log = MetricsLog(
        folder / "metrics.jsonl", every=config.log_steps, last_step=config.num_steps, trackers=trackers
    )
    run.train(log)
    run.save_saes()


def evaluate_run(folder: Path, model: LanguageModel) -> list[dict[str, Any]]:
    """Evaluate the SAEs and controls of a trained run; writes records.jsonl and comparison.json."""
    config = read_config(folder)
    saes = [folder / "saes" / sae.folder for sae in config.saes]
    candidates, about = load_candidates(saes, device=config.language_model.device)
    for candidate in _controls_of(config, model):
        candidates.append(candidate)
        about[candidate.name] = _about_control(candidate, config)
    records, points = measure(training_text(config, model), config.eval, candidates, about)
    _write_lines(folder / "records.jsonl", records)
    comparisons = compare(points)
    summary = {"comparisons": comparisons, "warnings": warnings_of(records, comparisons)}
    (folder / "comparison.json").write_text(json.dumps(summary, indent=1) + "\n")
    return records


def load_candidates(
    folders: Sequence[Path], *, device: str
) -> tuple[list[Candidate], dict[str, Mapping[str, Any]]]:
    """SAEs from disk as candidates, and for each candidate's name what its record says of it."""
    candidates, about = [], {}
    for folder in folders:
        sae, metadata = load_sae(folder, device=device)
        name = metadata["name"]
        candidates.append(Candidate.of(name, metadata["site"], sae))
        about[name] = _about_sae(sae.arch, sae.d_in, sae.d_sae, metadata)
    return candidates, about


def evaluate_saes(
    folders: Sequence[Path],
    language_model: LanguageModelConfig | None,
    text: str | None,
    settings: EvalConfig,
) -> list[dict[str, Any]]:
    """Records of saved SAEs on their own language model and text, or on others.

    Raises:
        ValueError: the SAEs belong to different models, or do not fit this one.
    """
    device = language_model.device if language_model else "cpu"
    candidates, about = load_candidates(folders, device=device)
    metadata = load_sae(folders[0]).metadata
    names = sorted({str(one["model"]) for one in about.values()})
    if language_model is None:
        if len(names) > 1:
            raise ValueError(
                f"The SAEs belong to different models: {', '.join(names)}. Evaluate one model at a time."
            )
        language_model = LanguageModelConfig(model=names[0], revision=metadata["revision"])
    own = Text(
        model=load_language_model(language_model),
        source=text or metadata["text"],
        text_field="text",
        context=metadata["context"],
        packing="packed",
    )
    return measure(own, settings, candidates, about)[0]


def measure(
    text: Text,
    settings: EvalConfig,
    candidates: Sequence[Candidate],
    about: Mapping[str, Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[Point]]:
    """Records of all candidates, and the SAEs among them as points with bootstrap resamples.

    Args:
        text: Its held-out split is evaluated on.
        settings: How many tokens, how many resamples.
        candidates: What to measure.
        about: For each candidate's name what its record says beside the numbers.
    """
    rows = text.held_out(settings.eval_tokens, seed=settings.eval_seed)
    logger.info(
        "Evaluating %d reconstructions on %s held-out tokens", len(candidates), f"{int(rows.mask.sum()):,}"
    )
    evaluations = evaluate(text.model, rows, candidates)
    weights = resample_weights(len(rows.tokens), settings.bootstrap, settings.eval_seed)
    records = [record_of(evaluations[c.name], weights, about[c.name]) for c in candidates]
    points = [
        Point(
            arch=record["arch"],
            recipe=record["recipe"],
            site=record["site"],
            d_sae=record["d_sae"],
            seed=record["seed"],
            **_all_and_resampled(evaluations[record["name"]].sums, weights),
        )
        for record in records
        if record["recipe"] is not None
    ]
    return records, points


def read_config(folder: Path) -> RunConfig:
    """The settings of a run.

    Raises:
        FileNotFoundError: there is no run in `folder`.
        ValueError: config.json has unknown keys or values out of range.
    """
    return config_from_file(folder / "config.json")


def config_from_file(path: Path) -> RunConfig:
    """The settings in a config.json; raises as `read_config`."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist, so there is no run to read. Start one with penstock train or sweep --out DIR."
        )
    return config_from_json(path.read_text(), str(path))


def _all_and_resampled(sums: Mapping[str, Tensor], weights: Tensor) -> dict[str, np.ndarray]:
    on_all = metrics_of({name: value.sum() for name, value in sums.items()})
    resampled = resampled_metrics(sums, weights)
    return {
        name: torch.cat([on_all[name].view(1), resampled[name]]).numpy() for name in ("l0", "loss_recovered")
    }


def _controls_of(config: RunConfig, model: LanguageModel) -> list[Candidate]:
    stream = TrainingStream(
        text=training_text(config, model),
        sites=config.sites,
        batch_rows=config.data.model_batch_rows,
        device=config.language_model.device,
    )
    acts = fill_cache(stream, min(CONTROL_TOKENS, config.data.tokens), seed=0).acts
    targets = {round(sae.target_l0) for sae in config.saes if sae.target_l0 is not None} or {8, 32}
    found = []
    for site in config.sites:
        d_in = acts[site].shape[1]
        components = tuple(sorted({k for k in targets if 1 <= k <= d_in}))
        found += controls(site, acts[site], components)
    return found


def _about_sae(arch: str, d_in: int, d_sae: int, metadata: Mapping[str, Any]) -> dict[str, Any]:
    kept = (
        "recipe", "model", "site", "sparsity_coef", "target_l0", "coef_frozen_at_step", "seed", "lr", "lr_rule",
        "steps", "batch_size", "tokens_trained", "unique_tokens", "passes", "train_seconds", "resampled", "warnings",
    )  # fmt: skip
    about = {key: metadata.get(key) for key in kept}
    return {"name": metadata["name"], "arch": arch, "d_in": d_in, "d_sae": d_sae, **about}


def _about_control(candidate: Candidate, config: RunConfig) -> dict[str, Any]:
    blank = dict.fromkeys(_about_sae("", 0, 0, {"name": ""}))
    return blank | {
        "name": candidate.name,
        "arch": candidate.name.split("-")[0].split("_")[0],
        "model": config.language_model.model,
        "site": candidate.site,
        "d_sae": len(candidate.decoder_norm),
    }


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    return {
        "penstock": version("penstock"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _environment(config: RunConfig) -> dict[str, Any]:
    return {
        **versions(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "device": config.language_model.device,
        "git_commit": _git_commit(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _git_commit() -> str | None:
    """The commit of penstock's own checkout, or None where it is installed without one."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
