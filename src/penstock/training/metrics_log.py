"""metrics.jsonl, the progress bar, and optional trackers: what a run shows while it trains."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from penstock.files import write_whole
from penstock.training.trackers import Tracker

Rows = Mapping[str, Mapping[str, float]]
"""For each SAE of a run, what its step reported."""


class MetricsLog:
    """Appends a row for each SAE to metrics.jsonl every `every` steps."""

    def __init__(self, path: Path, *, every: int, last_step: int, trackers: tuple[Tracker, ...] = ()) -> None:
        self.path = path
        self.every = every
        self.last_step = last_step
        self.trackers = trackers
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._tokens_before = 0
        self._tokens = 0

    def start(self, step: int) -> None:
        """Drop the rows that an interrupted run wrote after the checkpoint of `step`, and begin to track."""
        self._started = time.monotonic()
        self._drop_after(step)
        for tracker in self.trackers:
            tracker.start(step)

    def close(self) -> None:
        """Let the trackers send what is left."""
        for tracker in self.trackers:
            tracker.close()

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= step]
        write_whole(self.path, "".join(line + "\n" for line in kept))
        if kept:
            last = json.loads(kept[-1])
            self._seconds_before = last["seconds"]
            self._tokens_before = last["tokens"]

    def write(self, step: int, tokens: int, rows: Rows) -> None:
        """Log the rows of a step if it is one to log.

        Raises:
            OSError: the disk is full or not writable.
        """
        self._tokens = tokens
        if step % self.every and step != self.last_step:
            return
        seconds = round(self._seconds_before + time.monotonic() - self._started, 2)
        about = {"step": step, "tokens": tokens, "seconds": seconds}
        lines = [json.dumps({**about, "sae": sae, **row}) + "\n" for sae, row in rows.items()]
        try:
            with self.path.open("a") as file:
                file.writelines(lines)
        except OSError as error:
            raise OSError(
                f"{self.path} could not be written: {error.strerror or error}. Make room or give write permission, "
                "then continue with --resume."
            ) from error
        for sae, row in rows.items():
            for tracker in self.trackers:
                tracker.log(step, sae, row)

    @contextmanager
    def progress(self, num_steps: int, step: int) -> Iterator[Callable[[Rows], None]]:
        """A progress bar on a terminal, nothing elsewhere; yields what to call after every step."""
        with tqdm(total=num_steps, initial=step, unit="step", disable=None, dynamic_ncols=True) as bar:

            def show(rows: Rows) -> None:
                bar.update()
                if not bar.disable and bar.n % self.every == 0:
                    bar.set_postfix_str(self._summary(rows))

            yield show

    def _summary(self, rows: Rows) -> str:
        """The first SAE's terms; of several, it is the one whose name is shown."""
        name, row = next(iter(rows.items()))
        terms = " ".join(
            f"{key[:5]} {row[key]:.3g}" for key in ("reconstruction", "sparsity", "auxiliary") if key in row
        )
        speed = (self._tokens - self._tokens_before) / max(time.monotonic() - self._started, 1e-9)
        return f"{name}: {terms} l0 {row['l0']:.3g} dead {row['dead_share']:.1%} {speed:,.0f} tok/s"


def _step_of(line: str) -> int:
    """The step of a row; a line that a kill cut short counts as after everything."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return 2**62
