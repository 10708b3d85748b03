"""Runs brought to their end and studied once; what is done is not done again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from penstock.evaluation.sae_record import Records
from penstock.paper import reproduction
from penstock.paper.reproduction import Plan, finish, foreseen, reproduce
from penstock.runs import sweep
from penstock.runs.finished_run import FinishedRun
from penstock.runs.sweep import prepare
from penstock.studies import STUDIES
from penstock.studies.ablations import AblationsConfig
from penstock.studies.cost import CostConfig
from penstock.studies.sensitivity import SensitivityConfig
from penstock.training.settings import ResamplingConfig, ResolvedRun, RunConfig, SAEConfig
from penstock.training.settings.config_file import read_config
from penstock.training.settings.defaults import PlannedModel

MakeRun = Callable[..., RunConfig]

MODEL = PlannedModel("model", context=32, widths={"resid_post.0": 16})


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

    def study(run: FinishedRun, settings: object) -> Records:
        counts["study"] += 1
        return [{"saes": list(run.saes)}]

    monkeypatch.setitem(STUDIES, "counting", replace(STUDIES["cost"], name="counting", records=study))
    return counts


def test_every_run_is_trained_evaluated_and_studied_once(
    tiny_run: MakeRun, tmp_path: Path, counted: dict[str, int]
) -> None:
    studies = {"counting": CostConfig()}
    plans = {name: Plan(tiny_run(steps=steps, cached=True), studies) for name, steps in (("a", 25), ("b", 30))}
    made = reproduce(plans["a"], tmp_path / "a")
    assert counted == {"train": 1, "evaluate_run": 1, "study": 1}
    for name, plan in plans.items():
        assert reproduce(plan, tmp_path / name) == made
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


@pytest.fixture
def small(tiny_run: MakeRun) -> RunConfig:
    """Two targets of both arms, settings left open."""
    saes = [
        SAEConfig(arch=arch, site="resid_post.0", d_sae=32, target_l0=target)
        for arch in ("gated", "relu")
        for target in (2.0, 3.0)
    ]
    return tiny_run(*saes, steps=25, cached=True, resampling=ResamplingConfig(window_tokens=64))


STUDIED = {
    "ablations": AblationsConfig(ablations=("no_auxiliary", "norm_weighted")),
    "sensitivity": SensitivityConfig(lr=(2.0,), sparsity_coef=(0.5,), d_sae=(2.0,), warmup_share=()),
    "cost": CostConfig(repeats=1),
}


def one_by_one(whole: ResolvedRun) -> Sequence[ResolvedRun]:
    return [replace(whole, saes=(sae,)) for sae in whole.saes]


def without_coef(sae: SAEConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(sae).items() if name != "sparsity_coef"}


def test_what_studies_train_is_foreseen_and_divided_like_the_run(small: RunConfig, tmp_path: Path) -> None:
    plan = Plan(small, STUDIED, one_by_one)
    run, studies = foreseen(plan, MODEL)
    assert {name: len(config.saes) for name, config in studies.items()} == {"ablations": 2 * 2, "sensitivity": 2 * 3}
    reproduce(plan, tmp_path / "site")
    trained = read_config(tmp_path / "site")
    assert (run.saes, run.threads, run.resampling) == (trained.saes, trained.threads, trained.resampling)
    for name, config in studies.items():
        (nested,) = (tmp_path / "site" / "studies" / name).glob("run-*")
        trained = read_config(nested)
        assert list(map(without_coef, config.saes)) == list(map(without_coef, trained.saes))
        assert (config.data.tokens, config.resampling) == (trained.data.tokens, trained.resampling)
        parts = [read_config(part).saes for part in sorted((nested / "parts").iterdir(), key=lambda at: int(at.name))]
        assert parts == [(sae,) for sae in trained.saes]


def test_a_study_that_does_not_fit_its_run_is_foreseen(small: RunConfig) -> None:
    plan = Plan(small, {"sensitivity": SensitivityConfig(target_l0=7.0)})
    with pytest.raises(ValueError, match=r"target_l0=7 is not .* any arm of the run\. Its targets are 2, 3\."):
        foreseen(plan, MODEL)


def test_what_a_study_cannot_train_is_refused_before_the_run_is_trained(small: RunConfig, tmp_path: Path) -> None:
    def divide(whole: ResolvedRun) -> Sequence[ResolvedRun]:
        if max(sae.d_sae for sae in whole.saes) > 32:
            raise ValueError("alone needs")
        return one_by_one(whole)

    with pytest.raises(ValueError, match="alone needs"):
        finish(Plan(small, STUDIED, divide), tmp_path / "run")
    assert not (tmp_path / "run").exists()
