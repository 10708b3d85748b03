"""Two processes in one run's directory: the second one is refused, and a killed one does not block."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.language_models.loading import LanguageModel
from penstock.runs import sweep
from penstock.runs.run_evaluation import evaluate_run
from penstock.runs.run_lock import RunInUseError, locked
from penstock.studies.shared.study_records import read_or_make
from penstock.training.settings import RunConfig

MakeRun = Callable[..., RunConfig]

HOLD = """
import sys
from contextlib import ExitStack
from pathlib import Path
from penstock.runs.run_lock import locked
with ExitStack() as held:
    for folder in map(str.strip, sys.stdin):
        held.enter_context(locked(Path(folder))) if folder else held.close()
        print("done", flush=True)
"""


class Holder:
    """Another process that holds locks of directories until it is told to release them, or is killed."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hold(self, folder: Path) -> None:
        self._tell(str(folder))

    def release(self) -> None:
        self._tell("")

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate()

    def _tell(self, line: str) -> None:
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.popen.stdin.write(f"{line}\n")
        self.popen.stdin.flush()
        assert self.popen.stdout.readline() == "done\n"


@pytest.fixture(scope="module")
def process() -> Iterator[Holder]:
    """One for all tests: it imports penstock for seconds."""
    holder = Holder()
    yield holder
    holder.kill()


@pytest.fixture
def holder(process: Holder) -> Iterator[Holder]:
    yield process
    process.release()


def test_the_second_process_is_refused_with_host_process_and_how_to_look(tmp_path: Path, holder: Holder) -> None:
    holder.hold(tmp_path)
    with pytest.raises(RunInUseError) as caught, locked(tmp_path):
        pass
    message = str(caught.value)
    assert message.startswith(f"{tmp_path} is in use by process {holder.popen.pid} on {os.uname().nodename} (")
    assert f"`ps -p {holder.popen.pid}` on {os.uname().nodename} shows whether it is still running" in message
    holder.release()
    with locked(tmp_path):
        pass


def test_a_killed_process_does_not_block(tmp_path: Path) -> None:
    killed = Holder()
    killed.hold(tmp_path)
    killed.kill()
    assert killed.popen.returncode == -signal.SIGKILL
    assert (tmp_path / ".lock_owner.json").exists()
    with locked(tmp_path):
        pass
    assert not (tmp_path / ".lock_owner.json").exists()


@pytest.mark.parametrize("owner", ["", "[1]", "{}", '{"host": '])
def test_an_owner_that_is_not_said_or_damaged_is_another_process(tmp_path: Path, holder: Holder, owner: str) -> None:
    holder.hold(tmp_path)
    (tmp_path / ".lock_owner.json").write_text(owner)
    with pytest.raises(RunInUseError, match="is in use by another process. Wait until it ends"), locked(tmp_path):
        pass


def test_locks_of_one_thread_nest_and_those_of_two_exclude_each_other(tmp_path: Path) -> None:
    found: list[str] = []

    def other() -> None:
        try:
            with locked(tmp_path):
                found.append("entered")
        except RunInUseError as error:
            found.append(str(error))

    def run_other() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with locked(tmp_path):
        with locked(tmp_path):
            pass
        assert (tmp_path / ".lock_owner.json").exists()
        run_other()
    run_other()
    assert f"is in use by process {os.getpid()} on" in found[0]
    assert found[1] == "entered"


def test_all_that_writes_to_a_run_is_refused_while_another_process_works_on_it(
    tiny_run: MakeRun,
    tiny_lm: LanguageModel,
    tmp_path: Path,
    holder: Holder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    config = sweep.prepare(tiny_run(), run, tiny_lm)
    before = sorted(path.name for path in run.iterdir())
    holder.hold(run)
    for attempt in (
        lambda: sweep.train(run, tiny_lm),
        lambda: evaluate_run(run, tiny_lm),
    ):
        with pytest.raises(RunInUseError):
            attempt()
    for command in (["train", "--resume", str(run)], ["eval", str(run)]):
        assert main(command) == 1
        assert "is in use by process" in capsys.readouterr().err
    assert sorted({path.name for path in run.iterdir()} - {".lock_owner.json"}) == before

    hold_study = run / "studies" / "toy"
    hold_study.mkdir(parents=True)
    holder.hold(hold_study)
    with pytest.raises(RunInUseError):
        read_or_make(run, "toy", config.data, lambda: [])

    (tmp_path / "new").mkdir()
    holder.hold(tmp_path / "new")
    with pytest.raises(RunInUseError):
        sweep.prepare(tiny_run(), tmp_path / "new", tiny_lm)


def test_of_two_commands_with_one_out_one_trains_and_the_other_says_why_not(
    tiny_lm_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "penstock", "train", "--out", str(out), "--model", str(tiny_lm_folder)),
        *("--text", str(corpus), "--context", "32", "--tokens", "1280", "--batch-size", "64", "--buffer-tokens", "256"),
        *("--site", "resid_post.0", "--d-sae", "64", "--eval-tokens", "100", "--log-steps", "1", "--threads", "1"),
    ]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=240)[1] for process in both]
    assert sorted(process.returncode != 0 for process in both) == [False, True], told
    (refused,) = (text for process, text in zip(both, told, strict=True) if process.returncode)
    assert "is in use by" in refused or "already holds a run" in refused
    rows = (out / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 20
