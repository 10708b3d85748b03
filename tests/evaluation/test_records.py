"""What a record says, and that it can be written down."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from penstock.evaluation import Evaluation, record_of
from penstock.evaluation.sae_record import AboutSAE, SAERecord
from penstock.evaluation.statistics import interval, resample_weights, resampled_metrics
from penstock.metrics import metrics_of

MakeEvaluation = Callable[..., Evaluation]

NUMBERS = {
    "l0", "l0_median", "l0_p5", "l0_p95",
    "ce_clean", "ce_spliced", "ce_zero", "ce_mean", "delta_ce", "kl", "loss_recovered", "loss_recovered_mean",
    "fvu", "mse", "cosine", "reconstruction_bias", "l1", "frac_alive", "frac_dense",
}  # fmt: skip
PROMISED = NUMBERS | {
    "tokens_evaluated", "sequences_evaluated", "intervals", "density_histogram", "warnings",
}  # fmt: skip
ABOUT = {"name": "gated-resid_post.2", "arch": "gated", "target_l0": None, "seed": 0}


TRAINED = ABOUT | {"recipe": "paper"}
VOCAB = 60_000


def record(evaluation: Evaluation, about: dict[str, Any] = ABOUT, vocab_size: int = VOCAB) -> dict[str, Any]:
    return record_of(evaluation, resample_weights(len(evaluation.sums["tokens"]), 100, seed=0), about, vocab_size)


def changed(evaluation: Evaluation, **sums: torch.Tensor) -> Evaluation:
    return dataclasses.replace(evaluation, sums=evaluation.sums | sums)


def test_a_record_has_exactly_the_promised_keys(fake_evaluation: MakeEvaluation) -> None:
    found = record(fake_evaluation())
    assert set(found) == PROMISED | set(ABOUT)
    assert set(SAERecord.__annotations__) - set(AboutSAE.__annotations__) | {"warnings"} == PROMISED
    assert list(found)[: len(ABOUT)] == list(ABOUT)
    assert set(found["intervals"]) == {"l0", "delta_ce", "loss_recovered", "fvu", "reconstruction_bias"}
    assert set(found["density_histogram"]) == {"log10_edges", "counts", "never_fired"}


def test_a_record_survives_json(fake_evaluation: MakeEvaluation) -> None:
    found = record(fake_evaluation())
    text = json.dumps(found, allow_nan=False)
    again = json.loads(text)
    assert {key: again[key] for key in NUMBERS} == {key: found[key] for key in NUMBERS}
    assert again["intervals"]["l0"] == list(found["intervals"]["l0"])


def test_metrics_are_those_of_all_tokens_with_intervals_around_them(fake_evaluation: MakeEvaluation) -> None:
    evaluation = fake_evaluation()
    found = record(evaluation)
    expected = metrics_of({name: value.sum() for name, value in evaluation.sums.items()})
    for name, value in expected.items():
        assert found[name] == value.item()
    resampled = resampled_metrics(evaluation.sums, resample_weights(40, 100, seed=0))
    for name, bounds in found["intervals"].items():
        assert bounds == interval(resampled[name])
        assert bounds[0] < found[name] < bounds[1]


def test_counts_are_whole_numbers(fake_evaluation: MakeEvaluation) -> None:
    evaluation = fake_evaluation(12)
    found = record(evaluation)
    assert found["tokens_evaluated"] == int(evaluation.sums["tokens"].sum())
    assert found["sequences_evaluated"] == 12
    assert all(type(found[name]) is int for name in ("tokens_evaluated", "l0_median", "l0_p5", "l0_p95"))


def test_counts_past_2_to_the_24_are_exact(fake_evaluation: MakeEvaluation) -> None:
    many = 2**24 + 1
    evaluation = fake_evaluation(1)
    evaluation = Evaluation(
        sums=evaluation.sums | {"tokens": torch.tensor([float(many)], dtype=torch.float64)},
        firing=torch.tensor([many, many - 1, 1, 0]),
        l0_histogram=torch.tensor([0, many // 2, many // 2 + 1]),
    )
    found = record(evaluation)
    assert found["tokens_evaluated"] == many
    assert found["l0_median"] == 2
    assert found["frac_alive"] == 0.75


def test_l0_quantiles_are_over_tokens(fake_evaluation: MakeEvaluation) -> None:
    evaluation = fake_evaluation()
    # 100 tokens: 5 without a firing latent, 40 with one, 49 with two, 6 with four.
    evaluation.l0_histogram = torch.tensor([5, 40, 49, 0, 6])
    found = record(evaluation)
    assert (found["l0_p5"], found["l0_median"], found["l0_p95"]) == (0, 2, 4)


def test_latents_are_alive_if_they_fired_at_all_and_dense_above_a_tenth_of_the_tokens(
    fake_evaluation: MakeEvaluation,
) -> None:
    evaluation = fake_evaluation()
    evaluation.sums["tokens"] = torch.full((40,), 10.0, dtype=torch.float64)
    evaluation.firing = torch.tensor([0, 0, 0, 1, 40, 41, 400, 4])
    found = record(evaluation)
    assert found["frac_alive"] == 5 / 8
    assert found["frac_dense"] == 2 / 8


def test_the_density_histogram_holds_every_latent_once(fake_evaluation: MakeEvaluation) -> None:
    evaluation = fake_evaluation()
    evaluation.sums["tokens"] = torch.full((40,), 2.5e5, dtype=torch.float64)
    # Of ten million tokens: below, at and just above the lowest edge, a hundredth, a half, all.
    evaluation.firing = torch.tensor([0, 0, 1, 10, 15, 100_000, 5_000_000, 10_000_000])
    found = record(evaluation)["density_histogram"]
    assert found["never_fired"] == 2
    assert sum(found["counts"]) == 6
    edges = found["log10_edges"]
    assert (edges[0], edges[-1], len(edges)) == (-6, 0, len(found["counts"]) + 1)
    filled = {edges[index]: count for index, count in enumerate(found["counts"]) if count}
    assert filled == {-6: 3, -2: 1, -0.5: 1, -0.25: 1}


def test_warnings_of_the_training_are_kept(fake_evaluation: MakeEvaluation) -> None:
    about = {"name": "one", "warnings": ["dead latents: 12%"]}
    evaluation = fake_evaluation()
    assert record(evaluation, about)["warnings"] == ["dead latents: 12%"]
    found = record(changed(evaluation, ce_zero=evaluation.sums["ce_clean"]), about)["warnings"]
    assert found[0] == "dead latents: 12%" and len(found) == 2
    assert about["warnings"] == ["dead latents: 12%"]
    assert record(fake_evaluation(), {"warnings": None})["warnings"] == []


@pytest.mark.parametrize(("ablation", "metric"), [("ce_zero", "loss_recovered"), ("ce_mean", "loss_recovered_mean")])
def test_an_ablation_that_costs_nothing_is_named_in_the_warnings(
    fake_evaluation: MakeEvaluation, ablation: str, metric: str
) -> None:
    evaluation = fake_evaluation()
    found = record(changed(evaluation, **{ablation: evaluation.sums["ce_clean"] - 1}))
    assert found[metric] is None
    (warning,) = found["warnings"]
    assert warning.startswith(f"{metric} is undefined") and ablation.removeprefix("ce_") in warning


def test_what_is_not_finite_becomes_null_with_a_reason(fake_evaluation: MakeEvaluation) -> None:
    nan = torch.full((40,), torch.nan, dtype=torch.float64)
    evaluation = changed(fake_evaluation(), square_error=nan, square_x_hat=nan, ce_spliced=nan, kl=nan)
    found = record(evaluation)
    undefined = {name for name in NUMBERS if found[name] is None}
    assert undefined == {
        "mse", "fvu", "reconstruction_bias",
        "ce_spliced", "delta_ce", "kl", "loss_recovered", "loss_recovered_mean",
    }  # fmt: skip
    (warning,) = found["warnings"]
    assert "not finite" in warning
    json.dumps(found, allow_nan=False)


def test_a_control_without_latents_has_a_record_too(fake_evaluation: MakeEvaluation) -> None:
    evaluation = fake_evaluation()
    evaluation.firing = torch.zeros(0, dtype=torch.int64)
    evaluation.l0_histogram = torch.tensor([int(evaluation.sums["tokens"].sum())])
    found = record(evaluation)
    assert found["frac_alive"] is None and found["frac_dense"] is None
    assert found["l0_median"] == found["l0_p95"] == 0
    assert sum(found["density_histogram"]["counts"]) == found["density_histogram"]["never_fired"] == 0
    json.dumps(found, allow_nan=False)


def test_a_target_that_does_not_hold_on_held_out_tokens_is_said(fake_evaluation: MakeEvaluation) -> None:
    evaluation = fake_evaluation()
    l0 = record(evaluation)["l0"]
    assert record(evaluation, ABOUT | {"target_l0": l0 / 1.08})["warnings"] == []
    (warning,) = record(evaluation, ABOUT | {"target_l0": l0 / 1.3})["warnings"]
    assert warning.startswith("target missed on held-out tokens")
    assert f"the target was {l0 / 1.3:g}" in warning


def test_an_sae_that_is_worse_than_nothing_is_named_and_a_control_is_not(fake_evaluation: MakeEvaluation) -> None:
    evaluation = fake_evaluation()
    ruined = changed(evaluation, square_error=2 * evaluation.sums["square_deviation"])
    assert not record(evaluation, TRAINED)["warnings"]
    (warning,) = record(ruined, TRAINED)["warnings"]
    assert warning.startswith("worse than nothing: FVU is 2, ") and "learning rate" in warning
    assert not record(ruined, {**ABOUT, "arch": "mean"})["warnings"]


def test_a_silent_sae_is_not_blamed_on_its_learning_rate(fake_evaluation: MakeEvaluation) -> None:
    evaluation = fake_evaluation()
    closed = changed(
        evaluation,
        square_error=1.01 * evaluation.sums["square_deviation"],
        l0=torch.zeros_like(evaluation.sums["l0"]),
    )
    (warning,) = record(closed, TRAINED)["warnings"]
    assert warning.startswith("silent: the mean L0 is 0 on held-out tokens.") and "sparsity_coef" in warning
    assert "learning rate" not in warning


def test_one_sequence_has_no_interval_and_few_draw_a_warning(fake_evaluation: MakeEvaluation) -> None:
    alone = record(fake_evaluation(1), TRAINED)
    assert set(alone["intervals"].values()) == {None}
    assert any("rest on 1 held-out sequence." in warning for warning in alone["warnings"])
    assert any(
        "rest on 9 held-out sequences." in warning for warning in record(fake_evaluation(9), TRAINED)["warnings"]
    )
    assert not record(fake_evaluation(10), TRAINED)["warnings"]


def test_a_model_worse_than_chance_draws_a_warning(fake_evaluation: MakeEvaluation) -> None:
    """The fake model's clean loss lies between 2 and 3 nats; ln 20 is 2.996, ln 7 is 1.946."""
    assert not record(fake_evaluation(), TRAINED, vocab_size=20)["warnings"]
    (warning,) = record(fake_evaluation(), TRAINED, vocab_size=7)["warnings"]
    assert "worse than chance" in warning and "1.946 is the log of its vocabulary" in warning


def test_an_ablation_whose_cost_is_within_noise_draws_a_warning(fake_evaluation: MakeEvaluation) -> None:
    evaluation = fake_evaluation()
    sums = evaluation.sums
    noise = torch.linspace(-3, 3.1, 40, dtype=torch.float64)  # in nats; its mean is 0.05
    small = changed(evaluation, ce_zero=sums["ce_clean"] + sums["ce_tokens"] * noise)
    found = record(small, TRAINED)
    assert found["ce_zero"] > found["ce_clean"] and found["loss_recovered"] is not None
    assert any("loss_recovered says nothing: zero ablation costs" in warning for warning in found["warnings"])
    certain = changed(evaluation, ce_zero=sums["ce_clean"] + 0.05 * sums["ce_tokens"])
    assert not record(certain, TRAINED)["warnings"]
