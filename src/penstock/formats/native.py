"""penstock's own format: a folder with `cfg.json` and `sae.safetensors`.

cfg.json: {"architecture", "d_in", "d_sae", "dtype", "metadata": {model, site, recipe, ...}}. The tensors have
the names and shapes of the architecture's parameters; the SAE takes and returns raw activations.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError

from penstock.files import safetensors_blocks, whole_file, write_whole
from penstock.saes import ARCHITECTURES, SAE, Settings
from penstock.saes.base import latent_major


class SAEFileError(ValueError):
    """A folder does not hold an SAE that can be loaded."""


class SavedSAE(NamedTuple):
    """An SAE from disk and what was noted about it."""

    sae: SAE
    metadata: dict[str, Any]
    """Where it belongs and how it was made: `model`, `site`, `recipe`, `name`, ..."""


def save_sae(sae: SAE, folder: Path, metadata: dict[str, Any]) -> None:
    """Write an SAE that works on raw activations; the folder is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {
        "architecture": sae.arch,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "settings": sae.settings.to_json(),
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "metadata": metadata,
    }
    # Its presence says that an SAE is saved: the one of an earlier SAE goes first, and it comes last and whole.
    (folder / "cfg.json").unlink(missing_ok=True)
    with whole_file(folder / "sae.safetensors") as file:
        file.writelines(safetensors_blocks(sae.state_dict()))
    write_whole(folder / "cfg.json", json.dumps(cfg, indent=1) + "\n")


class SAEFacts(NamedTuple):
    """What cfg.json says of an SAE."""

    arch: str
    d_in: int
    d_sae: int
    settings: Settings
    """The architecture's own."""
    metadata: dict[str, Any]
    """Where it belongs and how it was made: `model`, `site`, `recipe`, `name`, ..."""


def read_facts(folder: str | Path) -> SAEFacts:
    """What is known of an SAE written by `save_sae`, without its weights.

    Raises:
        SAEFileError: files are missing, or cfg.json is damaged or names an unknown architecture.
    """
    folder = Path(folder)
    missing = [name for name in ("cfg.json", "sae.safetensors") if not (folder / name).is_file()]
    if missing:
        raise SAEFileError(
            f"{folder} is not an SAE: {' and '.join(missing)} missing. Give the folder that "
            "holds cfg.json and sae.safetensors, e.g. runs/demo/saes/NAME."
        )
    try:
        cfg = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(folder, error) from error
    try:
        arch, d_in, d_sae, metadata = cfg["architecture"], cfg["d_in"], cfg["d_sae"], cfg.get("metadata", {})
    except (KeyError, TypeError) as error:
        raise SAEFileError(
            f"{folder}/cfg.json must be an object with architecture, d_in and d_sae. Save the SAE again."
        ) from error
    if arch not in ARCHITECTURES:
        raise SAEFileError(
            f"{folder}/cfg.json names the architecture {arch!r}; known: {', '.join(sorted(ARCHITECTURES))}."
        )
    try:
        # Files from before architectures had settings have none.
        settings = ARCHITECTURES[arch].settings_of(cfg.get("settings", {}))
    except (ValueError, TypeError) as error:
        raise SAEFileError(f"{folder}/cfg.json does not fit the architecture {arch!r}: {error}") from error
    return SAEFacts(arch, d_in, d_sae, settings, metadata)


def load_sae(folder: str | Path, *, device: str = "cpu") -> SavedSAE:
    """Read an SAE written by `save_sae`, in the dtype it was saved in.

    Raises:
        SAEFileError: files are missing, damaged, or do not fit the architecture.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    try:
        tensors = safetensors.torch.load_file(folder / "sae.safetensors", device=device)
    except (ValueError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    sae = ARCHITECTURES[facts.arch].make(facts.d_in, facts.d_sae, facts.settings)
    try:
        # Assigned, so that the SAE has the dtype of the file. Cloned, because the tensors are views of the
        # file itself, which a later save to the same folder would cut from under them.
        sae.load_state_dict({name: value.clone() for name, value in tensors.items()}, assign=True)
    except RuntimeError as error:
        raise SAEFileError(f"{folder}/sae.safetensors does not fit {folder}/cfg.json: {error}") from error
    for name in sae.encoder_matrices:
        matrix = getattr(sae, name)
        matrix.data = latent_major(matrix.data)
    return SavedSAE(sae.requires_grad_(False), facts.metadata)


def _damaged(folder: Path, error: Exception) -> SAEFileError:
    return SAEFileError(f"The SAE in {folder} is damaged: {error}. Save or copy it again.")
