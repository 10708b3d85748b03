"""The device that a name stands for on this machine, and checks that it is available."""

import logging

import torch

logger = logging.getLogger(__name__)

AUTO = "auto"
"""The name that stands for the best device of this machine."""


def resolve_device(name: str) -> str:
    """Return the device that a name stands for. `auto` is cuda on a machine with a GPU, otherwise cpu.

    This does not check that the device is available, because a run may be planned on another machine. See
    `check_device`.

    Raises:
        ValueError: the name is unknown, or is mps, which has no float64.
    """
    if name == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not known: it must be auto, cpu, cuda or cuda:N.") from error
    if kind == "mps":
        raise ValueError(
            f"device={name!r} cannot be used, because it has no float64, which evaluation and optimisers need. Use cpu."
        )
    return name


def check_device(name: str) -> None:
    """Raise ValueError if a device cannot be used on this machine."""
    if not is_available(name):
        raise ValueError(
            f"device={name!r} is not available here: PyTorch sees {_gpus()}. Choose another with --device, for example "
            "--device cpu."
        )


def is_available(name: str) -> bool:
    """Return whether a CUDA device is present; other devices are left to PyTorch."""
    device = torch.device(name)
    return device.type != "cuda" or (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count())


def available_or_cpu(name: str) -> str:
    """Return the given device, or the CPU, with a warning, if this machine does not have it."""
    if is_available(name):
        return name
    logger.warning(
        "%s, which the run was made on, is not available here (PyTorch sees %s). Using the CPU; choose with --device.",
        *(name, _gpus()),
    )
    return "cpu"


def described(name: str) -> str:
    """Return the device's name, for a GPU with its model, such as `cuda (NVIDIA H100)`."""
    return f"{name} ({torch.cuda.get_device_name(name)})" if torch.device(name).type == "cuda" else name


def _gpus() -> str:
    count = torch.cuda.device_count()
    return {0: "no CUDA device", 1: "1 CUDA device"}.get(count, f"{count} CUDA devices")
