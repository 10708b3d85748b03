"""Checkpoints are whole or not there, whatever happens while they are written or afterwards."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.training.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

NUMBERS = {
    "scales": {"resid_post.0": 0.1 + 0.2},
    "saes": {"a": {"controller": None, "tail": [[0.5, 3], [0, 0]]}},
}


def tensors(value: float = 1.0, size: int = 10) -> dict[str, Tensor]:
    return {"a/W": torch.full((size, 3), value), "a/step": torch.tensor(value), "order": torch.arange(5)[2:]}


def save(folder: Path, step: int, value: float = 1.0) -> Path:
    return save_checkpoint(folder, step, tensors(value), NUMBERS)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = save(tmp_path / "run" / "checkpoints", 40, value=1 / 3)
    assert path.name == "step_00000040"
    found = load_checkpoint(path)
    assert found.step == 40
    assert found.numbers == NUMBERS
    assert found.tensors.keys() == tensors().keys()
    for name, value in tensors(1 / 3).items():
        assert torch.equal(found.tensors[name], value)
        assert found.tensors[name].dtype == value.dtype


def test_views_of_one_storage_are_saved_apart_and_without_the_rest_of_it(tmp_path: Path) -> None:
    whole = torch.arange(100_000)
    path = save_checkpoint(tmp_path, 1, {"head": whole[:10], "tail": whole[5:20]}, {})
    found = load_checkpoint(path).tensors
    assert (found["head"].tolist(), found["tail"].tolist()) == (list(range(10)), list(range(5, 20)))
    assert (path / "state.safetensors").stat().st_size < 1000


def test_the_newest_is_the_latest_and_the_last_two_stay(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    for step in (5, 90, 100, 1000):
        assert latest_checkpoint(tmp_path) != (path := save(tmp_path, step))
        assert latest_checkpoint(tmp_path) == path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000100", "step_00001000"]


def test_what_a_kill_left_half_written_is_not_a_checkpoint_and_is_cleared_away(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    half = tmp_path / ".partial_00000002"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == good
    save(tmp_path, 3)
    assert not half.exists()


@pytest.mark.parametrize("succeeding", [0, 1])
def test_a_kill_while_writing_leaves_the_last_checkpoint_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, succeeding: int
) -> None:
    good = save(tmp_path, 1)
    calls = 0

    class Killed(BaseException):
        """Nothing of ours may clean up after it."""

    def kill(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls > succeeding:
            raise Killed

    monkeypatch.setattr(os, "fsync", kill)
    with pytest.raises(Killed):
        save(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == good
    assert load_checkpoint(good).step == 1


KILLED_WHILE_SAVING = """
import os, sys, torch
from pathlib import Path
from penstock.training.checkpoint import save_checkpoint

folder, synced_before = Path(sys.argv[1]), int(sys.argv[2])
save_checkpoint(folder, 1, {"W": torch.ones(1000)}, {})
fsync, calls = os.fsync, 0

def wait_for_the_kill(descriptor):
    global calls
    calls += 1
    if calls > synced_before:
        print("saving", flush=True)
        sys.stdin.read()
    fsync(descriptor)

os.fsync = wait_for_the_kill
save_checkpoint(folder, 2, {"W": torch.full((1000,), 2.0)}, {})
"""


@pytest.mark.parametrize(("synced_before", "step"), [(0, 1), (2, 2)])
def test_a_process_killed_in_the_middle_of_a_checkpoint_leaves_whole_ones(
    tmp_path: Path, synced_before: int, step: int
) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, tmp_path, str(synced_before)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    process.kill()
    process.communicate()
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert load_checkpoint(latest).step == step
    assert load_checkpoint(save(tmp_path, 3)).step == 3
    assert not list(tmp_path.glob(".partial*"))


def test_a_step_saved_again_replaces_itself(tmp_path: Path) -> None:
    save(tmp_path, 1, value=1.0)
    assert torch.equal(load_checkpoint(save(tmp_path, 1, value=2.0)).tensors["a/step"], torch.tensor(2.0))


MEMORY = """
import resource, sys, torch
from pathlib import Path
from typing import Any
from penstock.training.checkpoint import load_checkpoint, save_checkpoint

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

folder = Path(sys.argv[1])
state = {str(n): torch.ones(1280, 8192) for n in range(8)}
save_checkpoint(folder / "warm", 1, {"a": torch.ones(2**20)}, {})
before = peak()
path = save_checkpoint(folder, 2, state, {})
saved = peak()
for name, tensor in load_checkpoint(path).tensors.items():
    state[name].copy_(tensor)
