"""The environment of a run: versions, hardware, commit and command."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from penstock.shell import quoted
from penstock.training.settings import RunConfig
from penstock.version import __version__


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    return {
        "penstock": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def environment_of(config: RunConfig) -> dict[str, Any]:
    """The contents of environment.json."""
    return {
        **versions(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "threads": config.threads,
        "device": config.language_model.device,
        "git_commit": _git_commit(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": quoted([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _git_commit() -> str | None:
    """The commit of penstock's checkout, or None if it is not installed from one."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
