"""File formats of other libraries. They are recognised, so that an error can name the library, but not read.

Layouts: SAELens 6 (cfg.json + sae_weights.safetensors), dictionary_learning (ae.pt + config.json), EleutherAI's
sparsify (cfg.json + sae.safetensors, as in penstock, but with other keys), Gemma Scope (params.npz). A format that
becomes readable moves from here to a module of its own.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class ForeignFormat(NamedTuple):
    """A format that penstock recognises but cannot read."""

    library: str
    files: str
    """The files by which it is recognised, for the error message."""
    detect: Callable[[Path], bool]


def foreign_format(folder: Path) -> ForeignFormat | None:
    """The first of FOREIGN that recognises the folder, or None."""
    return next((one for one in FOREIGN if one.detect(folder)), None)


def _json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one if it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_sparsify(folder: Path) -> bool:
    # Its weights have the same file name as ours.
    cfg = _json_object(folder / "cfg.json")
    return "architecture" not in cfg and {"d_in", "expansion_factor", "num_latents", "k"} <= cfg.keys()


def _is_saelens(folder: Path) -> bool:
    if (folder / "sae_weights.safetensors").is_file() and (folder / "cfg.json").is_file():
        return True
    metadata = _json_object(folder / "cfg.json").get("metadata")
    return isinstance(metadata, dict) and "sae_lens_version" in metadata


def _is_dictionary_learning(folder: Path) -> bool:
    return (folder / "ae.pt").is_file() or "dict_class" in _trainer(_json_object(folder / "config.json"))


def _trainer(config: dict[str, Any]) -> dict[str, Any]:
    trainer = config.get("trainer")
    return trainer if isinstance(trainer, dict) else {}


FOREIGN = (
    ForeignFormat("SAELens", "cfg.json and sae_weights.safetensors", _is_saelens),
    ForeignFormat("dictionary_learning", "ae.pt and config.json", _is_dictionary_learning),
    ForeignFormat("sparsify", "cfg.json with num_latents and expansion_factor", _is_sparsify),
    ForeignFormat("Gemma Scope", "params.npz", lambda folder: (folder / "params.npz").is_file()),
)
