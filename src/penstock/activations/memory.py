"""The memory that activations need, and the free memory of a device."""

import os
from pathlib import Path

import torch

from penstock.activations.settings import ResolvedData

BYTES_PER_NUMBER = 4
"""Activations are kept in float32, in whatever precision the language model runs."""

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""The files with a container's memory limit and use, for cgroups version 2 and version 1."""


def activation_bytes(data: ResolvedData, width: int) -> int:
    """The peak memory of a run's activations, in bytes.

    A cache is harvested in parts, and exists twice while they are joined. A buffer exists three times while it is
    refilled: the old one, its unused rows with the fresh ones, and the new one.

    Args:
        data: The run's settings.
        width: The sum of the d_in of its sites.
    """
    copies = 3 if data.cache_tokens is None else 2
    return BYTES_PER_NUMBER * copies * data.buffer_tokens * width


def free_bytes(device: str) -> int | None:
    """The free memory of a device in bytes, or None if it is not known."""
    kind = torch.device(device).type
    if kind == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # PyTorch reuses memory that it has reserved but not allocated.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return _free_on_host() if kind == "cpu" else None


def check_activations_fit(data: ResolvedData, width: int, device: str) -> None:
    """Check that a cache or shuffle buffer fits into the free memory of a device.

    Args:
        data: The run's settings.
        width: The sum of the d_in of its sites.
        device: The device of the activations.

    Raises:
        ValueError: the activations need more memory than is free.
    """
    needed, free = activation_bytes(data, width), free_bytes(device)
    if free is None or needed <= free:
        return
    name = "buffer_tokens" if data.cache_tokens is None else "cache_tokens"
    largest = data.buffer_tokens * free // needed
    stream = "" if data.cache_tokens is None else ", or leave it out to harvest activations as they are needed"
    raise ValueError(
        f"{name}={data.buffer_tokens:,} does not fit into the memory of {device}: with {width:,} numbers per token "
        f"over all sites it needs up to {needed / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free. "
        f"Lower it to {largest:,} or less{stream}."
    )


def _free_on_host() -> int | None:
    """The available memory of the machine in bytes, or what is left of a container's limit if that is less."""
    found = [free for group in _CGROUPS if (free := _left_of_limit(*group)) is not None]
    if _MEMINFO.is_file():
        found.append(1024 * _counts(_MEMINFO)["MemAvailable"])
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        # macOS does not report available memory, so total memory is the limit.
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def _left_of_limit(folder: Path, limit: str, used: str) -> int | None:
    """The bytes that a container may still use, without counting cached files as used; None if it has no limit."""
    try:
        allowed = (folder / limit).read_text().strip()
        if allowed == "max":
            return None
        counts = _counts(folder / "memory.stat")
        cached = counts.get("active_file", 0) + counts.get("inactive_file", 0)
        return max(0, int(allowed) - int((folder / used).read_text()) + cached)
    except OSError:
        return None


def _counts(path: Path) -> dict[str, int]:
    """The numbers in a system file with lines such as `MemFree:  12 kB` or `active_file 12`."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}
