"""The paper's lambda in this library's units: against the paper's loss of raw activations, and in a whole run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.formats import load_sae
from penstock.kernels.dispatch import forced
from penstock.language_models.loading import LanguageModel
from penstock.saes import DECODER_RULES, GatedSAE
from penstock.training import run as module
from penstock.training.metrics_log import MetricsLog
from penstock.training.run import TrainingRun
from penstock.training.settings import RunConfig
from penstock.training.settings.defaults import coefficient


def paper_loss(x: np.ndarray, weights: dict[str, np.ndarray], coef: float) -> float:
    """The paper's loss of raw activations, one token and latent at a time."""
    total = 0.0
    for row in x:
        x_hat, x_aux, penalty = weights["b_dec"].copy(), weights["b_dec"].copy(), 0.0
        for j in range(len(weights["b_gate"])):
            product = float((row - weights["b_dec"]) @ weights["W_enc"][:, j])
            gate = product + weights["b_gate"][j]
            if gate > 0:
                magnitude = max(0.0, np.exp(weights["r_mag"][j]) * product + weights["b_mag"][j])
                x_hat += magnitude * weights["W_dec"][j]
                x_aux += gate * weights["W_dec"][j]
                penalty += gate
        n = len(row)
        total += ((row - x_hat) ** 2).sum() / n + coef * penalty + ((row - x_aux) ** 2).sum() / n
    return total / len(x)


def test_a_converted_lambda_makes_the_loss_a_multiple_of_the_papers() -> None:
    """At any weights; so both have the same minimum."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(20, 6, generator=generator, dtype=torch.float64) + 2
    scale = x.square().sum(dim=1).mean().item() ** -0.5
    lambda_paper, factors = 0.07, []
    for seed in range(3):
        sae = GatedSAE(6, 10, generator=torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            for name in ("b_gate", "b_mag", "r_mag", "b_dec"):
                sae.get_parameter(name).normal_(std=0.3, generator=generator)
        with forced("reference"):
            loss = sae.loss(scale * x, coefficient(lambda_paper, 6, scale), DECODER_RULES["unit"]).total.item()
        sae.fold_input_scale_(scale)
        raw = {name: value.detach().numpy() for name, value in sae.named_parameters()}
        factors.append(loss / paper_loss(x.numpy(), raw, lambda_paper))
    assert factors == pytest.approx([6 * scale**2] * 3, rel=1e-10)


def test_a_coefficient_by_hand() -> None:
    # Gemma, residual 20: lambda 5e-4 is about 1.5 for errors summed over 3,072 raw coordinates.
    assert coefficient(5e-4, 3072, 1.0) == pytest.approx(1.536)
    assert coefficient(5e-4, 3072, 0.25) == pytest.approx(0.384)


@pytest.mark.parametrize("arguments", [(0.0, 4, 1.0), (1e-3, 0, 1.0), (1e-3, 4, 0.0), (1e-3, 4, float("nan"))])
def test_a_coefficient_of_nothing_is_refused(arguments: tuple[float, int, float]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        coefficient(*arguments)


def test_a_baseline_has_no_lambda(tiny_run: Callable[..., RunConfig]) -> None:
    relu = next(sae for sae in tiny_run().saes if sae.arch == "relu")
    with pytest.raises(
        ValueError,
        match="paper_lambda=0.02 cannot be given for 'relu', only for gated .* one of target_l0, sparsity_coef",
    ):
        replace(relu, target_l0=None, sparsity_coef=None, paper_lambda=0.02)


def test_a_resumed_run_keeps_its_coefficient(
    tiny_run: Callable[..., RunConfig], tiny_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may measure another scale; what was begun goes on."""
    gated = next(sae for sae in tiny_run().saes if sae.arch == "gated")
    one = replace(gated, target_l0=None, sparsity_coef=None, paper_lambda=0.02, name="one")
    config = replace(tiny_run(), saes=(one,)).resolve(tiny_lm)
    run = TrainingRun.begin(config, tmp_path / "run", tiny_lm)
    run.checkpoint()
    monkeypatch.setattr(module, "measure_scale", lambda _: 7.0)
    other = TrainingRun.begin(config, tmp_path / "other", tiny_lm)
    assert other.trainers[0].sparsity_coef != run.trainers[0].sparsity_coef
    resumed = TrainingRun.begin(config, tmp_path / "run", tiny_lm)
    assert resumed.scales == run.scales
    assert resumed.trainers[0].sparsity_coef == run.trainers[0].sparsity_coef


def trained(config: RunConfig, folder: Path, model: LanguageModel) -> Path:
    """The folder of the only SAE of a run."""
    folder.mkdir()
    run = TrainingRun.begin(config.resolve(model), folder, model)
    run.train(MetricsLog(folder / "metrics.jsonl", every=config.log_steps, last_step=config.num_steps))
    (saved,) = run.save_saes()
    return saved


def test_a_run_with_a_lambda_is_one_with_its_coefficient(
    tiny_run: Callable[..., RunConfig], tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    config = tiny_run()
    gated = next(sae for sae in config.saes if sae.arch == "gated")

    def with_aim(**aim: float) -> RunConfig:
        blank = {"target_l0": None, "sparsity_coef": None, "name": "one"}
        return replace(config, saes=(replace(gated, **{**blank, **aim}),))

    folder = trained(with_aim(paper_lambda=0.02), tmp_path / "lambda", tiny_lm)
    found = load_sae(folder).metadata
    # Of activations, the scale brings the mean squared norm to 1.
    run = TrainingRun.begin(with_aim(paper_lambda=0.02).resolve(tiny_lm), tmp_path, tiny_lm)
    x = torch.cat([run.source.next_batch(64)[gated.site] for _ in range(8)]).double()
    assert found["scale"] == pytest.approx(x.square().sum(dim=1).mean().item() ** -0.5, rel=0.05)
    assert found["sparsity_coef"] == pytest.approx(0.02 * x.shape[1] * found["scale"], rel=1e-12)
    assert (found["paper_lambda"], found["target_l0"]) == (0.02, None)
    again = trained(with_aim(sparsity_coef=found["sparsity_coef"]), tmp_path / "coefficient", tiny_lm)
    assert (again / "sae.safetensors").read_bytes() == (folder / "sae.safetensors").read_bytes()
