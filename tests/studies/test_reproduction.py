"""Runs brought to their end and studied once; what is done is not done again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.studies import reproduction, sweep
from penstock.studies.finished_run import FinishedRun
from penstock.studies.reproduction import Plan, Study, finish, reproduce
from penstock.studies.stored import Record
from penstock.studies.sweep import prepare
from penstock.training.config import ResamplingConfig, RunConfig, SAEConfig

MakeRun = Callable[..., RunConfig]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each step was made; the studies are replaced by one that only counts."""
    counts = {"train": 0, "evaluate_run": 0, "study": 0}
    for module, name in ((sweep, "train"), (reproduction, "evaluate_run")):
        original = getattr(module, name)

        def counting(*args: object, name: str = name, original: Callable[..., object] = original) -> object:
            counts[name] += 1
            return original(*args)

        monkeypatch.setattr(module, name, counting)

    def study(run: FinishedRun, settings: object) -> list[Record]:
        counts["study"] += 1
        return [{"saes": list(run.saes)}]

    monkeypatch.setattr(reproduction, "STUDIES", {"counting": Study(reproduction.CostConfig, study, of_saes=False)})
    return counts


def test_every_run_is_trained_evaluated_and_studied_once(
    tiny_run: MakeRun, tmp_path: Path, counted: dict[str, int]
) -> None:
    studies = {"counting": reproduction.CostConfig()}
    plans = {name: Plan(tiny_run(steps=steps, cached=True), studies) for name, steps in (("a", 25), ("b", 30))}
    reproduce({"a": plans["a"]}, tmp_path)
    assert counted == {"train": 1, "evaluate_run": 1, "study": 1}
    reproduce(plans, tmp_path)
    assert counted == {"train": 2, "evaluate_run": 2, "study": 2}
    reproduce(plans, tmp_path)
    assert counted == {"train": 2, "evaluate_run": 2, "study": 2}
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_run_that_was_stopped_goes_on_where_it_was(
    tiny_run: MakeRun, tmp_path: Path, counted: dict[str, int]
) -> None:
    config = tiny_run(steps=25, cached=True)
    prepare(config, tmp_path, reproduction.load_model(config))
    finish(Plan(config, {}), tmp_path)
    (tmp_path / "records.jsonl").unlink()
    finish(Plan(config, {}), tmp_path)
    assert counted["train"] == 1
    assert counted["evaluate_run"] == 2


def test_a_folder_with_another_run_is_left_alone(tiny_run: MakeRun, tmp_path: Path, counted: dict[str, int]) -> None:
    config = tiny_run(steps=25, cached=True)
    prepare(config, tmp_path, reproduction.load_model(config))
    with pytest.raises(ValueError, match="holds a run with other settings"):
        finish(Plan(replace(config, log_steps=7), {}), tmp_path)
    assert counted["train"] == 0


def test_a_run_in_parts_becomes_the_same_as_one_in_a_piece(
    tiny_run: MakeRun, tmp_path: Path, counted: dict[str, int]
) -> None:
    saes = [SAEConfig(arch="gated", site="resid_post.0", d_sae=32, target_l0=3.0, seed=seed) for seed in (0, 1)]
    config = replace(tiny_run(*saes, steps=25, cached=True, resampling=ResamplingConfig(window_tokens=64)), threads=1)
    finish(Plan(config, {}), tmp_path / "whole")
    finish(Plan(config, {}, lambda whole: [replace(whole, saes=(sae,)) for sae in whole.saes]), tmp_path / "parts")
    assert counted == {"train": 3, "evaluate_run": 2, "study": 0}
    whole, parts = ((tmp_path / name / "records.jsonl").read_text().splitlines() for name in ("whole", "parts"))
    assert [json.loads(line)["loss_recovered"] for line in whole] == [json.loads(x)["loss_recovered"] for x in parts]
