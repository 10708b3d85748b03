"""metrics.jsonl: what is logged, and that a resumed run leaves no step twice."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from penstock.training.metrics_log import MetricsLog


def row(loss: float = 1.0) -> dict[str, float]:
    return {"loss": loss, "reconstruction": loss, "sparsity": 0.5, "l0": 3.0, "dead_share": 0.0}


def log_of(path: Path, **changes: Any) -> MetricsLog:
    return MetricsLog(path, **({"every": 10, "last_step": 95} | changes))


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def write(log: MetricsLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.write(step, 64 * step, {"a": row(), "b": row(2.0)})


def test_rows_come_every_so_many_steps_and_at_the_end_one_for_each_sae(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = log_of(path)
    log.start(0)
    write(log, 1, 95)
    assert steps_of(path) == [step for step in (*range(10, 91, 10), 95) for _ in range(2)]
    first, second = (json.loads(line) for line in path.read_text().splitlines()[:2])
    assert (first["sae"], second["sae"]) == ("a", "b")
    assert (first["tokens"], second["loss"]) == (640, 2.0)
    assert first["seconds"] >= 0


def test_a_resumed_run_drops_what_was_logged_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(log_of(path), 1, 60)
    resumed = log_of(path)
    resumed.start(42)
    assert steps_of(path) == [10, 10, 20, 20, 30, 30, 40, 40]
    write(resumed, 43, 95)
    assert steps_of(path) == [step for step in (*range(10, 91, 10), 95) for _ in range(2)]


def test_the_clock_of_a_resumed_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(log_of(path), 1, 30)
    lines = path.read_text().splitlines()
    rows = [json.loads(line) | {"seconds": 500.0 + number} for number, line in enumerate(lines)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    resumed = log_of(path)
    resumed.start(30)
    write(resumed, 31, 40)
    assert 505.0 <= json.loads(path.read_text().splitlines()[-1])["seconds"] < 515.0


@pytest.mark.parametrize("characters", [1, 20, 60])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path, characters: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write(log_of(path), 1, 40)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:characters])
    resumed = log_of(path)
    resumed.start(35)
    write(resumed, 36, 50)
    assert steps_of(path) == [10, 10, 20, 20, 30, 30, 40, 40, 50, 50]


def test_a_run_without_a_log_yet_starts_one(tmp_path: Path) -> None:
    log = log_of(tmp_path / "metrics.jsonl")
    log.start(20)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_log_that_cannot_be_written_is_an_error_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="metrics.jsonl could not be written: Not a directory. Make room or give"):
        log_of(tmp_path / "file" / "metrics.jsonl").write(10, 640, {"a": row()})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="could not be written: No space left on device. .*--resume"):
        log_of(tmp_path / "metrics.jsonl").write(10, 640, {"a": row()})


def test_trackers_get_every_logged_row(tmp_path: Path) -> None:
    class Kept:
        def __init__(self) -> None:
            self.rows: list[tuple[int, str, float]] = []
            self.calls: list[str] = []

        def start(self, step: int) -> None:
            self.calls.append(f"start {step}")

        def close(self) -> None:
            self.calls.append("close")

        def log(self, step: int, sae: str, row: Mapping[str, float]) -> None:
            self.rows.append((step, sae, row["loss"]))

    kept = Kept()
    log = log_of(tmp_path / "metrics.jsonl", trackers=(kept,))
    log.start(0)
    write(log, 1, 25)
    log.close()
    assert kept.calls == ["start 0", "close"]
    assert kept.rows == [(10, "a", 1.0), (10, "b", 2.0), (20, "a", 1.0), (20, "b", 2.0)]


def test_a_log_file_gets_no_bar_but_a_line_a_minute(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO", "penstock")
    now = 0.0
    monkeypatch.setattr("penstock.training.metrics_log.time.monotonic", lambda: now)
    log = log_of(tmp_path / "metrics.jsonl")
    log.start(0)
    with log.progress(30, 0) as show:
        for step in range(1, 13):
            # 13 s a step: the fifth and the tenth are the first ones after a minute.
            now = 13.0 * step
            log.write(step, 64 * step, {"a": row()})
            show({"a": row()})
    assert capsys.readouterr() == ("", "")
    first, second = caplog.messages
    assert first.startswith("step 5 of 30, about 05:25 left: l0 3 dead 0.0%") and first.endswith("tok/s a")
    assert second.startswith("step 10 of 30, about 04:20 left: ")


def test_a_terminal_gets_a_bar_with_the_terms_l0_dead_share_speed_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    log = log_of(tmp_path / "metrics.jsonl")
    log.start(0)
    with log.progress(30, 0) as show:
        for step in range(1, 31):
            log.write(step, 64 * step, {"a": row(0.25)})
            show({"a": row(0.25)})
    drawn = capsys.readouterr().err
    for part in ("30/30", "recon 0.25 spars 0.5", "l0 3", "dead 0.0%", "tok/s", "<"):
        assert part in drawn


@pytest.mark.parametrize("num_saes", [1, 6])
def test_a_long_name_does_not_push_l0_out_of_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, num_saes: int
) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    names = [f"gated-paper_clipped-resid_post.12-16384-l0_32-seed{seed}" for seed in range(num_saes)]
    log = log_of(tmp_path / "metrics.jsonl", every=1)
    with log.progress(12_000, 11_000) as show:
        show(dict.fromkeys(names, row()))
    last = capsys.readouterr().err.rstrip().split("\r")[-1]
    # tqdm cuts a line at the width of a real terminal; this stream has none.
    assert "l0 3" in last[:79]
