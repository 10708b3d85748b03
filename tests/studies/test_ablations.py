"""The Gated SAEs of a run once more, with one thing changed and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.runs.finished_run import FinishedRun
from penstock.studies.ablations import ABLATIONS, AblationsConfig, ablation_variants, ablations
from penstock.studies.shared.ratios_to_run import comparisons_of
from penstock.studies.study_run import study_run
from penstock.training.settings.config_file import read_config

CHANGED = {
    "auxiliary_unfrozen": {"recipe": "auxiliary_unfrozen"},
    "no_r_mag": {"arch": "gated_no_r_mag"},
    "untied": {"arch": "gated_untied"},
    "no_auxiliary": {"arch": "gated_no_auxiliary"},
}


def without_folders(run: FinishedRun, tmp_path: Path) -> FinishedRun:
    """The run in another folder, so that what a study leaves there is its own."""
    return replace(run, run_dir=tmp_path)


def test_every_gated_sae_has_a_variant_for_each_ablation(finished: FinishedRun) -> None:
    gated = [sae.folder for sae in finished.config.saes if sae.arch == "gated"]
    variants = ablation_variants(finished.config, AblationsConfig(), finished.coef_of)
    assert len(gated) == 2 and len(variants) == 2 * len(ABLATIONS)
    assert {(one.change, one.of) for one in variants} == {(a, of) for a in ABLATIONS for of in gated}


def test_a_gated_sae_is_trained_once_more_for_each_ablation(finished: FinishedRun, tmp_path: Path) -> None:
    of_one = replace(finished.config, saes=finished.config.saes[:1])
    records = ablations(replace(finished, run_dir=tmp_path, config=of_one), AblationsConfig())
    (gated,) = (sae.folder for sae in of_one.saes)
    assert {(record["ablation"], record["of"]) for record in records} == {(a, gated) for a in ABLATIONS}
    trained = read_config(next((tmp_path / "studies" / "ablations").glob("run-*")))
    assert trained.data == finished.config.data
    by_name = {sae.folder: sae for sae in trained.saes}
    base = next(sae for sae in finished.config.saes if sae.arch == "gated")
    for name, changes in CHANGED.items():
        if name == "no_auxiliary":
            changes = {**changes, "target_l0": None, "sparsity_coef": finished.about[base.folder]["sparsity_coef"]}
        assert by_name[f"{base.folder}-{name}"] == replace(base, name=f"{base.folder}-{name}", **changes)
    for name in ("norm_weighted", "norm_weighted_frozen", "inconsistent_mixture"):
        sae = by_name[f"{base.folder}-{name}"]
        assert (sae.recipe, sae.arch, sae.lr, sae.seed) == (name, "gated", base.lr, base.seed)
        assert (sae.beta1, sae.optimiser, sae.decoder_init_norm) == (0.9, "adam", 0.1)


def test_what_is_changed_and_where_can_be_chosen(finished: FinishedRun, tmp_path: Path) -> None:
    run = without_folders(finished, tmp_path)
    records = ablations(run, AblationsConfig(ablations=("no_r_mag",), target_l0s=(3.0,)))
    assert {record["arch"] for record in records} == {"gated_no_r_mag"}
    with pytest.raises(ValueError, match="no Gated SAE with unit decoder rows and target L0 7"):
        ablations(run, AblationsConfig(target_l0s=(7.0,)))
    with pytest.raises(ValueError, match=r"ablations=all is not known: it must be one of auxiliary_unfrozen, no_r_mag"):
        AblationsConfig(ablations=("all",))


def test_ablations_are_compared_with_the_gated_arm_of_their_run(run_folder: Path, tmp_path: Path) -> None:
    for path in ("config.json", "records.jsonl", "sums.safetensors", "saes"):
        (tmp_path / path).symlink_to(run_folder / path)
    study_run(tmp_path, "ablations", AblationsConfig(ablations=("untied", "norm_weighted")))
    found = {(one["arm"], one["arm_recipe"], one["baseline_curve"]) for one in comparisons_of(tmp_path, "ablations")}
    assert found == {("gated", "paper_clipped", "untied"), ("gated", "paper_clipped", "norm weighted")}
