"""Commands that users can paste into a shell."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path


def quoted(command: Sequence[str]) -> str:
    """The command line, with quotes around arguments that the shell would otherwise split."""
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def resume_command(run_dir: Path) -> str:
    """The command that continues a run from its last checkpoint."""
    return quoted(["penstock", "train", "--resume", str(run_dir)])
