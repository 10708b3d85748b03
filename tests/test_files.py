"""Files are whole or not there, and tensors are written a block at a time."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from penstock import files
from penstock.files import PickedRows, safetensors_blocks, sync_folder, whole_file, write_whole


def test_a_whole_file_replaces_the_old_one_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.jsonl"
    write_whole(path, "old\n")
    write_whole(path, "new: \u00fc\n")
    assert path.read_bytes() == b"new: \xc3\xbc\n"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "newer\n")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("records.jsonl", b"new: \xc3\xbc\n")]


def test_an_error_of_the_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_two_processes_that_write_one_file_do_not_take_each_others_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    with whole_file(path) as first:
        first.write(b"first")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        write_whole(path, "second")
        monkeypatch.undo()
        assert path.read_text() == "second"
    assert path.read_text() == "first"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_does_not_fail_a_good_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def cannot(_: int) -> None:
        raise OSError(number, "Invalid argument")

    monkeypatch.setattr(os, "fsync", cannot)
    sync_folder(tmp_path)


def test_windows_which_cannot_open_a_folder_does_not_fail_a_good_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PermissionError):
        sync_folder(tmp_path)
    monkeypatch.setattr(os, "name", "nt")
    sync_folder(tmp_path)


TENSORS = {
    "\u00fc/W": torch.arange(1500.0).reshape(50, 30).T,
    "scalar": torch.tensor(3.0),
    "view": torch.arange(7)[2:],
    "half": torch.linspace(-1, 1, 15).reshape(5, 3).bfloat16(),
    "mask": torch.arange(9) % 2 == 0,
    "bytes": torch.arange(11, dtype=torch.uint8),
    "empty": torch.zeros(0, 4),
    "double": torch.linspace(0, 1, 12, dtype=torch.float64).reshape(3, 2, 2),
    "float16": torch.ones(3).half(),
    "small": torch.arange(3, dtype=torch.int32),
    "smaller": torch.arange(3, dtype=torch.int16),
    "smallest": torch.arange(3, dtype=torch.int8),
}


@pytest.mark.parametrize("block_bytes", [1, 100, 2**24])
def test_the_blocks_are_the_bytes_that_safetensors_writes(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", block_bytes)
    expected = safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in TENSORS.items()})
    assert b"".join(safetensors_blocks(TENSORS)) == expected


def test_picked_rows_are_written_as_the_rows_they_pick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 64)
    tensor, rows = torch.arange(60.0).reshape(20, 3), torch.tensor([7, 0, 19, 7])
    found = safetensors.torch.load(b"".join(safetensors_blocks({"rows": PickedRows(tensor, rows)})))
    assert torch.equal(found["rows"], tensor[rows])


def test_a_gradient_does_not_hinder_the_writing() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    assert torch.equal(safetensors.torch.load(b"".join(safetensors_blocks({"p": parameter})))["p"], torch.ones(2))
