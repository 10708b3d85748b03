"""Runs brought to their end and studied once; what is done is not done again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.studies import reproduction
from penstock.studies.finished_run import FinishedRun
from penstock.studies.reproduction import Study, finish, reproduce
from penstock.studies.stored import Record
from penstock.studies.sweep import prepare
from penstock.training.config import RunConfig

MakeRun = Callable[..., RunConfig]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each step was made; the studies are replaced by one that only counts."""
    counts = {"train": 0, "evaluate_run": 0, "study": 0}
    for name in ("train", "evaluate_run"):
        original = getattr(reproduction, name)

        def counting(*args: object, name: str = name, original: Callable[..., object] = original) -> object:
            counts[name] += 1
            return original(*args)

        monkeypatch.setattr(reproduction, name, counting)

    def study(run: FinishedRun, settings: object) -> list[Record]:
        counts["study"] += 1
        return [{"saes": list(run.saes)}]

    monkeypatch.setattr(reproduction, "STUDIES", {"counting": Study(reproduction.CostConfig, study, of_saes=False)})
    return counts


def test_every_run_is_trained_evaluated_and_studied_once(
    tiny_run: MakeRun, tmp_path: Path, counted: dict[str, int]
) -> None:
    configs = {"a": tiny_run(steps=25, cached=True), "b": tiny_run(steps=30, cached=True)}
    reproduce({"a": configs["a"]}, tmp_path)
    assert counted == {"train": 1, "evaluate_run": 1, "study": 1}
    reproduce(configs, tmp_path)
    assert counted == {"train": 2, "evaluate_run": 2, "study": 2}
    reproduce(configs, tmp_path)
    assert counted == {"train": 2, "evaluate_run": 2, "study": 2}
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_run_that_was_stopped_goes_on_where_it_was(
    tiny_run: MakeRun, tmp_path: Path, counted: dict[str, int]
) -> None:
    config = tiny_run(steps=25, cached=True)
    prepare(config, tmp_path, reproduction.load_model(config))
    finish(config, tmp_path)
    (tmp_path / "records.jsonl").unlink()
    finish(config, tmp_path)
    assert counted["train"] == 1
    assert counted["evaluate_run"] == 2


def test_a_folder_with_another_run_is_left_alone(tiny_run: MakeRun, tmp_path: Path, counted: dict[str, int]) -> None:
    config = tiny_run(steps=25, cached=True)
    prepare(config, tmp_path, reproduction.load_model(config))
    with pytest.raises(ValueError, match="holds a run with other settings"):
        finish(replace(config, log_steps=7), tmp_path)
    assert counted["train"] == 0
