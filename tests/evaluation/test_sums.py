"""The sums on disk are the sums that were found, whole or not there."""

import os
from pathlib import Path

import pytest
import torch

from penstock.evaluation import Evaluation
from penstock.evaluation.sums import SUMS_FILE, read_sums, write_sums


def evaluation(**sums: torch.Tensor) -> Evaluation:
    nothing = torch.zeros(3, dtype=torch.int64)
    return Evaluation(sums=sums, firing=nothing, l0_histogram=nothing)


@pytest.fixture
def found() -> dict[str, Evaluation]:
    """Two candidates that share a tensor, as those of one site do; the name of one has a slash, its sums are a view."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor([31.0, 7.0, 16.0], dtype=torch.float64)
    wide = torch.rand(3, 2, dtype=torch.float64, generator=generator)
    return {
        "gated-8": evaluation(tokens=tokens, l0=torch.rand(3, dtype=torch.float64, generator=generator)),
        "some/folder/relu": evaluation(tokens=tokens, l0=wide[:, 1], ce_tokens=wide[:, 0]),
    }


def test_what_is_read_is_what_was_written_bit_for_bit(found: dict[str, Evaluation], tmp_path: Path) -> None:
    write_sums(tmp_path / SUMS_FILE, found)
    read = read_sums(tmp_path / SUMS_FILE)
    assert set(read) == set(found)
    for name, one in found.items():
        assert set(read[name]) == set(one.sums)
        for key, values in one.sums.items():
            assert read[name][key].dtype == torch.float64
            assert torch.equal(read[name][key], values)


def test_a_full_disk_leaves_the_sums_that_were_there(
    found: dict[str, Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / SUMS_FILE
    write_sums(path, found)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_sums(path, {"other": found["gated-8"]})
    assert [file.name for file in tmp_path.iterdir()] == [SUMS_FILE]
    assert path.read_bytes() == before


def test_sums_that_are_missing_or_damaged_say_what_to_do(found: dict[str, Evaluation], tmp_path: Path) -> None:
    path = tmp_path / SUMS_FILE
    with pytest.raises(FileNotFoundError, match=r"sums.safetensors does not exist. Evaluate the run again"):
        read_sums(path)
    write_sums(path, found)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"sums.safetensors is damaged: .*Delete it"):
        read_sums(path)
