"""Checkpoints that are whole or not there: written under another name, synced to disk, then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

KEEP = 2
"""Checkpoints of a run that stay on disk."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""


class Checkpoint(NamedTuple):
    """A run's state after `step` steps."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Path:
    """Write `folder/step_XXXXXXXX` and remove all but the last KEEP checkpoints.

    Raises:
        CheckpointError: the disk is full or not writable; what was there before is untouched.
    """
    final = folder / f"step_{step:08d}"
    partial = folder / f".partial_{step:08d}"
    try:
        for left_by_a_kill in folder.glob(".partial_*"):
            shutil.rmtree(left_by_a_kill)
        partial.mkdir(parents=True)
        # Views of one storage could not be saved together.
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        data = safetensors.torch.save(own)
        write_synced(partial / "state.safetensors", data)
        summary = {"step": step, "sha256": _digest(data, step, numbers), "numbers": dict(numbers)}
        write_synced(partial / "state.json", json.dumps(summary, indent=1).encode())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = latest_checkpoint(folder)
        remains = f"The last good one is {last}." if last else "There is none before it."
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {folder}: {error.strerror or error}. {remains} "
            "Make room or give write permission, then continue with --resume."
        ) from error
    for old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and prove it whole by its checksum.

    Raises:
        CheckpointError: a file is missing or damaged; says which older checkpoint remains.
    """
    try:
        summary = json.loads((path / "state.json").read_text())
        data = (path / "state.safetensors").read_bytes()
        if _digest(data, summary["step"], summary["numbers"]) != summary["sha256"]:
            raise ValueError("its checksum does not match")
        return Checkpoint(summary["step"], safetensors.torch.load(data), summary["numbers"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        older = [other for other in _checkpoints(path.parent) if other < path]
        remains = f"continue from {older[-1].name}" if older else "train from the start, for no older one is left"
        raise CheckpointError(f"The checkpoint {path} is damaged: {error}. Remove that folder to {remains}.") from error


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run, or None if it has none yet."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file under another name first, so that a full disk or a kill never leaves half of it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_synced(partial, data.encode() if isinstance(data, str) else data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _digest(data: bytes, step: int, numbers: Mapping[str, Any]) -> str:
    """A checksum over all of a checkpoint; JSON gives back the very floats that it was given."""
    return hashlib.sha256(data + json.dumps([step, dict(numbers)]).encode()).hexdigest()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*"))


def _sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
