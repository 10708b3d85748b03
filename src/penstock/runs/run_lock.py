"""A lock on a run's directory, which lets only one process work on the run.

RUN/.lock             locked by the operating system while a process works on the run
RUN/.lock_owner.json  the process that holds the lock
"""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from penstock.files import write_whole
from penstock.shell import quoted


class RunInUseError(RuntimeError):
    """Another process works on the run."""


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Lock a run's directory against other processes while the block runs. Blocks in one thread may be nested.

    The operating system releases the lock when the process ends, so a killed process does not block others.

    Args:
        run_dir: An existing directory.

    Raises:
        RunInUseError: another process or thread holds the lock.
        OSError: the directory does not exist or is not writable.
    """
    lock = FileLock(run_dir.resolve() / ".lock", timeout=0, is_singleton=True)
    owner_file = run_dir / ".lock_owner.json"
    nested = lock.is_locked
    try:
        lock.acquire()
    except Timeout as error:
        raise RunInUseError(_in_use(run_dir, owner_file)) from error
    try:
        if not nested:
            write_whole(owner_file, json.dumps(_this_process(), indent=1) + "\n")
        yield
    finally:
        if not nested:
            owner_file.unlink(missing_ok=True)
        lock.release()


def is_locked(run_dir: Path) -> bool:
    """Whether another process works on a run. If the directory is not writable, judged by the owner file."""
    if not (run_dir / ".lock").exists():
        return False
    try:
        with locked(run_dir):
            return False
    except RunInUseError:
        return True
    except OSError:
        # The directory is not writable, or its disk does not support locks.
        return (run_dir / ".lock_owner.json").exists()


def _this_process() -> dict[str, str | int]:
    return {
        "host": platform.node(),
        "process": os.getpid(),
        "command": quoted([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _in_use(run_dir: Path, owner_file: Path) -> str:
    try:
        owner = json.loads(owner_file.read_text(encoding="utf-8"))
        host, process, command, started = (owner[key] for key in ("host", "process", "command", "started"))
    except (OSError, ValueError, KeyError, TypeError):
        # The other process holds the lock but has not written the owner file yet.
        return f"{run_dir} is in use by another process. Wait until it ends, or choose another directory."
    look = f'tasklist /FI "PID eq {process}"' if os.name == "nt" else f"ps -p {process}"
    return (
        f"{run_dir} is in use by process {process} on {host} ({command}; since {started}). Wait until it ends, or stop "
        f"it. `{look}` on {host} shows whether it is still running; the lock of an ended process does not block."
    )
