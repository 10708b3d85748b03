"""SAEs that a study trains beside those of a run, in one piece and divided."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.language_models.loading import LanguageModel
from penstock.runs import sweep
from penstock.runs.finished_run import FinishedRun
from penstock.studies.ablations import AblationsConfig, ablations
from penstock.training.settings import ResolvedRun

CHANGED = AblationsConfig(ablations=("untied", "norm_weighted"))


def trained(folder: Path) -> dict[str, bytes]:
    """The weights of each SAE that the study has trained, as they lie on disk."""
    files = folder.glob("studies/ablations/run-*/saes/*/sae.safetensors")
    return {file.parent.name: file.read_bytes() for file in files}


def in_two(whole: ResolvedRun) -> Sequence[ResolvedRun]:
    return [replace(whole, saes=whole.saes[::2]), replace(whole, saes=whole.saes[1::2])]


def test_variants_in_parts_stopped_between_them_become_the_same_as_in_one_piece(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    expected = ablations(replace(finished, run_dir=whole), CHANGED)
    assert not list(whole.rglob("parts"))

    original, at = sweep.train, []

    def train(folder: Path, model: LanguageModel) -> None:
        at.append(folder.name)
        if len(at) == 2:
            raise InterruptedError
        original(folder, model)

    monkeypatch.setattr(sweep, "train", train)
    run = replace(finished, run_dir=parted, divide=in_two)
    with pytest.raises(InterruptedError, match="The study ablations was stopped"):
        ablations(run, CHANGED)
    found = ablations(run, CHANGED)
    assert at == ["0", "1", "1"]
    assert len(trained(whole)) == 4 and trained(whole) == trained(parted)
    assert [{**record, "train_seconds": 0} for record in found] == [{**one, "train_seconds": 0} for one in expected]
