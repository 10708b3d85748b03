"""What a finished run hands to the studies."""

import json
from pathlib import Path

import pytest
import torch

from penstock.evaluation.measuring import Described
from penstock.runs.finished_run import FinishedRun

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


def test_a_run_whose_training_is_not_over_says_how_to_go_on(finished: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((finished.run_dir / "config.json").read_text())
    with pytest.raises(ValueError, match=rf"not finished: it has no gated0 yet. Continue with: .* --resume {tmp_path}"):
        FinishedRun.load(tmp_path)
