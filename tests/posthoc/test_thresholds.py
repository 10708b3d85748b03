"""Thresholds and scale against brute force, numpy, and a planted SAE that is better without half of its activations."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.evaluation import Candidate
from penstock.posthoc.thresholds import (
    best_scale,
    global_threshold,
    optimal_thresholds,
    prune,
    pruned,
    quantile_thresholds,
    threshold_for_l0,
)
from penstock.saes import SAE, ReLUSAE
from penstock.sparse import SparseCode, Support

SITE = "resid_post.2"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_code() -> SparseCode:
    """100 tokens, 12 latents that fire from never (the first) to almost always (the last); zeros are stored, too."""
    generator = torch.Generator().manual_seed(0)
    fires = torch.rand(100, 12, generator=generator) < torch.linspace(0, 0.95, 12)
    acts = torch.rand(100, 12, generator=generator, dtype=torch.float64) * fires
    support = Support(12 * torch.arange(101), torch.arange(12, dtype=torch.int32).repeat(100), 12)
    return SparseCode(support, acts.flatten())


def planted(tokens: int = 200) -> tuple[ReLUSAE, Tensor, Tensor]:
    """An SAE, activations, and where its code is right to fire: 4 latents of 8 on each token, with 1 to 2.

    The other 4 fire, too, with the latent's bias of 0.05 to 0.3, which only adds to the error.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    right = torch.rand(tokens, 8, generator=generator).argsort(dim=1) < 4
    x = ((1 + torch.rand(tokens, 8, generator=generator)) * right) @ directions + 3
    sae = ReLUSAE(8, 8)
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
        sae.b_enc.copy_(torch.linspace(0.05, 0.3, 8))
        sae.b_dec.fill_(3.0)
    return sae, x, right


def square_error(candidate: Candidate, x: Tensor) -> float:
    return (candidate.decode(candidate.encode(x)).double() - x.double()).square().sum().item()


@pytest.mark.parametrize("arch", ["relu", "gated", "jumprelu"])
def test_thresholds_of_zero_change_nothing_bit_for_bit(random_sae: Callable[..., SAE], arch: str) -> None:
    sae = random_sae(arch, dtype=torch.float32)
    whole, x = Candidate.of("whole", SITE, sae), 2 * normal(50, 6).float()
    candidate = pruned("pruned", SITE, sae, global_threshold(sae, 0.0))
    assert (candidate.name, candidate.site, candidate.d_in) == ("pruned", SITE, 6)
    assert torch.equal(candidate.decoder_norm, whole.decoder_norm)
    code, expected = candidate.encode(x), whole.encode(x)
    assert torch.equal(code.support.offsets, expected.support.offsets)
    assert torch.equal(code.support.indices, expected.support.indices)
    assert torch.equal(code.values, expected.values)
    assert torch.equal(candidate.decode(code), whole.decode(expected))


def test_what_is_not_strictly_above_its_threshold_goes() -> None:
    acts = torch.tensor([[0.5, 2.0, 0.0, 1.0], [0.6, 1.9, torch.nan, 3.0]])
    code = prune(SparseCode.from_dense(acts), torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=torch.float64))
    expected = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.6, 0.0, torch.nan, 3.0]])
    torch.testing.assert_close(code.to_dense(), expected, equal_nan=True, rtol=0, atol=0)
    assert code.support.offsets.tolist() == [0, 1, 4]


def test_a_stored_zero_stays_at_a_threshold_of_zero_and_goes_above() -> None:
    code = SparseCode(Support(torch.tensor([0, 2]), torch.tensor([0, 2], dtype=torch.int32), 3), torch.zeros(2))
    assert prune(code, torch.tensor([0.0, 0.0, 0.1])).support.indices.tolist() == [0]


