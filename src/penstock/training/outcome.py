"""What has become of the SAEs of a run: saved, diverged, or neither yet."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

from penstock.files import write_whole
from penstock.formats import save_sae
from penstock.saes import SAE
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


def outcome_of(config: RunConfig, run_dir: Path) -> Outcome:
    """Which SAEs of the run in `run_dir` are finished, and which have diverged."""
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
    """Write an SAE in its final form: raw activations in and out, unit-norm decoder rows.

    Args:
        sae: The trained SAE; it is not changed.
        scale: Scaled activations, on which it was trained, over raw ones.
        folder: The folder of this SAE.
        metadata: What is saved with it.
    """
    final = copy.deepcopy(sae)
    final.fold_decoder_norm_()
    final.fold_input_scale_(scale)
    # It may have diverged here before, on another machine. Before the weights: both would say that it has diverged.
    (folder / DIVERGED_FILE).unlink(missing_ok=True)
    save_sae(final, folder, metadata)


def write_diverged(folder: Path, message: str) -> None:
    """Write the message of an SAE's divergence into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / DIVERGED_FILE, message + "\n")
