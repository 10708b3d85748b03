"""Pruning the SAEs of a finished run."""

import json
from pathlib import Path

import pytest

from penstock.runs.finished_run import FinishedRun
from penstock.studies.pruning import PruningConfig, pruning

METRICS = ("l0", "fvu", "delta_ce", "reconstruction_bias")


@pytest.fixture(scope="module")
def own(run_folder: Path) -> dict[str, dict]:
    """The run's own records by name."""
    records = [json.loads(line) for line in (run_folder / "records.jsonl").read_text().splitlines()]
    return {record["name"]: record for record in records}


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
        ({"archs": ("rleu",)}, r"archs=rleu is out of range: it must be one of gated, relu"),
    ],
)
def test_pruning_refuses_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningConfig(**settings)


def test_pruning_without_anything_to_prune_says_what_there_is(finished: FinishedRun) -> None:
    with pytest.raises(ValueError, match="has SAEs of gated, relu, and --archs is empty"):
        pruning(finished, PruningConfig(archs=()))


def test_what_is_changed_after_training_is_not_blamed_for_missing_its_target(finished: FinishedRun) -> None:
    config = PruningConfig(quantiles=(), l0_shares=(0.3,), prices=(), fit_tokens=500)
    assert not [w for record in pruning(finished, config) for w in record["warnings"] if "target" in w]


def test_there_is_something_to_fit_on() -> None:
    with pytest.raises(ValueError, match="fit_tokens=0 is out of range: it must be at least 1"):
        PruningConfig(fit_tokens=0)
