"""Optional trackers: the rows of metrics.jsonl in TensorBoard or Weights & Biases."""

import json
import uuid
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from penstock.files import write_whole

WANDB_ID_FILE = "wandb_run_id.txt"
"""The file in a run's directory with its Weights & Biases id, which is the same after every resume."""


@runtime_checkable
class Tracker(Protocol):
    """Receives every logged row, e.g. for TensorBoard or wandb."""

    def start(self, step: int) -> None:
        """Start at step 0, or continue from the checkpoint of `step`; rows of later steps are logged again."""
        ...

    def log(self, step: int, sae: str, row: Mapping[str, float]) -> None:
        """Log the row of one SAE in one step."""
        ...

    def close(self) -> None:
        """Flush and close. Called when training ends, also after an error."""
        ...


class TensorBoardTracker:
    """Writes event files to RUN/tensorboard. Needs `pip install 'penstock[tensorboard]'`."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.writer: Any = None

    def start(self, step: int) -> None:
        # purge_step hides the later rows that an interrupted run has written.
        tensorboard = _imported("tensorboard")
        self.writer = tensorboard.SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, sae: str, row: Mapping[str, float]) -> None:
        for key, value in row.items():
            self.writer.add_scalar(f"{sae}/{key}", value, step)
        self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class WandbTracker:
    """Logs to a Weights & Biases run named after the run's directory. Needs `pip install 'penstock[wandb]'`."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.run: Any = None

    def start(self, step: int) -> None:
        self.run = _imported("wandb").init(
            project="penstock",
            name=self.run_dir.name,
            dir=str(self.run_dir),
            id=_wandb_id(self.run_dir),
            resume="allow",
            config=json.loads((self.run_dir / "config.json").read_text(encoding="utf-8")),
        )

    def log(self, step: int, sae: str, row: Mapping[str, float]) -> None:
        self.run.log({f"{sae}/{key}": value for key, value in row.items()}, step=step)

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


TRACKERS = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker}


def check_trackers(names: Sequence[str]) -> None:
    """Import the packages that the trackers need, so that a missing one is noticed before a run starts.

    Raises:
        ImportError: a package is not installed or cannot be imported.
    """
    for name in names:
        _imported(name)


class _Needed(NamedTuple):
    module: str
    """The module to import."""
    package: str
    """The package to install, which is also the name of penstock's extra."""


_NEEDED = {
    "tensorboard": _Needed("torch.utils.tensorboard", "tensorboard"),
    "wandb": _Needed("wandb", "wandb"),
}


def _imported(name: str) -> ModuleType:
    needed = _NEEDED[name]
    remedy = f"'penstock[{needed.package}]'"
    try:
        return import_module(needed.module)
    except Exception as error:
        # Any exception, because a broken package may raise any.
        if isinstance(error, ModuleNotFoundError) and error.name in needed:
            raise ImportError(
                f"--track {name} needs the package {needed.package}, which is not installed. Run: pip install {remedy}"
            ) from error
        raise ImportError(
            f"--track {name} needs the package {needed.package}, which is installed but cannot be imported "
            f"({type(error).__name__}: {error}). Run: pip install --force-reinstall {remedy}"
        ) from error


def _wandb_id(run_dir: Path) -> str:
    """The id of this run, which is the same after every resume."""
    path = run_dir / WANDB_ID_FILE
    if not path.is_file():
        write_whole(path, uuid.uuid4().hex + "\n")
    return path.read_text(encoding="utf-8").strip()
