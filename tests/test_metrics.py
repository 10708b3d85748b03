"""Metrics against their textbook forms, their invariances and the mistakes that others made."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.metrics import MIN_CE_GAP, code_terms, count_quantile, metrics_of, token_terms
from penstock.saes import GatedSAE
from penstock.sparse import SparseCode

TOKEN_TERMS = ("tokens", "square_error", "square_deviation", "square_x_hat", "dot", "cosine", "l0", "l1")
CE_TERMS = ("ce_tokens", "ce_clean", "ce_spliced", "ce_zero", "ce_mean", "kl")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def summed(terms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sums of several batches, added up."""
    return {name: torch.stack([batch[name].sum() for batch in terms]).sum() for name in terms[0]}


def of_sums(**sums: float | Tensor) -> dict[str, Tensor]:
    """Metrics from the sums that matter to a test, with ones for the rest."""
    names = (*TOKEN_TERMS, *CE_TERMS)
    given = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in sums.items()}
    assert set(given) <= set(names)
    return metrics_of({name: given.get(name, torch.ones((), dtype=torch.float64)) for name in names})


def reconstruction_metrics(x: Tensor, x_hat: Tensor, batches: Sequence[Tensor] | None = None) -> dict[str, float]:
    """Metrics of a reconstruction, summed over batches of the given token indices."""
    batches = [torch.arange(len(x))] if batches is None else batches
    mean = x.double().mean(dim=0)
    sums = summed([token_terms(x[batch], x_hat[batch], mean) for batch in batches])
    return {name: value.item() for name, value in of_sums(**sums).items()}


@pytest.fixture
def x() -> Tensor:
    """Activations with correlated coordinates of different scales and a large mean."""
    return random(300, 5) @ random(5, 5, seed=1) + 4 * random(5, seed=2)


@pytest.fixture
def x_hat(x: Tensor) -> Tensor:
    return 0.9 * x + 0.5 * random(300, 5, seed=3) + 0.2


def test_reconstruction_metrics_have_their_textbook_values(x: Tensor, x_hat: Tensor) -> None:
    found = reconstruction_metrics(x, x_hat)
    a, b = x.numpy(), x_hat.numpy()
    squared = ((a - b) ** 2).sum(axis=1)
    assert found["mse"] == pytest.approx(squared.mean(), rel=1e-12)
    assert found["fvu"] == pytest.approx(squared.mean() / a.var(axis=0).sum(), rel=1e-12)
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert found["cosine"] == pytest.approx(cosines.mean(), rel=1e-12)


def test_predicting_the_mean_leaves_all_variance_unexplained(x: Tensor) -> None:
    found = reconstruction_metrics(x, x.mean(dim=0).expand_as(x))
    assert found["fvu"] == pytest.approx(1, rel=1e-12)


def test_an_exact_reconstruction_leaves_nothing_unexplained(x: Tensor) -> None:
    found = reconstruction_metrics(x, x)
    assert found["fvu"] == found["mse"] == 0
    assert found["cosine"] == pytest.approx(1, rel=1e-12)
    assert found["reconstruction_bias"] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_shares_do_not_depend_on_the_unit_of_the_activations(x: Tensor, x_hat: Tensor, scale: float) -> None:
    before, after = reconstruction_metrics(x, x_hat), reconstruction_metrics(scale * x, scale * x_hat)
    for name in ("fvu", "cosine", "reconstruction_bias"):
        assert after[name] == pytest.approx(before[name], rel=1e-12)
    assert after["mse"] == pytest.approx(scale**2 * before["mse"], rel=1e-12)


@pytest.mark.parametrize("shift", [1.0, 1000.0])
def test_unexplained_variance_does_not_depend_on_the_origin(x: Tensor, x_hat: Tensor, shift: float) -> None:
    before, after = reconstruction_metrics(x, x_hat), reconstruction_metrics(x + shift, x_hat + shift)
    assert after["fvu"] == pytest.approx(before["fvu"], rel=1e-9)
    assert after["mse"] == pytest.approx(before["mse"], rel=1e-9)


def test_a_constant_error_is_not_forgiven(x: Tensor) -> None:
    found = reconstruction_metrics(x, x + 0.3)
    assert found["fvu"] == pytest.approx(5 * 0.3**2 / x.numpy().var(axis=0).sum(), rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 7, 299])