def test_the_scale_stretches_the_reconstruction_about_the_bias_and_leaves_the_code(
    random_sae: Callable[..., SAE],
) -> None:
    sae, x = random_sae("gated"), 2 * normal(50, 6).float()
    thresholds = torch.linspace(0, 1, 10, dtype=torch.float64)
    plain, scaled = (pruned("pruned", SITE, sae, thresholds, scale) for scale in (1.0, 1.25))
    code = scaled.encode(x)
    assert torch.equal(code.values, plain.encode(x).values)
    assert 0 < len(code.values) < len(Candidate.of("whole", SITE, sae).encode(x).values)
    b_dec = sae.b_dec.detach().float()
    expected = b_dec + 1.25 * (code.to_dense() @ sae.W_dec.detach().float())
    torch.testing.assert_close(scaled.decode(code).detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("l0", [0.0, 0.29, 1.0, 2.01, 4.5])
def test_the_threshold_for_an_l0_hits_it(random_sae: Callable[..., SAE], l0: float) -> None:
    code = random_code()
    threshold = threshold_for_l0(code, l0)
    assert (code.to_dense().numpy() > threshold).sum() == round(100 * l0)
    kept = prune(code, global_threshold(random_sae("relu", 6, 12), threshold))
    assert kept.l0.double().mean() == pytest.approx(l0, abs=1e-12)


def test_the_threshold_for_the_l0_of_the_code_itself_is_zero() -> None:
    code = random_code()
    assert threshold_for_l0(code, float(code.l0.double().mean())) == 0.0


def test_of_equal_activations_at_the_threshold_none_is_kept() -> None:
    code = SparseCode.from_dense(torch.tensor([[3.0, 2.0, 2.0], [1.0, 2.0, 0.0]]))
    assert [threshold_for_l0(code, count / 2) for count in range(6)] == [3.0, 2.0, 2.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize("quantile", [0.1, 1 / 3, 0.5, 0.97])
def test_quantiles_are_numpys_of_each_latents_positive_activations(quantile: float) -> None:
    code = random_code()
    dense = code.to_dense().numpy()
    expected = [np.quantile(acts[acts > 0], quantile) if (acts > 0).any() else 0.0 for acts in dense.T]
    assert expected[0] == 0.0 < expected[1]
    np.testing.assert_allclose(quantile_thresholds(code, quantile).numpy(), expected, rtol=1e-12)


def test_quantiles_of_latents_that_never_fire_or_once() -> None:
    code = SparseCode.from_dense(torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 3.0, 0.0, 0.0]]))
    assert quantile_thresholds(code, 0.25).tolist() == [0.0, 1.5, 0.0, 2.0]


def cheapest(sae: SAE, x: Tensor, price: float) -> list[float]:
    """For each latent every threshold is tried; each firing is taken out of the dense code, and x_hat made again."""
    acts = sae.encode(x).detach()

    def error(acts: Tensor, token: int) -> float:
        return (sae.decode(acts[None])[0] - x[token]).detach().square().sum().item()

    found = []
    for j in range(sae.d_sae):
        costs = {}
        for threshold in sorted({0.0, *acts[:, j].tolist()}):
            costs[threshold] = 0.0
            for token in acts[:, j].nonzero().flatten().tolist():
                if acts[token, j] > threshold:
                    costs[threshold] += price
                else:
                    without = acts[token].clone()
                    without[j] = 0
                    costs[threshold] += error(without, token) - error(acts[token], token)
        found.append(min(costs, key=lambda threshold: costs[threshold]))
    return found


@pytest.mark.parametrize("arch", ["relu", "gated", "jumprelu"])
@pytest.mark.parametrize("price", [0.0, 0.5, 5.0])
def test_optimal_thresholds_are_the_best_of_all(random_sae: Callable[..., SAE], arch: str, price: float) -> None:
    sae, x = random_sae(arch), normal(25, 6)
    expected = cheapest(sae, x, price)
    assert any(threshold > 0 for threshold in expected)
    np.testing.assert_allclose(optimal_thresholds(sae, x, price).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "price", "threshold"),
    [
        # Both tokens have an activation of 1: the first is better without it by 1, the second worse by 3.
        ([[1.0, 0.0], [1.0, 2.0]], 0.0, 0.0),
        ([[1.0, 2.0], [1.0, 0.0]], 0.0, 0.0),
        ([[1.0, 0.0], [1.0, 2.0]], 1.5, 1.0),
        # Dropping costs as much as keeping.
        ([[1.0, 2.0]], 3.0, 0.0),
        # Dropping 1 saves an error of 1; dropping 2 as well neither saves nor costs.
        ([[1.0, 0.0], [2.0, 1.0]], 0.0, 1.0),
    ],
)
def test_equal_activations_fall_together_and_of_equal_thresholds_the_smallest_is_taken(
    x: list[list[float]], price: float, threshold: float
) -> None:
    """The latent's activation is the first coordinate, what it reconstructs the second."""
    sae = ReLUSAE(2, 1).double()
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0], [0.0]]))
        sae.W_dec.copy_(torch.tensor([[0.0, 1.0]]))
    acts = torch.tensor(x, dtype=torch.float64)
    assert optimal_thresholds(sae, acts, price).tolist() == [threshold] == cheapest(sae, acts, price)


