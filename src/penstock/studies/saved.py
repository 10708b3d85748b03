"""SAEs from disk, ready to be evaluated: all that are left of a run, or single ones."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from penstock.evaluation.evaluate import Candidate
from penstock.formats.native import load_sae
from penstock.saes import SAE
from penstock.training.config import RunConfig
from penstock.training.outcome import outcome_of
from penstock.training.trainer import DivergenceError

logger = logging.getLogger(__name__)


class LoadedSAEs(NamedTuple):
    """SAEs from disk, ready to be evaluated."""

    saes: dict[str, SAE]
    """By name, in the dtype they were saved in."""
    candidates: list[Candidate]
    about: dict[str, Mapping[str, Any]]
    """For each candidate's name what its record says of it."""
    metadata: list[dict[str, Any]]
    """What was saved with each."""
    diverged: dict[str, str]
    """SAEs of their run that have diverged and are not here: by name the message."""


def load_run(config: RunConfig, folder: Path) -> LoadedSAEs:
    """Read the SAEs of a trained run; those that have diverged are passed over, with a logged warning.

    Raises:
        ValueError: its training is not over, or one of its SAEs cannot be read.
        DivergenceError: all its SAEs have diverged.
    """
    found = outcome_of(config, folder)
    if found.missing:
        raise ValueError(
            f"The run in {folder} is not finished: it has no {found.missing[0]} yet. Go on with: penstock train "
            f"--resume {folder}"
        )
    if not found.finished:
        raise DivergenceError(
            f"There is nothing to measure: all SAEs of the run in {folder} have diverged ({len(found.diverged)} in "
            f"all). {next(iter(found.diverged.values()))}"
        )
    for message in found.diverged.values():
        logger.warning("Passed over: %s", message)
    folders = [folder / "saes" / name for name in found.finished]
    return load_candidates(folders, device=config.language_model.device)._replace(diverged=found.diverged)


def load_candidates(folders: Sequence[Path], *, device: str) -> LoadedSAEs:
    """Read SAEs; one whose name is taken already goes by its folder.

    Raises:
        ValueError: a folder holds no SAE, or one that does not say its site.
    """
    loaded = LoadedSAEs({}, [], {}, [], {})
    for folder in folders:
        sae, metadata = load_sae(folder, device=device)
        if "site" not in metadata:
            raise ValueError(
                f"{folder}/cfg.json does not say where the SAE belongs: add its site to `metadata`, e.g. "
                '"site": "resid_post.2".'
            )
        name = metadata.get("name", folder.name)
        name = str(folder) if name in loaded.about else name
        loaded.saes[name] = sae
        loaded.candidates.append(Candidate.of(name, metadata["site"], sae))
        loaded.about[name] = about_sae(sae.arch, sae.d_in, sae.d_sae, {**metadata, "name": name})
        loaded.metadata.append(metadata)
    return loaded


def about_sae(arch: str, d_in: int, d_sae: int, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of an SAE says beside the numbers."""
    kept = (
        "recipe", "model", "site", "sparsity_coef", "paper_lambda", "target_l0", "coef_frozen_at_step", "seed", "lr",
        "lr_rule", "steps", "batch_size", "tokens_trained", "unique_tokens", "passes", "train_seconds", "resampled",
        "warnings",
    )  # fmt: skip
    about = {key: metadata.get(key) for key in kept}
    return {"name": metadata["name"], "arch": arch, "d_in": d_in, "d_sae": d_sae, **about}
