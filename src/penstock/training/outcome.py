"""The outcome of training for each SAE of a run: saved, diverged, or still missing."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

from penstock.files import write_whole
from penstock.formats import save_sae
from penstock.saes import SAE
from penstock.training.settings import RunConfig

DIVERGED_FILE = "diverged.txt"
"""The file with the error message in the folder of an SAE that diverged, in place of cfg.json and sae.safetensors."""


class Outcome(NamedTuple):
    """The SAEs of a run by name, in the order of its settings."""

    finished: list[str]
    """SAEs that are trained to the end and saved."""
    diverged: dict[str, str]
    """The messages of SAEs that were left out because a term of their loss became NaN or infinite."""
    missing: list[str]
    """SAEs that are not trained to the end yet."""


def outcome_of(config: RunConfig, run_dir: Path) -> Outcome:
    """The outcome of training for each SAE of the run in `run_dir`."""
    outcome = Outcome([], {}, [])
    for sae in config.saes:
        folder = run_dir / "saes" / sae.folder
        if (folder / DIVERGED_FILE).is_file():
            outcome.diverged[sae.folder] = (folder / DIVERGED_FILE).read_text(encoding="utf-8").rstrip("\n")
        elif (folder / "cfg.json").is_file():
            outcome.finished.append(sae.folder)
        else:
            outcome.missing.append(sae.folder)
    return outcome


def write_finished(sae: SAE, scale: float, folder: Path, metadata: dict[str, Any]) -> None:
    """Save an SAE in its final form, which takes and returns raw activations and has unit-norm decoder rows.

    Args:
        sae: The trained SAE, which is not changed.
        scale: The factor by which the activations were scaled for training.
        folder: The folder of this SAE.
        metadata: The metadata to save with it.
    """
    final = copy.deepcopy(sae)
    final.fold_decoder_norm_()
    final.fold_input_scale_(scale)
    # The SAE may have diverged earlier, on another machine. An SAE with this file counts as diverged, so it goes first.
    (folder / DIVERGED_FILE).unlink(missing_ok=True)
    save_sae(final, folder, metadata)


def write_diverged(folder: Path, message: str) -> None:
    """Write the message of an SAE's divergence into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / DIVERGED_FILE, message + "\n")
