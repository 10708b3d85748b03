"""SAEs on disk: one module for each format, and a line in FORMATS."""

from pathlib import Path
from typing import Any

from penstock.formats import penstock
from penstock.formats.base import Format, SAEFacts, SAEFileError, SavedSAE
from penstock.formats.foreign import foreign_format
from penstock.saes import SAE

FORMATS: dict[str, Format] = {
    "penstock": penstock,
}
"""The formats that can be read and written, by name; a folder is read by the first one that detects it."""

OWN_FORMAT = "penstock"
"""The format that runs write."""


def load_sae(folder: str | Path, *, device: str = "cpu") -> SavedSAE:
    """Read an SAE in any of FORMATS: (sae, facts), where `facts.format` names the format.

    Args:
        folder: Holds the files of one SAE.
        device: Where its weights go.

    Raises:
        SAEFileError: the folder holds no SAE of these formats, or a damaged one; says what it holds instead.
    """
    name = format_of(folder)
    sae, facts = FORMATS[name].read(Path(folder), device=device)
    return SavedSAE(sae, facts._replace(format=name))


def read_facts(folder: str | Path) -> SAEFacts:
    """What is known of an SAE on disk, without its weights.

    Raises:
        SAEFileError: see `load_sae`.
    """
    name = format_of(folder)
    return FORMATS[name].read_facts(Path(folder))._replace(format=name)


def save_sae(sae: SAE, folder: str | Path, metadata: dict[str, Any], *, format: str = OWN_FORMAT) -> None:
    """Write an SAE that takes and returns raw activations.

    Args:
        sae: What to save.
        folder: Made if needed; files of the same names in it are replaced.
        metadata: Where it belongs and how it was made, ready for JSON: `model`, `site`, ...
        format: One of FORMATS.

    Raises:
        ValueError: there is no such format.
        OSError: the disk is full or not writable.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not known: allowed are {', '.join(FORMATS)}.")
    FORMATS[format].write(sae, Path(folder), metadata)


def format_of(folder: str | Path) -> str:
    """The name of the format that an SAE is stored in.

    Raises:
        SAEFileError: see `load_sae`.
    """
    folder = Path(folder)
    if folder.is_file():
        raise SAEFileError(f"{folder} is a file. Give the folder that holds it: {folder.parent}.")
    for name, known in FORMATS.items():
        if known.detect(folder):
            return name
    foreign = foreign_format(folder)
    if foreign is not None:
        raise SAEFileError(
            f"{folder} holds an SAE of {foreign.library} ({foreign.files}), which penstock cannot read. Load it with "
            f"{foreign.library}, copy its tensors into an SAE of penstock, and write that with penstock.save_sae: "
            "docs/formats.md says how."
        )
    inside = sorted(str(below.relative_to(folder)) for below in _folders_below(folder) if _holds_sae(below))
    if inside:
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        raise SAEFileError(
            f"{folder} is not an SAE, but folders inside it are: {', '.join(inside[:3])}{more}. Give one of these."
        )
    raise SAEFileError(
        f"{folder} is not an SAE: {'it has no cfg.json' if folder.is_dir() else 'there is no such folder'}. Give the "
        "folder that holds cfg.json and sae.safetensors, e.g. runs/demo/saes/NAME."
    )


def _holds_sae(folder: Path) -> bool:
    return any(known.detect(folder) for known in FORMATS.values()) or foreign_format(folder) is not None


def _folders_below(folder: Path) -> list[Path]:
    """Folders in the folder and one level deeper, as runs and libraries lay out their SAEs."""
    try:
        return [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_dir()]
    except OSError:
        return []


__all__ = [
    "FORMATS",
    "OWN_FORMAT",
    "Format",
    "SAEFacts",
    "SAEFileError",
    "SavedSAE",
    "format_of",
    "load_sae",
    "read_facts",
    "save_sae",
]
