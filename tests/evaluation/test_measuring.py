"""Many SAEs measured a few at a time: the same numbers, and no more weights in memory than allowed."""

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.evaluation import measuring
from penstock.evaluation.evaluate import Candidate
from penstock.evaluation.measuring import Described
from penstock.runs import trained_saes
from penstock.runs.finished_run import FinishedRun
from penstock.runs.trained_saes import TrainedSAEs, load_run
from penstock.saes import SAE
from penstock.studies.cost import CostConfig, _groups, cost
from penstock.studies.pruning import PruningConfig, pruning
from penstock.studies.pursuit import PursuitConfig, pursuit

WEIGHTS = 2 * 4 * 16 * 32
"""Bytes of the matrices of one SAE of the finished run."""


@pytest.fixture
def loaded(finished: FinishedRun) -> TrainedSAEs:
    return load_run(finished.config, finished.run_dir)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names that are evaluated together, one list for each pass over the text."""
    found: list[list[str]] = []
    original = measuring.evaluate

    def evaluate(model: Any, rows: Any, candidates: Any) -> Any:
        found.append([candidate.name for candidate in candidates])
        return original(model, rows, candidates)

    monkeypatch.setattr(measuring, "evaluate", evaluate)
    return found


@pytest.mark.parametrize(
    ("max_bytes", "sizes"),
    [(None, [4]), (4 * WEIGHTS, [4]), (3 * WEIGHTS, [3, 1]), (2 * WEIGHTS, [2, 2]), (1, [1] * 4)],
)
def test_groups_are_as_large_as_memory_holds_and_change_no_number(
    finished: FinishedRun, loaded: TrainedSAEs, groups: list[list[str]], max_bytes: int | None, sizes: list[int]
) -> None:
    whole = finished.measure(loaded.described())
    groups.clear()
    found = replace(finished, max_bytes=max_bytes).measure(loaded.described())
    assert [len(group) for group in groups] == sizes
    assert found.records == whole.records
    assert found.evaluations.keys() == whole.evaluations.keys()
    for name, evaluation in found.evaluations.items():
        for key, values in evaluation.sums.items():
            assert torch.equal(values, whole.evaluations[name].sums[key])
    assert [point.l0.tolist() for point in found.points] == [point.l0.tolist() for point in whole.points]


def test_no_more_saes_are_held_than_a_group_and_the_next(
    finished: FinishedRun, loaded: TrainedSAEs, groups: list[list[str]]
) -> None:
    alive: weakref.WeakSet[SAE] = weakref.WeakSet()
    most = 0

    def described() -> Iterator[Described]:
        nonlocal most
        for name, sae in loaded.saes.items():
            alive.add(sae)
            gc.collect()
            most = max(most, len(alive))
            yield Described(Candidate.of(name, loaded.about[name]["site"], sae), loaded.about[name])

    replace(finished, max_bytes=1).measure(described())
    assert len(groups) == 4
    assert most == 2


def test_loading_a_run_reads_no_weights(finished: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    original = trained_saes.load_sae

    def load_sae(folder: Path, **options: Any) -> Any:
        read.append(folder)
        return original(folder, **options)

    monkeypatch.setattr(trained_saes, "load_sae", load_sae)
    run = FinishedRun.load(finished.run_dir)
    # The check of annotations, which tests run with, looks at the first.
    assert {folder.name for folder in read} <= {"gated0"}
    read.clear()
    assert run.saes["relu1"].arch == "relu"
    assert [folder.name for folder in read] == ["relu1"]


def test_an_sae_is_read_when_it_is_asked_for_and_not_kept(loaded: TrainedSAEs) -> None:
    first = loaded.saes["gated0"]
    assert torch.equal(first.W_dec, loaded.saes["gated0"].W_dec)
    assert "gated0" in loaded.saes and "gated2" not in loaded.saes
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    assert list(loaded.saes) == ["gated0", "gated1", "relu0", "relu1"] and len(loaded.saes) == 4
    with pytest.raises(KeyError):
        loaded.saes["gated2"]


@pytest.mark.parametrize(
    "study",
    [
        lambda run: pursuit(run, PursuitConfig(num_latents=(2, 3))),
        lambda run: pruning(run, PruningConfig(quantiles=(0.5,), l0_shares=(0.5,), prices=(), fit_tokens=500)),
    ],
    ids=["pursuit", "pruning"],
)
def test_a_study_in_little_memory_finds_the_same(
    finished: FinishedRun, tmp_path: Path, groups: list[list[str]], study: Callable[[FinishedRun], list[Any]]
) -> None:
    run = replace(finished, run_dir=tmp_path)
    whole = study(run)
    assert len(groups) == 1
    assert study(replace(run, max_bytes=3 * WEIGHTS)) == whole
    assert len(groups) > 2


def test_only_neighbours_in_l0_are_timed_together() -> None:
    """Two SAEs fit, with what each takes: itself, its export, and the training of a copy."""
    rows: list[dict[str, Any]] = [
        {"name": name, "l0": l0, "parameter_bytes": 10.0, "training_bytes": 30}
        for name, l0 in (("a", 4.0), ("b", 32.0), ("c", 5.0), ("d", 30.0), ("e", 90.0))
    ]
    assert _groups(rows, None) == [["a", "b", "c", "d", "e"]]
    assert _groups(rows, 100) == [["a", "c"], ["d", "b"], ["e"]]
    assert _groups(rows, 99) == _groups(rows, 0) == [["a"], ["c"], ["d"], ["b"], ["e"]]


def test_cost_in_little_memory_counts_the_same(finished: FinishedRun) -> None:
    whole, few = (cost(replace(finished, max_bytes=limit), CostConfig(repeats=1)) for limit in (None, 1))
    counted = ("name", "l0", "step_flops", "parameter_bytes", "baseline", "parameter_bytes_ratio")
    assert [[row.get(key) for key in counted] for row in few] == [[row.get(key) for key in counted] for row in whole]
    assert all(row["step_seconds"] > 0 and row["encode_seconds"] > 0 for row in few)
