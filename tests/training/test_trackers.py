"""The optional trackers, with stand-ins for the packages they need."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from penstock.cli import main
from penstock.training.trackers import TRACKERS, check_trackers

NEEDED = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_not_installed_is_named_with_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, NEEDED[name], None)
    with pytest.raises(ImportError, match=rf"{name} needs .* not installed. Run: pip install 'penstock\[{name}"):
        check_trackers([name])


@pytest.mark.parametrize("cause", ["import no_such_dependency", "raise TypeError('Descriptors cannot be created')"])
def test_a_package_that_is_installed_and_broken_is_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    (tmp_path / "wandb.py").write_text(cause)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ImportError, match="wandb, which is installed but cannot be imported .*(no_such|Descriptors)"):
        check_trackers(["wandb"])


def test_a_missing_package_is_noticed_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for _ in range(2):
        assert main(["train", "--out", str(tmp_path / "run"), "--model", "nowhere", "--track", "wandb"]) == 1
        assert "--track wandb needs the package wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class FakeWriter:
    def __init__(self, folder: str, purge_step: int) -> None:
        self.written: list[tuple[Any, ...]] = [(folder, purge_step)]

    def add_scalar(self, *row: Any) -> None:
        self.written.append(row)

    def flush(self) -> None:
        self.written.append(("flush",))

    def close(self) -> None:
        self.written.append(("close",))


def test_tensorboard_gets_every_number_of_a_row_and_hides_what_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    tracker = TRACKERS["tensorboard"](tmp_path)
    tracker.start(20)
    tracker.log(25, "gated", {"loss": 1.5, "l0": 8.0})
    tracker.close()
    assert tracker.writer.written == [
        (str(tmp_path / "tensorboard"), 21),
        *(("gated/loss", 1.5, 25), ("gated/l0", 8.0, 25), ("flush",), ("close",)),
    ]


def test_wandb_gets_every_number_of_a_row_the_settings_and_the_same_run_at_every_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    begun: list[dict[str, Any]] = []
    run = SimpleNamespace(log=lambda row, step: written.append((row, step)), finish=lambda: written.append("finish"))
    module = ModuleType("wandb")
    module.init = lambda **settings: begun.append(settings) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    folders = [tmp_path / "run", tmp_path / "run", tmp_path / "other"]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text('{"threads": 3}')
        tracker = TRACKERS["wandb"](folder)
        tracker.start(0)
        tracker.log(25, "gated", {"loss": 1.5, "l0": 8.0})
        tracker.close()
    assert written[:2] == [({"gated/loss": 1.5, "gated/l0": 8.0}, 25), "finish"]
    first, resumed, other = begun
    assert first == resumed
    assert (first["name"], first["resume"], first["config"]) == ("run", "allow", {"threads": 3})
    assert first["id"] != other["id"]


def test_a_tracker_that_never_started_can_be_closed(tmp_path: Path) -> None:
    for tracker in TRACKERS.values():
        tracker(tmp_path).close()