def test_batches_of_any_size_in_any_order_give_the_same_metrics(x: Tensor, x_hat: Tensor, batch_size: int) -> None:
    # The first hundred tokens are reconstructed much worse, so that a mean of per-batch ratios would show.
    x_hat[:100] *= 0.1
    whole = reconstruction_metrics(x, x_hat)
    in_order = list(torch.arange(300).split(batch_size))
    shuffled = list(torch.randperm(300, generator=torch.Generator().manual_seed(0)).split(batch_size))
    for batches in (in_order, in_order[::-1], shuffled):
        split = reconstruction_metrics(x, x_hat, batches)
        assert split["fvu"] == pytest.approx(whole["fvu"], rel=1e-12)
        assert split["reconstruction_bias"] == pytest.approx(whole["reconstruction_bias"], rel=1e-9)
        assert split["cosine"] == pytest.approx(whole["cosine"], rel=1e-9)


def test_sums_of_shards_merge_into_the_sums_of_all(x: Tensor, x_hat: Tensor) -> None:
    mean = x.mean(dim=0)
    shards = [summed([token_terms(x[part], x_hat[part], mean)]) for part in (slice(0, 90), slice(90, 300))]
    merged = {name: shards[0][name] + shards[1][name] for name in shards[0]}
    assert of_sums(**merged)["fvu"].item() == pytest.approx(reconstruction_metrics(x, x_hat)["fvu"], rel=1e-12)


@pytest.mark.parametrize("factor", [0.25, 0.8, 1.0, 1.5])
def test_reconstruction_bias_is_the_factor_of_a_scaled_copy(x: Tensor, factor: float) -> None:
    assert reconstruction_metrics(x, factor * x)["reconstruction_bias"] == pytest.approx(factor, rel=1e-12)


def test_an_orthogonal_projection_is_unbiased_although_it_is_shorter(x: Tensor) -> None:
    basis, _ = torch.linalg.qr(random(5, 2, seed=4))
    projected = x @ basis @ basis.T
    assert reconstruction_metrics(x, projected)["reconstruction_bias"] == pytest.approx(1, rel=1e-12)
    assert projected.norm() < 0.95 * x.norm()


def test_reconstruction_bias_is_the_rescaling_that_helps_most(x: Tensor, x_hat: Tensor) -> None:
    """Equation 9: gamma minimises E|x_hat / g - x|^2."""
    gamma = reconstruction_metrics(x, x_hat)["reconstruction_bias"]

    def error(g: float) -> float:
        return (x_hat / g - x).square().sum(dim=1).mean().item()

    assert error(gamma) < min(error(gamma * 1.001), error(gamma / 1.001))


def test_a_zero_vector_counts_as_orthogonal_to_everything(x: Tensor) -> None:
    x_hat = x.clone()
    x_hat[:75] = 0
    assert reconstruction_metrics(x, x_hat)["cosine"] == pytest.approx(0.75, rel=1e-12)


def test_bfloat16_activations_give_the_metrics_of_float32_within_their_precision(x: Tensor, x_hat: Tensor) -> None:
    exact = reconstruction_metrics(x, x_hat)
    rounded = reconstruction_metrics(x.bfloat16(), x_hat.bfloat16())
    for name in ("fvu", "cosine", "reconstruction_bias", "mse"):
        assert rounded[name] == pytest.approx(exact[name], rel=0.01)
    # The sums themselves do not go through bfloat16, which would be off by about a percent.
    upcast = reconstruction_metrics(x.bfloat16().double(), x_hat.bfloat16().double())
    assert rounded["mse"] == pytest.approx(upcast["mse"], rel=1e-12)


