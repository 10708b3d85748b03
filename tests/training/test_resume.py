"""A real process, killed or asked to stop at a random step, goes on to the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.language_models.loading import LanguageModel
from penstock.runs import sweep
from penstock.training.settings import RunConfig

STEPS = 300
DEADLINE = 120
"""Seconds after which a process that does not get on fails the test."""

MakeRun = Callable[..., RunConfig]


@pytest.fixture(scope="module", params=[False, True], ids=["buffer", "cache"])
def config(request: pytest.FixtureRequest, tiny_run: MakeRun) -> RunConfig:
    return tiny_run(cached=request.param, steps=STEPS, checkpoint_steps=40, log_steps=1)


@pytest.fixture(scope="module")
def uninterrupted(config: RunConfig, tiny_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "uninterrupted"
    sweep.prepare(config, folder, tiny_lm)
    sweep.train(folder, tiny_lm)
    return folder


class Process:
    """`python -m penstock train --resume FOLDER`, and how far it has come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stderr = folder / "stderr.txt"
        with self.stderr.open("wb") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "penstock", "train", "--resume", str(folder)],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def wait_for_step(self, step: int) -> None:
        """Return as soon as the log holds a step, and with it a checkpoint."""
        log = self.folder / "metrics.jsonl"
        deadline = time.monotonic() + DEADLINE
        while not (log.exists() and f'"step": {step},' in log.read_text()):
            assert self.popen.poll() is None, self.stderr.read_text()
            assert time.monotonic() < deadline, f"step {step} was not reached in time"
            time.sleep(0.005)


@pytest.fixture
def process(config: RunConfig, tiny_lm: LanguageModel, tmp_path: Path) -> Iterator[Process]:
    sweep.prepare(config, tmp_path / "run", tiny_lm)
    started = Process(tmp_path / "run")
    yield started
    started.popen.kill()
    started.popen.wait()


def checkpoint_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*"))


def assert_same(folder: Path, other: Path) -> None:
    names = sorted(path.name for path in (other / "saes").iterdir())
    assert sorted(path.name for path in (folder / "saes").iterdir()) == names
    for name in names:
        weights = [(run / "saes" / name / "sae.safetensors").read_bytes() for run in (folder, other)]
        assert weights[0] == weights[1], name
        notes = [json.loads((run / "saes" / name / "cfg.json").read_text()) for run in (folder, other)]
        assert notes[0]["metadata"] | {"train_seconds": 0} == notes[1]["metadata"] | {"train_seconds": 0}


def assert_no_step_twice(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [(row["step"], row["sae"]) for row in rows]
    assert len(set(logged)) == len(logged) == 2 * STEPS
    assert [step for step, _ in logged] == sorted(step for step, _ in logged)


def test_a_run_killed_at_a_random_step_goes_on_to_the_same_bits(
    process: Process, config: RunConfig, uninterrupted: Path, tiny_lm: LanguageModel
) -> None:
    process.wait_for_step(random.randint(41, STEPS // 2))
    process.popen.send_signal(signal.SIGKILL)
    assert process.popen.wait() == -signal.SIGKILL
    assert checkpoint_steps(process.folder)
    assert not (process.folder / "saes").exists()
    sweep.train(process.folder, tiny_lm)
    assert_same(process.folder, uninterrupted)
    assert_no_step_twice(process.folder)
    # The text, or the cache, was passed over more than once, so that restarts were in play.
    sae = next((uninterrupted / "saes").iterdir())
    assert json.loads((sae / "cfg.json").read_text())["metadata"]["passes"] > 1.5


@pytest.mark.parametrize("config", [False], ids=["buffer"], indirect=True)
def test_a_run_asked_to_stop_saves_its_state_says_so_and_goes_on_to_the_same_bits(
    process: Process, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process.wait_for_step(random.randint(1, STEPS // 2))
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(timeout=DEADLINE) == 1
    told = process.stderr.read_text()
    (latest,) = checkpoint_steps(process.folder)[-1:]
    assert (
        f"error: Stopped by SIGTERM at step {latest} of {STEPS}; the state is saved. "
        f"Continue with: penstock train --resume {process.folder}\n"
    ) in told
    # Not on a terminal: neither our own progress bar nor one of transformers.
    assert "\r" not in told
    assert "%|" not in told

    assert main(["train", "--resume", str(process.folder)]) == 0
    assert "loss_recovered" in capsys.readouterr().out
    assert (process.folder / "report.html").exists()
    assert_same(process.folder, uninterrupted)
    assert_no_step_twice(process.folder)
