"""The studies of a finished run: what they measure, and what they leave behind."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from penstock.evaluation.measuring import Described
from penstock.formats.native import load_sae
from penstock.posthoc.refitting import RefitConfig, Refitted, rescale_and_shift
from penstock.runs.finished_run import FinishedRun
from penstock.runs.sweep import evaluate_saes
from penstock.saes import SAE
from penstock.shapes import Acts
from penstock.studies import after_training
from penstock.studies.after_training import (
    PruningConfig,
    PursuitConfig,
    RefitStudyConfig,
    pruning,
    pursuit,
    refit,
)

METRICS = ("l0", "fvu", "delta_ce", "reconstruction_bias")


@pytest.fixture(scope="module")
def own(run_folder: Path) -> dict[str, dict]:
    """The run's own records by name."""
    records = [json.loads(line) for line in (run_folder / "records.jsonl").read_text().splitlines()]
    return {record["name"]: record for record in records}


def test_a_finished_run_measures_its_own_saes_as_its_records_say(finished: FinishedRun, own: dict[str, dict]) -> None:
    from penstock.evaluation import Candidate

    described = [
        Described(Candidate.of(name, "resid_post.0", sae), finished.about[name]) for name, sae in finished.saes.items()
    ]
    for record in finished.measure(described).records:
        assert {key: record[key] for key in METRICS} == {key: own[record["name"]][key] for key in METRICS}


def test_training_activations_are_the_first_of_the_text_and_no_more_than_asked(finished: FinishedRun) -> None:
    few, more = finished.activations(50)["resid_post.0"], finished.activations(80)["resid_post.0"]
    assert len(few) == 50
    assert torch.equal(few, more[:50])
    assert len(finished.activations(10**9)["resid_post.0"]) <= finished.config.data.tokens


def test_pursuit_measures_every_decoder_at_every_number_of_latents(finished: FinishedRun) -> None:
    records = pursuit(finished, PursuitConfig(num_latents=(1, 4)))
    assert {(record["of"], record["num_latents"]) for record in records} == {
        (name, number) for name in finished.saes for number in (1, 4)
    }
    assert len({record["name"] for record in records}) == len(records)
    for record in records:
        assert 0 < record["l0"] <= record["num_latents"]
    for name in finished.saes:
        one, four = (record for record in records if record["of"] == name)
        assert four["fvu"] < one["fvu"]


def test_pruning_nothing_changes_nothing_and_pruning_lowers_l0(finished: FinishedRun, own: dict[str, dict]) -> None:
    archs = ("relu", "gated")
    config = PruningConfig(quantiles=(0.5,), l0_shares=(1.0, 0.5), prices=(1.0,), archs=archs, fit_tokens=1000)
    records = pruning(finished, config)
    assert len(records) == len(finished.saes) * 4 * 2
    for record in records:
        base = own[record["of"]]
        if (record["rule"], record["strength"], record["rescaled"]) == ("global", 1.0, False):
            assert {key: record[key] for key in METRICS} == pytest.approx({key: base[key] for key in METRICS})
        elif record["rule"] == "optimal":
            assert record["l0"] <= base["l0"]
        elif record["strength"] == 0.5:
            assert record["l0"] < 0.8 * base["l0"]
        assert record["scale"] == 1.0 or record["rescaled"]


def test_pruning_takes_the_architectures_asked_for(finished: FinishedRun) -> None:
    config = PruningConfig(quantiles=(0.5,), l0_shares=(), prices=(), archs=("relu",), fit_tokens=500)
    assert {record["of"] for record in pruning(finished, config)} == {"relu0", "relu1"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantiles": (1.5,)}, r"quantiles=1.5 is out of range"),
        ({"l0_shares": (0.0,)}, r"l0_shares=0.0 is out of range"),
        ({"prices": (1.0, -1.0)}, r"prices=-1.0 is out of range"),
        ({"archs": ("rleu",)}, r"archs=rleu is out of range: allowed is relu, gated"),
    ],
)
def test_pruning_refuses_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningConfig(**settings)


