"""Handling of Ctrl-C, SIGTERM and SIGHUP: the training loop stops between two steps."""

import signal
import threading
from types import FrameType, TracebackType

# Windows has no SIGHUP.
ASKING_TO_STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupts:
    """A context manager that records a signal to stop in `pending` instead of stopping at once.

    After the first signal the original handlers are restored, so a second one acts at once.
    """

    def __init__(self) -> None:
        self.pending: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        # Python allows handlers only in the main thread. In other threads the caller's handling stays.
        if threading.current_thread() is threading.main_thread():
            for number in ASKING_TO_STOP:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.pending = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
