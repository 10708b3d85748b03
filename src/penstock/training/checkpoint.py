"""Checkpoints, which are written atomically, and written and read in pieces.

RUN/checkpoints/step_N/state.safetensors  tensors: SAEs, optimisers, dead counters, the shuffle buffer
RUN/checkpoints/step_N/state.json         step, numbers, and a checksum over both files
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from penstock.files import PickedRows, safetensors_blocks, sync_folder, whole_file, write_whole
from penstock.json_files import COUNT, OBJECT, TEXT, FileError, check_keys, shown

KEEP = 2
"""The number of checkpoints that are kept on disk while a run trains."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name. Each access reads a copy of the tensor from the file."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self._path = path
        self._prefix = prefix
        with safe_open(path, framework="pt") as file:
            self._names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        with safe_open(self._path, framework="pt") as file:
            # Cloned, because the tensor is a view of the file, which is closed.
            return file.get_tensor(self._prefix + name).clone()

    def __contains__(self, name: object) -> bool:
        # The inherited method would read the tensor.
        return isinstance(name, str) and self._prefix + name in self._names

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._names)

    def __len__(self) -> int:
        return len(self._names)

    def under(self, prefix: str) -> "StoredTensors":
        """The tensors whose names start with a prefix, with the prefix removed from their names."""
        return StoredTensors(self._path, self._prefix + prefix)


class Checkpoint(NamedTuple):
    """A run's state after `step` steps."""

    step: int
    tensors: StoredTensors
    numbers: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor | PickedRows], numbers: Mapping[str, Any]
) -> Path:
    """Write the checkpoint `folder/step_XXXXXXXX`, remove all but the last KEEP checkpoints, and return its path.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are kept.
    """
    final = folder / f"step_{step:08d}"
    partial = folder / f".partial_{step:08d}"
    try:
        for left_by_a_kill in folder.glob(".partial_*"):
            shutil.rmtree(left_by_a_kill)
        partial.mkdir(parents=True)
        digest = hashlib.sha256()
        with whole_file(partial / "state.safetensors") as file:
            for block in safetensors_blocks(tensors):
                digest.update(block)
                file.write(block)
        digest.update(_as_bytes(step, numbers))
        summary = {"step": step, "sha256": digest.hexdigest(), "numbers": dict(numbers)}
        write_whole(partial / "state.json", json.dumps(summary, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = latest_checkpoint(folder)
        remains = f"The last good checkpoint is {last}." if last else "There is no earlier checkpoint."
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {folder}: {error.strerror or error}. {remains} "
            "Make room or give write permission, then continue with --resume."
        ) from error
    try:
        sync_folder(folder)
    except OSError as error:
        raise CheckpointError(
            f"{final} was written, but could not be synced to disk: {error.strerror or error}. Check the disk, then "
            "continue with --resume."
        ) from error
    for old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint and verify its checksum. Its tensors are read when they are accessed.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        summary = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise FileError(f"{path}/state.json must be an object, found {shown(summary)}")
        kinds = {"step": COUNT, "sha256": TEXT, "numbers": OBJECT}
        check_keys(summary, kinds, f"{path}/state.json", needed=kinds)
        step, numbers = summary["step"], summary["numbers"]
        if _digest(path / "state.safetensors", step, numbers) != summary["sha256"]:
            raise ValueError("its checksum does not match")
        return Checkpoint(step, StoredTensors(path / "state.safetensors"), numbers)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        older = [other for other in _checkpoints(path.parent) if other < path]
        remains = f"continue from {older[-1].name}" if older else "train from the start, as there is no older one"
        raise CheckpointError(f"The checkpoint {path} is damaged: {error}. Remove that folder to {remains}.") from error


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a finished run.

    Raises:
        OSError: the folder is not writable.
    """
    if folder.exists():
        shutil.rmtree(folder)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder, or None."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def _digest(path: Path, step: int, numbers: Mapping[str, Any]) -> str:
    """The checksum over the tensors, step and numbers of a checkpoint."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**24):
            digest.update(block)
    digest.update(_as_bytes(step, numbers))
    return digest.hexdigest()


def _as_bytes(step: int, numbers: Mapping[str, Any]) -> bytes:
    """The part of state.json that the checksum covers. JSON preserves floats exactly."""
    return json.dumps([step, dict(numbers)]).encode()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*"))
