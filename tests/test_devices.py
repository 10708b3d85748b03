"""The device that a name stands for, on machines with and without a GPU."""

import logging

import pytest
import torch

from penstock.devices import available_or_cpu, check_device, described, resolve_device
from penstock.language_models.settings import LanguageModelConfig


def machine_with(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: f"GPU of {name}")


def test_auto_is_the_gpu_of_a_machine_that_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, 2)
    assert LanguageModelConfig().resolve().device == resolve_device("auto") == "cuda"
    assert described("cuda") == "cuda (GPU of cuda)"
    assert resolve_device("cuda:1") == "cuda:1"
    check_device("cuda:1")


def test_auto_is_otherwise_the_cpu_and_never_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert LanguageModelConfig().resolve().device == resolve_device("auto") == described("cpu") == "cpu"
    with pytest.raises(ValueError, match="device='mps' cannot be used, because it has no float64, .* Use cpu."):
        LanguageModelConfig(device="mps").resolve()


def test_a_device_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="device='gpu' is not known: it must be auto, cpu, cuda or cuda:N"):
        resolve_device("gpu")


@pytest.mark.parametrize(
    ("gpus", "name", "seen"),
    [(0, "cuda", "no CUDA device"), (1, "cuda:1", "1 CUDA device"), (2, "cuda:2", "2 CUDA devices")],
)
def test_a_gpu_that_is_not_there_is_refused_or_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gpus: int, name: str, seen: str
) -> None:
    machine_with(monkeypatch, gpus)
    with pytest.raises(ValueError, match=rf"device='{name}' is not available here: .* {seen}.* --device cpu"):
        check_device(name)
    with caplog.at_level(logging.WARNING):
        assert available_or_cpu(name) == "cpu"
    assert (
        f"{name}, which the run was made on, is not available here (PyTorch sees {seen}). Using the CPU" in caplog.text
    )
    assert available_or_cpu("cpu") == "cpu"


def test_auto_is_where_a_loaded_model_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who loads the model on the CPU of a machine with a GPU does not train on the GPU unasked."""
    machine_with(monkeypatch, 2)
    assert LanguageModelConfig().resolve(torch.device("cpu")).device == "cpu"
    assert LanguageModelConfig().resolve(torch.device("cuda:1")).device == "cuda:1"
    assert LanguageModelConfig(device="cuda").resolve(torch.device("cuda:0")).device == "cuda"


@pytest.mark.parametrize(("asked", "loaded_on"), [("cuda", "cpu"), ("cpu", "cuda:0"), ("cuda:1", "cuda:0")])
def test_a_model_on_another_device_than_asked_is_refused_unless_it_is_spread(asked: str, loaded_on: str) -> None:
    with pytest.raises(ValueError, match=f"device='{asked}', but the language model was loaded on {loaded_on}"):
        LanguageModelConfig(device=asked).resolve(torch.device(loaded_on))
    spread = LanguageModelConfig(device=asked, device_map="auto")
    assert spread.resolve(torch.device(loaded_on)).device == asked