print(saved - before, peak() - before)
"""
"""40 MiB in each of 8 tensors, more than malloc keeps for the next one; prints by how much each raises the peak of
memory, saving and then saving and loading."""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only; un-skip on Linux.")
def test_saving_and_loading_need_the_memory_of_a_tensor_and_not_of_the_state(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True)
    saving, loading = (int(kib) / 1024 for kib in done.stdout.split())
    assert saving < 64
    assert loading < 160


def test_the_tensors_of_a_checkpoint_outlive_its_files(tmp_path: Path) -> None:
    path = save(tmp_path, 1, value=2.0)
    tensors_read = load_checkpoint(path).tensors
    kept = tensors_read["a/W"]
    assert "a/W" in tensors_read
    assert "W" in tensors_read.under("a/")
    assert torch.equal(tensors_read.under("a/")["step"], torch.tensor(2.0))
    assert sorted(tensors_read.under("a/")) == ["W", "step"]
    assert len(tensors_read.under("a/")) == 2
    with pytest.raises(KeyError):
        tensors_read["b"]
    (path / "state.safetensors").write_bytes(b"")
    assert torch.equal(kept, torch.full((10, 3), 2.0))


@pytest.mark.parametrize("name", ["nt", "posix"])
def test_a_folder_that_cannot_be_synced_is_not_said_to_be_unwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    good = save(tmp_path, 1)

    def denied(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("penstock.files.os.open", denied)
    if name == "nt":
        # Windows cannot open a folder at all.
        monkeypatch.setattr("penstock.files.os.name", "nt")
        assert save(tmp_path, 2).name == "step_00000002"
    else:
        with pytest.raises(CheckpointError, match="step_00000002 was written, but could not be synced to disk: Perm"):
            save(tmp_path, 2)
    monkeypatch.undo()
    assert load_checkpoint(good).step == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_number(path: Path) -> None:
    text = path.read_text()
    assert "0.30000000000000004" in text
    path.write_text(text.replace("0.30000000000000004", "0.30000000000000014"))


def flip_step(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 7', '"step": 8'))


def no_object(path: Path) -> None:
    path.write_text("[]")


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    ("state.safetensors", cut),
    ("state.safetensors", flip_byte),
    ("state.safetensors", Path.unlink),
    ("state.json", cut),
    ("state.json", flip_number),
    ("state.json", flip_step),
    ("state.json", no_object),
    ("state.json", Path.unlink),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damage_is_found_and_the_error_names_the_folder_and_the_remedy(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 3)
    path = save(tmp_path, 7)
    damage(path / name)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"The checkpoint {path} is damaged: ")
    assert str(caught.value).endswith("Remove that folder to continue from step_00000003.")


def test_without_an_older_checkpoint_the_remedy_is_to_start_again(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match="Remove that folder to train from the start"):
        load_checkpoint(path)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("succeeding", range(4))
def test_a_disk_that_fills_up_leaves_the_last_checkpoint_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, succeeding: int
) -> None:
    good = save(tmp_path, 1)
    before = files_of(tmp_path)
    calls = 0
    fsync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > succeeding:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    # Two files and then the folder are synced: from the fourth call on, nothing is in the way.
    if succeeding == 2:
        with pytest.raises(
            CheckpointError, match="step_00000002 was written, but could not be synced to disk: No space"
        ):
            save(tmp_path, 2)
        return
    if succeeding == 3:
        save(tmp_path, 2)
        return
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path, 2)
    message = str(caught.value)
    assert f"step 2 could not be written to {tmp_path}: No space left on device." in message
    assert "Make room or give write permission, then continue with --resume." in message
    remaining = files_of(tmp_path)
    assert {name: remaining[name] for name in before} == before
    assert remaining == before
    assert f"The last good checkpoint is {good}." in message
    monkeypatch.undo()
    assert load_checkpoint(save(tmp_path, 2)).step == 2


def test_a_disk_that_is_really_full_leaves_the_last_checkpoint_and_takes_the_next_once_there_is_room(
    small_disk: Path,
) -> None:
    folder = small_disk / "checkpoints"
    good = save_checkpoint(folder, 1, tensors(1.0, size=4000), NUMBERS)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 440_000)
    with pytest.raises(CheckpointError, match="No space left on device.*The last good checkpoint is .*step_00000001"):
        save_checkpoint(folder, 2, tensors(2.0, size=4000), NUMBERS)
    assert latest_checkpoint(folder) == good
    assert torch.equal(load_checkpoint(good).tensors["a/step"], torch.tensor(1.0))
    assert [path.name for path in folder.iterdir()] == [good.name]
    ballast.unlink()
    assert load_checkpoint(save_checkpoint(folder, 2, tensors(2.0, size=4000), NUMBERS)).step == 2


def test_a_folder_that_cannot_be_written_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Not a directory. There is no earlier checkpoint. Make room or give"):
        save(tmp_path / "file" / "checkpoints", 1)


def test_the_state_is_readable_json(tmp_path: Path) -> None:
    stored = json.loads((save(tmp_path, 3) / "state.json").read_text())
    assert stored["step"] == 3
    assert stored["numbers"] == NUMBERS
