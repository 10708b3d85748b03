"""Refitting SAEs of a finished run, and what it leaves behind."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.formats import load_sae
from penstock.posthoc.refitting import RefitConfig, Refitted, rescale_and_shift
from penstock.runs.finished_run import FinishedRun
from penstock.runs.run_evaluation import evaluate_saes
from penstock.saes import SAE
from penstock.shapes import Acts
from penstock.studies import refit as refit_study
from penstock.studies.refit import RefitStudyConfig, refit

METRICS = ("l0", "fvu", "delta_ce", "reconstruction_bias")


@pytest.fixture(scope="module")
def own(run_folder: Path) -> dict[str, dict]:
    """The run's own records by name."""
    records = [json.loads(line) for line in (run_folder / "records.jsonl").read_text().splitlines()]
    return {record["name"]: record for record in records}


def test_refit_saves_saes_that_give_the_records_numbers(finished: FinishedRun, own: dict[str, dict]) -> None:
    records = refit(finished, RefitStudyConfig(refit=RefitConfig(steps=150, batch_size=256), fit_tokens=1500))
    assert {record["name"] for record in records} == {
        f"{arch}{seed}-{method}"
        for arch in ("gated", "relu")
        for seed in (0, 1)
        for method in ("rescale_and_shift", "fine_tune")
    }
    for record in records:
        sae, facts = load_sae(finished.run_dir / "studies" / "refit" / "saes" / record["name"])
        about = facts.metadata
        assert sae.arch == "gated"
        assert about["site"] == "resid_post.0"
        # A frozen gate: fewer latents may fire, never more. What is refitted is better where it was fitted.
        assert record["l0"] <= own[record["of"]]["l0"]
        assert record["fvu"] < own[record["of"]]["fvu"]
        assert [record[key] for key in ("loss_before", "loss_after")] == [about["loss_before"], about["loss_after"]]
        if record["arch"] == "relu":
            assert 0 < record["loss_after"] < record["loss_before"]


def test_an_interrupted_refit_goes_on_with_what_it_has_saved(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(finished, run_dir=tmp_path / "run")
    shutil.copytree(finished.run_dir, run.run_dir, ignore=shutil.ignore_patterns("studies", "checkpoints"))
    config = RefitStudyConfig(refit=RefitConfig(steps=20, batch_size=256), archs=("relu",), fit_tokens=1500)
    fitted: list[str] = []

    def fit_or_stop(sae: SAE, acts: Acts, settings: RefitConfig) -> Refitted:
        if len(fitted) == 3:
            raise KeyboardInterrupt
        fitted.append("one more")
        return rescale_and_shift(sae, acts, settings)

    monkeypatch.setattr(refit_study, "METHODS", {"rescale_and_shift": fit_or_stop, "fine_tune": fit_or_stop})
    with pytest.raises(KeyboardInterrupt):
        refit(run, config)
    saved = run.run_dir / "studies" / "refit" / "saes"
    assert len(list(saved.iterdir())) == 3
    fitted.clear()
    records = refit(run, config)
    assert len(fitted) == 1 and len(records) == 4
    # Other settings fit all four anew, and from the first on the earlier records are not believed any more.
    other = saved.parent / "saes" / "relu0-of_another_study"
    other.mkdir()
    (saved.parent / "settings.json").write_text("as if finished")
    fitted.clear()
    with pytest.raises(KeyboardInterrupt):
        refit(run, replace(config, fit_tokens=1400))
    assert len(fitted) == 3
    assert not other.exists() and not (saved.parent / "settings.json").exists()


def test_a_refitted_sae_can_be_evaluated_like_any_other(finished: FinishedRun, tmp_path: Path) -> None:
    run = replace(finished, run_dir=tmp_path / "run")
    shutil.copytree(finished.run_dir, run.run_dir, ignore=shutil.ignore_patterns("studies", "checkpoints"))
    config = RefitStudyConfig(refit=RefitConfig(steps=20, batch_size=256), fit_tokens=1500)
    records = refit(run, config)
    folders = [run.run_dir / "studies" / "refit" / "saes" / record["name"] for record in records]
    again = evaluate_saes(folders, run.config.eval)
    for one, other in zip(records, again, strict=True):
        assert {key: other[key] for key in METRICS} == {key: one[key] for key in METRICS}


def test_there_is_something_to_fit_on() -> None:
    with pytest.raises(ValueError, match="fit_tokens=0 is out of range: it must be at least 1"):
        RefitStudyConfig(fit_tokens=0)


def test_refit_without_such_an_sae_is_an_error(finished: FinishedRun) -> None:
    gated = {name: sae for name, sae in finished.saes.items() if name.startswith("gated")}
    with pytest.raises(ValueError, match=r"no SAE to refit among relu. Give another architecture with --archs"):
        refit(replace(finished, saes=gated), RefitStudyConfig(archs=("relu",)))
    with pytest.raises(ValueError, match=r"archs=gated_untied cannot be refitted: it must be one of relu, gated"):
        RefitStudyConfig(archs=("gated_untied",))
