"""What has become of the SAEs of a run: saved, diverged, or neither yet."""

from pathlib import Path
from typing import NamedTuple

from penstock.training.settings import RunConfig

DIVERGED_FILE = "diverged.txt"
"""In the folder of an SAE that has diverged: the message, instead of cfg.json and sae.safetensors."""


class Outcome(NamedTuple):
    """The SAEs of a run by name, in the order of its settings."""

    finished: list[str]
    """Trained to the end and saved."""
    diverged: dict[str, str]
    """Left out when a term of their loss became NaN or infinite, with the message."""
    missing: list[str]
    """Not trained to the end yet."""


def outcome_of(config: RunConfig, folder: Path) -> Outcome:
    """Which SAEs of the run in `folder` are finished, and which have diverged."""
    found = Outcome([], {}, [])
    for sae in config.saes:
        own = folder / "saes" / sae.folder
        if (own / DIVERGED_FILE).is_file():
            found.diverged[sae.folder] = (own / DIVERGED_FILE).read_text(encoding="utf-8").rstrip("\n")
        elif (own / "cfg.json").is_file():
            found.finished.append(sae.folder)
        else:
            found.missing.append(sae.folder)
    return found
