"""The optional trackers, with stand-ins for the packages they need."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from penstock.training.trackers import TRACKERS

NEEDED = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_not_installed_is_named_with_how_to_install_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, NEEDED[name], None)
    with pytest.raises(ImportError, match=rf"--track {name} needs .* pip install 'penstock\[{name}\]'"):
        TRACKERS[name](tmp_path)


def test_tensorboard_gets_every_number_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[Any, ...]] = []
    writer = SimpleNamespace(add_scalar=lambda *row: written.append(row), flush=lambda: written.append(("flush",)))
    module = ModuleType("torch.utils.tensorboard")
    folders: list[str] = []
    module.SummaryWriter = lambda folder: folders.append(folder) or writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    TRACKERS["tensorboard"](tmp_path).log(25, "gated", {"loss": 1.5, "l0": 8.0})
    assert folders == [str(tmp_path / "tensorboard")]
    assert written == [("gated/loss", 1.5, 25), ("gated/l0", 8.0, 25), ("flush",)]


def test_wandb_gets_every_number_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[dict[str, float], int]] = []
    run = SimpleNamespace(log=lambda row, step: written.append((row, step)))
    module = ModuleType("wandb")
    module.init = lambda **settings: run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    TRACKERS["wandb"](tmp_path).log(25, "gated", {"loss": 1.5, "l0": 8.0})
    assert written == [({"gated/loss": 1.5, "gated/l0": 8.0}, 25)]
