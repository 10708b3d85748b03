"""The training log: metrics.jsonl, the progress bar, and optional trackers."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from penstock.files import write_whole
from penstock.json_files import COUNT, NUMBER, TEXT, Rows, check_keys, or_null, read_rows
from penstock.training.trackers import Tracker

logger = logging.getLogger(__name__)

_BAR = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_SECONDS_BETWEEN_LINES = 60.0

SAERows = Mapping[str, Mapping[str, float]]
"""The numbers that a step reported, for each SAE of a run by name."""


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
        """Delete rows after `step`, which an interrupted run wrote after its checkpoint, and start the trackers."""
        self._started = time.monotonic()
        self._drop_after(step)
        for tracker in self.trackers:
            tracker.start(step)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self.trackers:
            tracker.close()

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        found = read_metrics(self.path)
        if found.cut_off:
            logger.warning("The last line of %s is incomplete and is left out.", self.path)
        kept = [row for row in found.rows if row["step"] <= step]
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        if kept:
            self._seconds_before = kept[-1]["seconds"]
            self._tokens_before = kept[-1]["tokens"]

    def write(self, step: int, tokens: int, rows: SAERows) -> None:
        """Log the rows of a step, if it is a multiple of `every` or the last step.

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
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
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
    def progress(self, num_steps: int, step: int) -> Iterator[Callable[[SAERows], None]]:
        """Show a progress bar on a terminal, otherwise log a line a minute. Yields a function to call at each step."""
        started = said = time.monotonic()
        done = step
        with tqdm(total=num_steps, initial=step, disable=None, dynamic_ncols=True, bar_format=_BAR) as bar:

            def show(rows: SAERows) -> None:
                nonlocal done, said
                done += 1
                bar.update()
                now = time.monotonic()
                if not bar.disable and done % self.every == 0:
                    bar.set_postfix_str(self._summary(rows))
                elif bar.disable and now - said >= _SECONDS_BETWEEN_LINES:
                    said = now
                    left = tqdm.format_interval((now - started) / (done - step) * (num_steps - done))
                    logger.info(
                        "step %s of %s, about %s left: %s", f"{done:,}", f"{num_steps:,}", left, self._summary(rows)
                    )

            yield show

    def _summary(self, rows: SAERows) -> str:
        """The text after the progress bar. L0 comes first, because a narrow terminal cuts off the end.

        If there is only one SAE, the text also has its loss terms and its name.
        """
        l0 = " ".join(f"{row['l0']:.3g}" for row in rows.values())
        dead = max(row["dead_share"] for row in rows.values())
        speed = (self._tokens - self._tokens_before) / max(time.monotonic() - self._started, 1e-9)
        if len(rows) > 1:
            return f"l0 {l0} dead at most {dead:.1%} {speed:,.0f} tok/s"
        ((name, row),) = rows.items()
        terms = " ".join(
            f"{key[:5]} {row[key]:.3g}" for key in ("reconstruction", "sparsity", "auxiliary") if key in row
        )
        return f"l0 {l0} dead {dead:.1%} {terms} {speed:,.0f} tok/s {name}"


_KINDS = {"sae": TEXT, "step": COUNT, "tokens": COUNT, "seconds": NUMBER}


def read_metrics(path: Path) -> Rows:
    """The rows of a metrics.jsonl.

    Raises:
        FileError: a line except the last is damaged, or a value has the wrong type.
        OSError: the file cannot be read.
    """
    found = read_rows(path)
    for number, row in enumerate(found.rows, start=1):
        where = f"{path}, row {number}"
        check_keys(row, _KINDS, where, needed=_KINDS)
        row["seconds"] = float(row["seconds"])
        check_keys(row, {key: or_null(NUMBER) for key in row if key not in _KINDS}, where, needed=())
    return found
