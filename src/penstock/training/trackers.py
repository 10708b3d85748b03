"""Optional trackers: the rows of metrics.jsonl in TensorBoard or Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType


class TensorBoardTracker:
    """Event files in RUN/tensorboard; needs `pip install penstock[tensorboard]`."""

    def __init__(self, folder: Path) -> None:
        tensorboard = _imported("torch.utils.tensorboard", "tensorboard")
        self.writer = tensorboard.SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, sae: str, row: Mapping[str, float]) -> None:
        for key, value in row.items():
            self.writer.add_scalar(f"{sae}/{key}", value, step)
        self.writer.flush()


class WandbTracker:
    """A Weights & Biases run named after the folder; needs `pip install penstock[wandb]`."""

    def __init__(self, folder: Path) -> None:
        wandb = _imported("wandb", "wandb")
        self.run = wandb.init(project="penstock", name=folder.name, dir=str(folder), resume="allow")

    def log(self, step: int, sae: str, row: Mapping[str, float]) -> None:
        self.run.log({f"{sae}/{key}": value for key, value in row.items()}, step=step)


TRACKERS = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker}


def _imported(module: str, extra: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"--track {extra} needs a package that is not installed. Run: pip install 'penstock[{extra}]'"
        ) from error
