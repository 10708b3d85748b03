"""Which SAEs are compared, and that the parts are given the tokens they need."""

from dataclasses import replace

import pytest
import torch

from penstock.studies.dictionaries import (
    ConceptsConfig,
    DictionariesConfig,
    concepts,
    dictionaries,
    held_out_activations,
)
from penstock.studies.finished_run import FinishedRun

FAR = DictionariesConfig(most_apart=1000.0)


def test_held_out_activations_are_those_of_the_positions_that_count_row_by_row(finished: FinishedRun) -> None:
    rows = finished.held_out()
    found = held_out_activations(finished)["resid_post.0"]
    one_by_one = [
        finished.model.activations(tokens[None], ["resid_post.0"])["resid_post.0"][0][mask]
        for tokens, mask in zip(rows.tokens, rows.mask, strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(one_by_one))


def test_arms_are_paired_within_a_seed_and_seeds_within_an_arm(finished: FinishedRun) -> None:
    found = dictionaries(finished, FAR)
    assert {(row["a"], row["b"], row["kind"]) for row in found} == {
        ("gated0", "relu0", "arms"),
        ("gated1", "relu1", "arms"),
        ("gated0", "gated1", "seeds"),
        ("relu0", "relu1", "seeds"),
    }


def test_saes_too_far_apart_in_l0_are_not_compared(finished: FinishedRun) -> None:
    rows = dictionaries(finished, FAR)
    widest = max(max(row["l0_a"] / row["l0_b"], row["l0_b"] / row["l0_a"]) for row in rows)
    fewer = dictionaries(finished, DictionariesConfig(most_apart=max(1.0, widest - 1e-9)))
    assert len(fewer) == len(rows) - 1


def test_a_dictionary_agrees_fully_with_itself(finished: FinishedRun) -> None:
    twin = replace(
        finished,
        saes={"gated0": finished.saes["gated0"], "gated1": finished.saes["gated0"]},
        about={name: finished.about[name] for name in ("gated0", "gated1")},
    )
    (row,) = dictionaries(twin, FAR)
    assert row["l0_a"] == row["l0_b"]
    assert all(
        value == pytest.approx(1, abs=1e-5) for key, value in row.items() if "cosine" in key and "null" not in key
    )


def test_concepts_give_every_sae_shares_that_add_up(finished: FinishedRun) -> None:
    found = concepts(finished, ConceptsConfig(min_firings=2))
    assert [row["name"] for row in found] == list(finished.saes)
    for row in found:
        assert sum(kind["share"] for kind in row["kinds"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DictionariesConfig(most_apart=0.5), "most_apart=0.5 is out of range"),
        (lambda: ConceptsConfig(threshold=0.0), "threshold=0.0 is out of range"),
        (lambda: ConceptsConfig(min_firings=1), "min_firings=1 is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
