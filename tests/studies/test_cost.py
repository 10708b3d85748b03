"""What the cost study counts and compares; how long things take is not tested."""

from dataclasses import replace

import pytest
import torch

from penstock.runs.finished_run import FinishedRun
from penstock.studies.cost import CostConfig, cost


@pytest.fixture(scope="module")
def rows(finished: FinishedRun) -> dict[str, dict]:
    return {row["name"]: row for row in cost(finished, CostConfig(repeats=2))}


def test_every_sae_has_its_seconds(finished: FinishedRun, rows: dict[str, dict]) -> None:
    assert list(rows) == list(finished.saes)
    for name, row in rows.items():
        assert row["step_seconds"] > 0 and row["encode_seconds"] > 0
        assert ("encode_seconds_as_jumprelu" in row) == name.startswith("gated")
        assert row["batch_size"] == 64


def test_a_gated_sae_is_compared_with_the_nearest_baseline(rows: dict[str, dict]) -> None:
    for name, row in rows.items():
        if name.startswith("relu"):
            assert "baseline" not in row
            continue
        nearest = min(("relu0", "relu1"), key=lambda other: abs(rows[other]["l0"] - row["l0"]))
        assert row["baseline"] == nearest
        assert row["step_seconds_ratio"] == row["step_seconds"] / rows[nearest]["step_seconds"]
        assert row["step_flops_dense_ratio"] == pytest.approx(8 / 6)
        # d_in 16 and d_sae 32: two matrices, b_dec, and three vectors for the gate where ReLU has one.
        assert row["parameter_bytes"] == 4 * (2 * 16 * 32 + 16 + 3 * 32)
        assert rows[nearest]["parameter_bytes"] == 4 * (2 * 16 * 32 + 16 + 32)
        # Parameters, their gradients and second moments; a step count; when each latent last fired and was updated;
        # ten tensors of half of the 64 x 32 pairs, 64 centred inputs, a dense block, and for each code two rows more.
        of_code = 4 * 2 * 64 * 16
        step = 4 * (10 * 64 * 32 // 2 + 64 * 16 + 64 * 32)
        rest = 8 + 2 * 8 * 32 + step
        assert row["training_bytes"] == 3 * row["parameter_bytes"] + rest + 2 * of_code
        assert rows[nearest]["training_bytes"] == 3 * rows[nearest]["parameter_bytes"] + rest + of_code
        for key in ("step_seconds", "encode_seconds", "encode_seconds_as_jumprelu"):
            assert 0 < row[f"{key}_q25"] <= row[key] <= row[f"{key}_q75"]
        assert row["training_bytes_ratio"] == row["training_bytes"] / rows[nearest]["training_bytes"]


def test_operations_are_a_dense_product_and_the_pairs_of_each_pass(rows: dict[str, dict]) -> None:
    for name, row in rows.items():
        passes = 6 if name.startswith("gated") else 4
        on_support = 2 * 64 * row["l0"] * 16 * passes
        assert row["step_flops"] == pytest.approx(2 * (64 + 1) * 16 * 32 + on_support)


def test_the_saes_of_the_run_are_not_trained_by_it(finished: FinishedRun) -> None:
    before = {
        name: {key: value.clone() for key, value in sae.state_dict().items()} for name, sae in finished.saes.items()
    }
    cost(finished, CostConfig(repeats=1))
    for name, sae in finished.saes.items():
        assert all(torch.equal(value, before[name][key]) for key, value in sae.state_dict().items())
        assert not sae.W_enc.requires_grad


def test_an_arm_alone_has_no_ratios(finished: FinishedRun) -> None:
    alone = replace(finished, saes={"gated0": finished.saes["gated0"]})
    (row,) = cost(alone, CostConfig(repeats=1))
    assert not [key for key in row if key.endswith("_ratio")]


def test_no_repetition_is_refused() -> None:
    with pytest.raises(ValueError, match="repeats=0 is out of range"):
        CostConfig(repeats=0)