def test_pruning_without_anything_to_prune_says_what_there_is(finished: FinishedRun) -> None:
    with pytest.raises(ValueError, match="has SAEs of gated, relu, asked for are none"):
        pruning(finished, PruningConfig(archs=()))


def test_what_is_changed_after_training_is_not_blamed_for_missing_its_target(finished: FinishedRun) -> None:
    config = PruningConfig(quantiles=(), l0_shares=(0.3,), prices=(), fit_tokens=500)
    assert not [w for record in pruning(finished, config) for w in record["warnings"] if "target" in w]


def test_a_run_whose_training_is_not_over_says_how_to_go_on(finished: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((finished.folder / "config.json").read_text())
    with pytest.raises(ValueError, match=rf"not finished: it has no gated0 yet. Go on with: .* --resume {tmp_path}"):
        FinishedRun.load(tmp_path)


def test_refit_saves_saes_that_give_the_records_numbers(finished: FinishedRun, own: dict[str, dict]) -> None:
    records = refit(finished, RefitStudyConfig(refit=RefitConfig(steps=150, batch_size=256), fit_tokens=1500))
    assert {record["name"] for record in records} == {
        f"{arch}{seed}-{method}"
        for arch in ("gated", "relu")
        for seed in (0, 1)
        for method in ("rescale_and_shift", "fine_tune")
    }
    for record in records:
        sae, about = load_sae(finished.folder / "studies" / "refit" / "saes" / record["name"])
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
    run = replace(finished, folder=tmp_path / "run")
    shutil.copytree(finished.folder, run.folder, ignore=shutil.ignore_patterns("studies", "checkpoints"))
    config = RefitStudyConfig(refit=RefitConfig(steps=20, batch_size=256), archs=("relu",), fit_tokens=1500)
    fitted: list[str] = []

    def fit_or_stop(sae: SAE, acts: Acts, settings: RefitConfig) -> Refitted:
        if len(fitted) == 3:
            raise KeyboardInterrupt
        fitted.append("one more")
        return rescale_and_shift(sae, acts, settings)

    monkeypatch.setattr(after_training, "METHODS", {"rescale_and_shift": fit_or_stop, "fine_tune": fit_or_stop})
    with pytest.raises(KeyboardInterrupt):
        refit(run, config)
    saved = run.folder / "studies" / "refit" / "saes"
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
    run = replace(finished, folder=tmp_path / "run")
    shutil.copytree(finished.folder, run.folder, ignore=shutil.ignore_patterns("studies", "checkpoints"))
    config = RefitStudyConfig(refit=RefitConfig(steps=20, batch_size=256), fit_tokens=1500)
    records = refit(run, config)
    folders = [run.folder / "studies" / "refit" / "saes" / record["name"] for record in records]
    again = evaluate_saes(folders, run.config.eval)
    for one, other in zip(records, again, strict=True):
        assert {key: other[key] for key in METRICS} == {key: one[key] for key in METRICS}


@pytest.mark.parametrize("config", [PruningConfig, RefitStudyConfig])
def test_a_study_is_fitted_on_something(config: type) -> None:
    with pytest.raises(ValueError, match="fit_tokens=0 is out of range: it must be at least 1"):
        config(fit_tokens=0)


@pytest.mark.parametrize("num_latents", [(), (4, 0)])
def test_pursuit_needs_a_number_of_latents(num_latents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="num_latents=.* is out of range: give"):
        PursuitConfig(num_latents=num_latents)


def test_refit_without_such_an_sae_is_an_error(finished: FinishedRun) -> None:
    gated = {name: sae for name, sae in finished.saes.items() if name.startswith("gated")}
    with pytest.raises(ValueError, match=r"no SAE to refit among relu: name another with --archs"):
        refit(replace(finished, saes=gated), RefitStudyConfig(archs=("relu",)))
    with pytest.raises(ValueError, match=r"archs=gated_untied cannot be refitted: allowed are relu, gated"):
        RefitStudyConfig(archs=("gated_untied",))
