"""Runs and studies of which some SAEs have diverged: they are finished with those that are left."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.language_models.loading import LanguageModel
from penstock.paper.reproduction import Plan, finish
from penstock.runs.finished_run import FinishedRun
from penstock.runs.run_evaluation import evaluate_run
from penstock.runs.splitting import join
from penstock.runs.sweep import is_trained, prepare, run_sweep, train
from penstock.studies.ablations import AblationsConfig
from penstock.studies.cost import CostConfig
from penstock.studies.sensitivity import SensitivityConfig
from penstock.studies.shared.ratios_to_run import comparisons_of
from penstock.studies.shared.variants import train_variants
from penstock.studies.study_run import study_run
from penstock.training.settings import ResamplingConfig, RunConfig, SAEConfig
from penstock.training.settings.config_file import read_config
from penstock.training.trainer import DivergenceError

MakeRun = Callable[..., RunConfig]
Diverge = Callable[..., None]


@pytest.fixture
def config(tiny_run: MakeRun) -> RunConfig:
    """Four SAEs of which `relu3` is to diverge."""
    saes = [
        SAEConfig(arch=arch, site="resid_post.0", d_sae=32, target_l0=target, name=f"{arch}{target:g}")
        for arch in ("gated", "relu")
        for target in (2.0, 3.0)
    ]
    return tiny_run(*saes, steps=30, cached=True, resampling=ResamplingConfig(window_tokens=64))


@pytest.fixture
def parent(run_folder: Path, tmp_path: Path) -> Path:
    """A finished run, all of whose SAEs are there; what a study leaves there is its own."""
    for path in ("config.json", "records.jsonl", "sums.safetensors", "saes"):
        (tmp_path / path).symlink_to(run_folder / path)
    return tmp_path


def test_a_run_is_finished_evaluated_and_studied_without_what_diverged(
    config: RunConfig,
    tmp_path: Path,
    diverge: Diverge,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    diverge("relu3", 10)
    folder = tmp_path / "run"
    records = run_sweep(config, folder)
    left = ["gated2", "gated3", "relu2"]
    assert [record["name"] for record in records if record["recipe"] is not None] == left
    assert is_trained(read_config(folder), folder)
    message = (folder / "saes" / "relu3" / "diverged.txt").read_text().rstrip()
    assert message.startswith("The reconstruction loss of relu3 is nan at step 10.")
    warnings = json.loads((folder / "comparison.json").read_text())["warnings"]
    assert warnings[0] == f"diverged: {message}"
    assert f"Left out: {message}" in caplog.messages
    found = FinishedRun.load(folder)
    assert list(found.saes) == [sae.folder for sae in found.config.saes] == left
    assert {row["name"] for row in study_run(folder, "cost", CostConfig(repeats=1))} == set(left)
    few = SensitivityConfig(lr=(0.5,), sparsity_coef=(), d_sae=(), warmup_share=())
    assert [row["name"].split("-")[0] for row in study_run(folder, "sensitivity", few)] == [
        *("gated2", "gated2", "relu2", "relu2"),
    ]
    assert main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    # A line for the run and one for its state come first.
    assert ["  diverged  " in line for line in out.splitlines()[2:]] == [False, False, False, True]
    assert main(["report", str(folder)]) == 0
    assert message in (folder / "report.html").read_text()


def test_a_part_that_diverges_does_not_keep_the_others_from_being_joined(
    config: RunConfig, tmp_path: Path, diverge: Diverge, tiny_lm: LanguageModel
) -> None:
    diverge("relu3", 10)
    alone = Plan(config, {}, lambda whole: [replace(whole, saes=(sae,)) for sae in whole.saes])
    finish(alone, tmp_path / "parts")
    finish(Plan(config, {}), tmp_path / "whole")
    both = [tmp_path / name for name in ("whole", "parts")]
    names = [[json.loads(line)["name"] for line in (at / "records.jsonl").read_text().splitlines()] for at in both]
    assert names[0] == names[1] and "relu2" in names[0] and "relu3" not in names[0]
    told = [(at / "saes" / "relu3" / "diverged.txt").read_text() for at in both]
    assert told[0] == told[1]
    join(both[1], [both[1] / "parts" / "0"])


def test_a_run_of_which_nothing_is_left_is_not_evaluated(
    config: RunConfig, tmp_path: Path, diverge: Diverge, tiny_lm: LanguageModel
) -> None:
    diverge("", 10)
    prepare(config, tmp_path, tiny_lm)
    with pytest.raises(DivergenceError, match="The last of 4 SAEs has diverged, too"):
        train(tmp_path, tiny_lm)
    nothing = r"There is nothing to measure: all SAEs of the run in .* have diverged \(4 in all\)\. .* gated2 is nan"
    with pytest.raises(DivergenceError, match=nothing):
        evaluate_run(tmp_path, tiny_lm)
    with pytest.raises(DivergenceError, match=nothing):
        FinishedRun.load(tmp_path)


def test_variants_are_those_that_have_not_diverged(finished: FinishedRun, tmp_path: Path, diverge: Diverge) -> None:
    diverge("bad", 5)
    run = replace(finished, run_dir=tmp_path)
    good, bad = (replace(finished.config.saes[0], name=name) for name in ("good", "bad"))
    trained = train_variants(run, "mine", [bad, good])
    assert list(trained.saes) == list(trained.about) == ["good"]
    assert list(trained.saes) == ["good"]
    assert list(trained.diverged) == ["bad"] and "bad is nan at step 5" in trained.diverged["bad"]
    # Once in training, and once more without any.
    for _ in range(2):
        with pytest.raises(DivergenceError, match="all SAEs of the run in .*mine.* have diverged .1 in all"):
            train_variants(run, "mine", [bad])


def test_sensitivity_keeps_a_row_for_what_diverged(
    parent: Path, diverge: Diverge, capsys: pytest.CaptureFixture[str]
) -> None:
    diverge("gated0-lr_x4", 10)
    arguments = "--lr 0.5 4 --sparsity-coef --d-sae --warmup-share --target-l0 3"
    assert main(["sensitivity", str(parent), *arguments.split()]) == 0
    table = capsys.readouterr().out
    assert "lr ×4 (diverged)" in table and table.count("(diverged)") == 1
    settings = SensitivityConfig(lr=(0.5, 4.0), sparsity_coef=(), d_sae=(), warmup_share=(), target_l0=3.0)
    rows = study_run(parent, "sensitivity", settings)
    assert [(row["arch"], row["factor"]) for row in rows] == [
        (arch, factor) for arch in ("gated", "relu") for factor in (None, 0.5, 4.0)
    ]
    (row,) = [row for row in rows if row["diverged"] is not None]
    assert (row["arch"], row["name"], row["setting"], row["factor"]) == ("gated", "gated0-lr_x4", "lr", 4.0)
    assert row["diverged"].startswith("The reconstruction loss of gated0-lr_x4 is nan at step 10.")
    unmeasured = ("l0", "l0_ratio", "loss_recovered", "lost_ratio", "low", "high", "of_best", "sparsity_coef")
    assert all(row[key] is None for key in unmeasured) and row["shown"] is False
    assert len({tuple(sorted(row)) for row in rows}) == 1
    assert row["lr"] == 4 * next(one["lr"] for one in rows if one["name"] == "gated0")


def test_a_study_of_which_everything_diverges_ends_with_an_error(
    parent: Path, diverge: Diverge, capsys: pytest.CaptureFixture[str]
) -> None:
    diverge("_x", 10)
    assert main(["sensitivity", str(parent), "--target-l0", "3"]) == 1
    told = capsys.readouterr().err
    assert "error: There is nothing to measure: all SAEs of the run in" in told and "(32 in all)" in told
    assert not (parent / "studies" / "sensitivity" / "records.jsonl").exists()


def test_ablations_leave_out_what_diverged(parent: Path, diverge: Diverge, caplog: pytest.LogCaptureFixture) -> None:
    diverge("untied", 10)
    with caplog.at_level(logging.WARNING):
        records = study_run(parent, "ablations", AblationsConfig(ablations=("untied", "no_r_mag")))
    assert [record["name"] for record in records] == ["gated0-no_r_mag", "gated1-no_r_mag"]
    assert {record["of"] for record in records} == {"gated0", "gated1"}
    assert {one["baseline_curve"] for one in comparisons_of(parent, "ablations")} == {"no r_mag"}
    passed_over = [message for message in caplog.messages if message.startswith("Left out: ")]
    assert len(passed_over) == 2 and all("untied is nan at step 10" in message for message in passed_over)
