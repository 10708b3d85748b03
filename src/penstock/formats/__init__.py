"""Saving and loading SAEs. Each file format has one module and a line in FORMATS."""

from pathlib import Path
from typing import Any

from penstock.formats import penstock
from penstock.formats.base import Format, SAEFacts, SAEFileError, SavedSAE
from penstock.formats.foreign import foreign_format
from penstock.saes import SAE

FORMATS: dict[str, Format] = {
    "penstock": penstock,
}
"""The formats that can be read and written, by name. A folder is read with the first format that detects it."""

OWN_FORMAT = "penstock"
"""The format in which runs save their SAEs."""


def load_sae(folder: str | Path, *, device: str = "cpu") -> SavedSAE:
    """Load an SAE stored in any of FORMATS.

    Args:
        folder: The folder with the files of one SAE.
        device: The device for its weights.

    Returns:
        The SAE and its facts, where `facts.format` is the name of the format.

    Raises:
        SAEFileError: the folder does not hold an SAE in one of these formats, or the SAE is damaged.
    """
    name = format_of(folder)
    sae, facts = FORMATS[name].read(Path(folder), device=device)
    return SavedSAE(sae, facts._replace(format=name))


def read_facts(folder: str | Path) -> SAEFacts:
    """The facts of an SAE on disk, read without its weights.

    Raises:
        SAEFileError: see `load_sae`.
    """
    name = format_of(folder)
    return FORMATS[name].read_facts(Path(folder))._replace(format=name)


def save_sae(sae: SAE, folder: str | Path, metadata: dict[str, Any], *, format: str = OWN_FORMAT) -> None:
    """Save an SAE that takes and returns raw activations.

    Args:
        sae: The SAE.
        folder: The folder to write to, created if needed; files of the same names are replaced.
        metadata: Values that JSON can hold, such as `model`, `site` and `recipe`.
        format: The name of one of FORMATS.

    Raises:
        ValueError: the format is unknown.
        OSError: the disk is full or not writable.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not known: it must be one of {', '.join(FORMATS)}.")
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
    """The folders one and two levels below, where runs and other libraries put their SAEs."""
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
