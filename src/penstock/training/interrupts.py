"""Ctrl-C, SIGTERM and a closed terminal as a request that the training loop answers between two steps."""

import signal
import threading
from types import FrameType, TracebackType

# Windows has no SIGHUP.
ASKING_TO_STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupts:
    """While the `with` block runs, `pending` names the signal that asked to stop, if any.

    A second signal of the same kind acts at once, as if penstock had not been listening.
    """

    def __init__(self) -> None:
        self.pending: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        # Signals reach only the main thread; elsewhere the caller's own handling stays.
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