def test_equal_activations_of_two_latents_have_nothing_to_do_with_each_other() -> None:
    sae = ReLUSAE(2, 3).double()
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    assert optimal_thresholds(sae, torch.ones(1, 2, dtype=torch.float64), 1e6).tolist() == [1.0, 1.0, 1.0]


def test_a_high_price_drops_every_firing_and_no_latent_without_one(random_sae: Callable[..., SAE]) -> None:
    sae, x = random_sae("relu"), normal(25, 6)
    with torch.no_grad():
        sae.get_parameter("b_enc")[3] = -100.0
    acts = sae.encode(x).detach()
    assert torch.equal(optimal_thresholds(sae, x, 1e6), acts.max(dim=0).values)
    assert acts[:, 3].max() == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_the_best_scale_is_least_squares(random_sae: Callable[..., SAE], share: float) -> None:
    sae, x = random_sae("relu"), normal(5000, 6)
    thresholds = share * sae.encode(x).detach().max(dim=0).values
    acts = sae.encode(x).detach().numpy()
    z = np.where(acts > thresholds.numpy(), acts, 0) @ sae.W_dec.detach().numpy()
    solution, *_ = np.linalg.lstsq(z.reshape(-1, 1), (x - sae.b_dec.detach()).numpy().flatten(), rcond=None)
    assert best_scale(sae, x, thresholds) == pytest.approx(solution[0], rel=1e-9)


def test_without_firings_the_scale_is_one(random_sae: Callable[..., SAE]) -> None:
    sae = random_sae("relu")
    assert best_scale(sae, normal(20, 6), global_threshold(sae, float("inf"))) == 1.0


def test_pruning_a_planted_sae_lowers_l0_and_error() -> None:
    sae, x, right = planted()
    whole = Candidate.of("whole", SITE, sae)
    threshold = threshold_for_l0(whole.encode(x), 4.0)
    assert 0.29 < threshold < 1.0
    every = [
        global_threshold(sae, threshold),
        optimal_thresholds(sae, x, price=0.0),
        quantile_thresholds(whole.encode(x), 0.45),
    ]
    for thresholds in every:
        assert not thresholds.requires_grad
        candidate = pruned("pruned", SITE, sae, thresholds)
        assert candidate.encode(x).l0.sum() < 0.7 * whole.encode(x).l0.sum()
        assert square_error(candidate, x) < 0.7 * square_error(whole, x)
    for thresholds in every[:2]:
        assert torch.equal(pruned("pruned", SITE, sae, thresholds).encode(x).to_dense() > 0, right)
    # What is left is the bias of 4 latents on each token. All are too large, so a scale below 1 takes more off.
    scale = best_scale(sae, x, every[0])
    assert 0.8 < scale < 1.0
    unscaled = square_error(pruned("pruned", SITE, sae, every[0]), x)
    assert square_error(pruned("scaled", SITE, sae, every[0], scale), x) < unscaled


def test_settings_out_of_range_are_errors(random_sae: Callable[..., SAE]) -> None:
    sae, code = random_sae("relu"), random_code()
    with pytest.raises(ValueError, match=r"threshold is -0.1, but it must be at least 0"):
        global_threshold(sae, -0.1)
    for quantile in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match=f"quantile is {quantile}, .* above 0 and below 1"):
            quantile_thresholds(code, quantile)
    for l0 in (-0.01, 9.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"l0 is {l0}, but the code has 5.[0-9]+ firing latents per token"):
            threshold_for_l0(code, l0)
    for price in (-1.0, float("inf")):
        with pytest.raises(ValueError, match=f"price is {price}, .* finite and at least 0"):
            optimal_thresholds(sae, normal(5, 6), price)
    for thresholds in (torch.zeros(9), torch.zeros(11)):
        with pytest.raises(ValueError, match=f"{len(thresholds)} thresholds, but the SAE has 10 latents"):
            pruned("pruned", SITE, sae, thresholds)
        with pytest.raises(ValueError, match=f"{len(thresholds)} thresholds, but the SAE has 10 latents"):
            best_scale(sae, normal(5, 6), thresholds)
