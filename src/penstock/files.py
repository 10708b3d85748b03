"""Atomic writing of files: they are written under a temporary name, synced to disk, then renamed."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

BLOCK_BYTES = 2**24
"""The most bytes of a tensor that are copied at a time while it is written, unless one row is larger."""

_DTYPES: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""Names of dtypes in a safetensors header. The safetensors library writes tensors in the reverse of this order."""


class PickedRows(NamedTuple):
    """`tensor[rows]`, gathered block by block only when it is written."""

    tensor: Tensor
    rows: Int[Tensor, " rows"]


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing bytes, and rename it to `path` if the block ends without an error.

    Until then, and after an error or a kill, `path` does not change.

    Raises:
        OSError: the disk is full or not writable.
    """
    # The name contains the process id, because two processes may write the same report.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file atomically: a full disk or a kill never leaves half of it. Text is encoded as UTF-8.

    Raises:
        OSError: the disk is full or not writable; the file does not change.
    """
    with whole_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power cut, if the system supports that.

    Raises:
        OSError: the disk failed.
    """
    # Windows cannot open a folder; some network file systems can open but not sync it.
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def safetensors_blocks(tensors: Mapping[str, Tensor | PickedRows]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file in pieces, the same bytes that `safetensors.torch.save` returns.

    That function needs host memory for all tensors, this one for about BLOCK_BYTES.
    """
    order = list(_DTYPES)
    names = sorted(tensors, key=lambda name: (-order.index(_values(tensors[name]).dtype), name))
    header: dict[str, dict[str, object]] = {}
    offset = 0
    for name in names:
        values, shape = _values(tensors[name]), _shape(tensors[name])
        end = offset + shape.numel() * values.element_size()
        header[name] = {"dtype": _DTYPES[values.dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        for block in _blocks(tensors[name]):
            yield block.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _values(entry: Tensor | PickedRows) -> Tensor:
    return entry.tensor if isinstance(entry, PickedRows) else entry


def _shape(entry: Tensor | PickedRows) -> torch.Size:
    if isinstance(entry, PickedRows):
        return torch.Size((len(entry.rows), *entry.tensor.shape[1:]))
    return entry.shape


def _blocks(entry: Tensor | PickedRows) -> Iterator[Tensor]:
    shape, values = _shape(entry), _values(entry)
    if not shape:
        yield values
        return
    row_bytes = max(1, shape[1:].numel() * values.element_size())
    at_once = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, shape[0], at_once):
        if isinstance(entry, PickedRows):
            yield values[entry.rows[start : start + at_once]]
        else:
            yield values[start : start + at_once]