def test_l0_counts_latents_that_are_not_zero() -> None:
    acts = torch.tensor([[0.0, 1e-30, -2.0, 5.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert code_terms(SparseCode.from_dense(acts), torch.ones(4))["l0"].tolist() == [3, 0, 4]


def test_l0_of_a_gated_sae_does_not_count_open_gates_without_magnitude() -> None:
    sae = GatedSAE(1, 2)
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.b_mag.copy_(torch.tensor([-2.0, 2.0]))
    # Both gates are open at x = 1; the magnitudes are ReLU(1 - 2) and 1 + 2.
    acts = sae.encode(torch.ones(1, 1)).detach()
    assert code_terms(SparseCode.from_dense(acts), torch.ones(2))["l0"].tolist() == [1]


def test_l1_weighs_each_latent_by_the_norm_of_its_row() -> None:
    acts = torch.tensor([[1.0, 0.0, 2.0], [0.0, -3.0, 0.0]])
    assert code_terms(SparseCode.from_dense(acts), torch.tensor([1.0, 10.0, 0.5]))["l1"].tolist() == [2.0, 30.0]


def test_l1_cannot_be_lowered_by_louder_rows_and_quieter_latents() -> None:
    acts, rows = random(20, 8).relu(), random(8, 5)
    before = code_terms(SparseCode.from_dense(acts), rows.norm(dim=1))["l1"]
    torch.testing.assert_close(code_terms(SparseCode.from_dense(2 * acts), (rows / 2).norm(dim=1))["l1"], before)


def test_loss_recovered_has_the_value_that_the_paper_printed() -> None:
    """Gemma-7B, residual stream of layer 20: 97.14% (tables 3 and 4 of the paper)."""
    found = of_sums(ce_tokens=10, ce_clean=25.426, ce_spliced=30.293, ce_zero=195.891, ce_mean=95.426, kl=4)
    assert found["loss_recovered"].item() == pytest.approx(0.9714, abs=5e-5)
    assert found["loss_recovered_mean"].item() == pytest.approx(1 - 0.4867 / 7, rel=1e-9)
    assert found["delta_ce"].item() == pytest.approx(0.4867, rel=1e-9)
    assert found["kl"].item() == pytest.approx(0.4)
    ce = {name: round(found[name].item(), 6) for name in ("ce_clean", "ce_spliced", "ce_zero", "ce_mean")}
    assert ce == {"ce_clean": 2.5426, "ce_spliced": 3.0293, "ce_zero": 19.5891, "ce_mean": 9.5426}


def test_losses_are_per_predicted_token_and_codes_per_token() -> None:
    found = of_sums(tokens=8, ce_tokens=5, l0=16, l1=4, square_error=2, cosine=6, ce_clean=10, ce_spliced=15)
    per_token = {name: found[name].item() for name in ("l0", "l1", "mse", "cosine", "ce_clean", "delta_ce")}
    assert per_token == {"l0": 2, "l1": 0.5, "mse": 0.25, "cosine": 0.75, "ce_clean": 2, "delta_ce": 1}


@pytest.mark.parametrize("gap", [-0.5, 0.0, 0.9 * MIN_CE_GAP])
def test_a_share_of_an_ablation_that_costs_nothing_is_undefined(gap: float) -> None:
    found = of_sums(ce_clean=3.0, ce_spliced=3.0, ce_zero=3.0 + gap, ce_mean=4.0)
    assert found["loss_recovered"].isnan()
    assert found["loss_recovered_mean"].item() == 1
    found = of_sums(ce_clean=3.0, ce_spliced=3.0, ce_zero=4.0, ce_mean=3.0 + gap)
    assert found["loss_recovered_mean"].isnan()
    assert found["loss_recovered"].item() == 1


def test_unexplained_variance_of_constant_activations_is_undefined() -> None:
    assert np.isnan(reconstruction_metrics(torch.ones(4, 3), torch.zeros(4, 3))["fvu"])


def test_the_bias_of_a_reconstruction_without_a_component_along_x_is_undefined(x: Tensor) -> None:
    assert np.isnan(reconstruction_metrics(x, torch.zeros_like(x))["reconstruction_bias"])
    assert np.isnan(reconstruction_metrics(x, -x)["reconstruction_bias"])


def test_sums_of_many_resamples_give_the_metrics_of_each() -> None:
    tokens, l0, dot = torch.tensor([[2.0, 4.0], [6.0, 20.0], [1.0, 0.0]])
    found = of_sums(tokens=tokens, l0=l0, dot=dot)
    assert found["l0"].tolist() == [3, 5]
    assert found["reconstruction_bias"][0] == 1 and found["reconstruction_bias"][1].isnan()


def test_a_sum_past_2_to_the_24_still_notices_one_more_token() -> None:
    many = 2**24
    terms = code_terms(SparseCode.from_dense(torch.ones(1, 3)), torch.ones(3)) | token_terms(
        torch.ones(1, 2), torch.ones(1, 2), torch.zeros(2)
    )
    sums = {name: torch.full_like(value, many) + value for name, value in terms.items()}
    assert sums["tokens"].item() == many + 1
    assert sums["l0"].item() == many + 3
    l0 = of_sums(tokens=sums["tokens"].squeeze(), l0=sums["l0"].squeeze())["l0"]
    assert l0.item() == (many + 3) / (many + 1)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("num", [1, 2, 19, 20, 21, 500])
def test_a_quantile_of_counts_is_that_of_the_raw_data(share: float, num: int) -> None:
    counts = np.random.default_rng(num).poisson(6, size=num)
    histogram = torch.bincount(torch.from_numpy(counts), minlength=40)
    expected = np.quantile(counts, share, method="inverted_cdf")
    assert count_quantile(histogram, share) == expected


def test_a_quantile_is_exact_past_2_to_the_24_entries() -> None:
    half = 2**25 + 1
    assert count_quantile(torch.tensor([0, half, half]), 0.5) == 1
    assert count_quantile(torch.tensor([0, half, half + 1]), 0.5) == 2
