"""What activations need, what is free, and the refusal of what does not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.activations import memory
from penstock.activations.memory import activation_bytes, check_activations_fit, free_bytes
from penstock.activations.settings import DataConfig, ResolvedData


def data(**settings: Any) -> ResolvedData:
    return DataConfig(**settings).resolve(lambda: 128, buffer_tokens=2**18)


def test_a_cache_exists_twice_while_it_is_joined_and_a_buffer_three_times_while_it_is_refilled() -> None:
    assert activation_bytes(data(cache_tokens=1000), width=5) == 4 * 2 * 1000 * 5
    assert activation_bytes(data(buffer_tokens=1000), width=5) == 4 * 3 * 1000 * 5


def test_a_cache_that_does_not_fit_is_refused_with_need_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 million tokens at one site of width 128, on a machine with 24 GiB."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: 24 * 2**30)
    with pytest.raises(ValueError) as caught:
        check_activations_fit(data(tokens=10**8, cache_tokens=10**8), 128, "cpu")
    assert str(caught.value) == (
        "cache_tokens=100,000,000 does not fit into the memory of cpu: with 128 numbers per token over all sites "
        "it needs up to 95.4 GiB, and 24 GiB are free. Lower it to 25,165,824 or less, or leave it out to "
        "harvest activations as they are needed."
    )
    check_activations_fit(data(tokens=10**8, cache_tokens=25_165_824), 128, "cpu")
    with pytest.raises(ValueError, match="^buffer_tokens=20,000,000 does not fit .* Lower it to 16,777,216 or less.$"):
        check_activations_fit(data(tokens=10**8, buffer_tokens=2 * 10**7), 128, "cuda:1")


def test_what_is_free_and_cannot_be_told_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    check_activations_fit(data(tokens=10**12, cache_tokens=10**12), 4096, "xpu")


def test_a_gpu_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert free_bytes("cuda:1") == 130


def test_the_tighter_of_machine_and_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    group.mkdir()
    meminfo.write_text("MemTotal:       99 kB\nMemAvailable:       50 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUPS", ((group, "memory.max", "memory.current"),))
    assert free_bytes("cpu") == 50 * 1024
    (group / "memory.max").write_text("max\n")
    assert free_bytes("cpu") == 50 * 1024
    (group / "memory.max").write_text("40000\n")
    (group / "memory.current").write_text("30000\n")
    (group / "memory.stat").write_text("anon 9\nactive_file 1000\ninactive_file 500\n")
    assert free_bytes("cpu") == 11_500
    (group / "memory.current").write_text("90000\n")
    assert free_bytes("cpu") == 0


def test_this_machine_says_what_is_free() -> None:
    free = free_bytes("cpu")
    assert free is not None and 2**20 < free < 2**50
