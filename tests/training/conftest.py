"""A disk that can really be filled."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("There is no mount command; un-skip on a machine that has one and where we are root.")
    if mounted.returncode != 0:
        pytest.skip(f"Cannot mount a small file system ({mounted.stderr.strip()}); un-skip where we are root.")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
