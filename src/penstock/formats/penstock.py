"""penstock's own format: a folder with `cfg.json` and `sae.safetensors`.

cfg.json: {"architecture", "d_in", "d_sae", "settings": {k, ...}, "dtype", "metadata": {model, site, recipe, ...}}. The
tensors have the names and shapes of the architecture's parameters. The SAE takes and returns raw activations.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from penstock.files import safetensors_blocks, whole_file, write_whole
from penstock.formats.base import SAEFacts, SAEFileError, SavedSAE
from penstock.formats.foreign import foreign_format
from penstock.json_files import (
    COUNT,
    NUMBER,
    OBJECT,
    POSITIVE,
    SIZE,
    TEXT,
    FileError,
    Kind,
    check_keys,
    list_of,
    or_null,
    read_object,
)
from penstock.saes import ARCHITECTURES, SAE, latent_major

FILES = ("cfg.json", "sae.safetensors")

_KINDS: Mapping[str, Kind] = {"architecture": TEXT, "d_in": SIZE, "d_sae": SIZE, "settings": OBJECT, "metadata": OBJECT}
"""The kinds of value allowed in cfg.json, by key."""

_METADATA_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("name", "site"), TEXT),
    **dict.fromkeys(("model", "revision", "text", "text_field", "packing", "recipe", "lr_rule"), or_null(TEXT)),
    **dict.fromkeys(("seed", "steps", "batch_size", "tokens_trained", "unique_tokens", "resampled"), or_null(COUNT)),
    **dict.fromkeys(("sparsity_coef", "lr", "scale", "passes", "train_seconds"), or_null(NUMBER)),
    **dict.fromkeys(("target_l0", "paper_lambda"), or_null(POSITIVE)),
    "context": or_null(SIZE),
    "coef_frozen_at_step": or_null(COUNT),
    "coef_path": or_null(list_of(or_null(NUMBER))),
    "warnings": or_null(list_of(TEXT)),
}
"""The kinds of value allowed in `metadata`, for the keys that penstock reads."""


def detect(path: Path) -> bool:
    """Whether this folder holds an SAE in penstock's format, whole or damaged."""
    return any((path / name).is_file() for name in FILES) and foreign_format(path) is None


def write(sae: SAE, path: Path, metadata: dict[str, Any]) -> None:
    """Save an SAE that takes and returns raw activations; the folder is created if needed."""
    path.mkdir(parents=True, exist_ok=True)
    cfg = {
        "architecture": sae.arch,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "settings": sae.settings.to_json(),
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "metadata": metadata,
    }
    # cfg.json marks a complete SAE. So the old one is deleted first, and the new one is written last.
    (path / "cfg.json").unlink(missing_ok=True)
    with whole_file(path / "sae.safetensors") as file:
        file.writelines(safetensors_blocks(sae.state_dict()))
    write_whole(path / "cfg.json", json.dumps(cfg, indent=1) + "\n")


def read_facts(path: Path) -> SAEFacts:
    """The facts in an SAE's cfg.json.

    Raises:
        SAEFileError: a file is missing, or cfg.json is damaged or names an unknown architecture or setting.
    """
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise SAEFileError(
            f"{path} is not an SAE: {' and '.join(missing)} missing. Give the folder that "
            "holds cfg.json and sae.safetensors, e.g. runs/demo/saes/NAME."
        )
    where = f"{path}/cfg.json"
    try:
        cfg = read_object(path / "cfg.json")
        check_keys(cfg, _KINDS, where, needed=("architecture", "d_in", "d_sae"))
        check_keys(cfg.get("metadata", {}), _METADATA_KINDS, f"{where}, metadata", needed=())
    except FileError as error:
        raise SAEFileError(str(error)) from error
    arch, d_in, d_sae, metadata = cfg["architecture"], cfg["d_in"], cfg["d_sae"], cfg.get("metadata", {})
    if arch not in ARCHITECTURES:
        raise SAEFileError(
            f"{path}/cfg.json names the architecture {arch!r}, which is not known: it must be one of "
            f"{', '.join(sorted(ARCHITECTURES))}."
        )
    try:
        # Files written before architectures had settings of their own lack the key.
        settings = ARCHITECTURES[arch].settings_of(cfg.get("settings", {}))
    except (ValueError, TypeError) as error:
        raise SAEFileError(f"{path}/cfg.json does not fit the architecture {arch!r}: {error}") from error
    return SAEFacts(arch, d_in, d_sae, settings, metadata)


def read(path: Path, *, device: str) -> SavedSAE:
    """The SAE, in the dtype that it was saved in.

    Raises:
        SAEFileError: see `read_facts`, or the tensors are damaged or do not fit the architecture.
    """
    facts = read_facts(path)
    try:
        tensors = safetensors.torch.load_file(path / "sae.safetensors", device=device)
    except (ValueError, SafetensorError) as error:
        raise _damaged(path, error) from error
    shape = tuple(tensors["W_dec"].shape) if "W_dec" in tensors else None
    if shape != (facts.d_sae, facts.d_in):
        # Checked before an SAE of these sizes is allocated.
        raise SAEFileError(
            f"{path}/sae.safetensors does not fit {path}/cfg.json, which says d_sae {facts.d_sae} and d_in "
            f"{facts.d_in}: the shape of W_dec is {shape}. Save or copy the SAE again."
        )
    sae = ARCHITECTURES[facts.arch].make(facts.d_in, facts.d_sae, facts.settings)
    try:
        # assign=True gives the SAE the dtype of the file. The clones are needed because the loaded tensors map the
        # file, which a later save to the same folder replaces.
        sae.load_state_dict({name: value.clone() for name, value in tensors.items()}, assign=True)
    except RuntimeError as error:
        raise SAEFileError(f"{path}/sae.safetensors does not fit {path}/cfg.json: {_one_line(error)}") from error
    for name in sae.encoder_matrices:
        matrix = getattr(sae, name)
        matrix.data = latent_major(matrix.data)
    return SavedSAE(sae.requires_grad_(False), facts)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _damaged(folder: Path, error: Exception) -> SAEFileError:
    return SAEFileError(f"The SAE in {folder} is damaged: {error}. Save or copy it again.")
