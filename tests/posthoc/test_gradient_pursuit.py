"""Pursuit against planted codes, against its definition token by token, and at its limits."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.kernels import reference
from penstock.posthoc import gradient_pursuit
from penstock.posthoc.gradient_pursuit import pursue, pursued
from penstock.saes import SAE

SITE = "resid_post.2"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_rows(d_sae: int, d_in: int, seed: int = 0) -> Tensor:
    rows = normal(d_sae, d_in, seed=seed)
    return rows / rows.norm(dim=1, keepdim=True)


def planted(batch: int, d_sae: int, active: int, seed: int = 0) -> Tensor:
    """Codes with `active` weights between 1 and 2 on each token."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.rand(batch, d_sae, generator=generator).argsort(dim=1)[:, :active]
    weights = 1 + torch.rand(batch, active, generator=generator, dtype=torch.float64)
    return torch.zeros(batch, d_sae, dtype=torch.float64).scatter(1, latents, weights)


def token_by_token(x: Tensor, W_dec: Tensor, b_dec: Tensor, num_latents: int) -> tuple[Tensor, dict[str, int]]:
    """The steps of the definition, one token after another; and how often each special case came up."""
    D, code, seen = W_dec.double().numpy().T, [], {"cut to zero": 0, "best again": 0, "none positive": 0}
    for target in (x.double() - b_dec.double()).numpy():
        w, support = np.zeros(D.shape[1]), np.zeros(D.shape[1], dtype=bool)
        for _ in range(num_latents):
            residual = target - D @ w
            products = D.T @ residual
            best = products.argmax()
            seen["none positive"] += int(products[best] <= 0)
            seen["best again"] += int(support[best])
            support[best] |= products[best] > 0
            gradient = np.where(support, products, 0)
            c = D @ gradient
            step = c @ residual / (c @ c) if c @ c > 0 else 0.0
            seen["cut to zero"] += int((w + step * gradient < 0).any())
            w = np.maximum(w + step * gradient, 0)
        code.append(w)
    return torch.from_numpy(np.stack(code)), seen


def test_two_iterations_by_hand() -> None:
    W_dec = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    x, b_dec = torch.tensor([[3.0, 0.0]]), torch.tensor([2.0, -1.0])
    torch.testing.assert_close(pursue(x, W_dec, b_dec, 1).to_dense(), torch.tensor([[0.0, 1.4]]))
    # What is left, (0.16, -0.12), is orthogonal to the second row, so that only the first one moves.
    torch.testing.assert_close(pursue(x, W_dec, b_dec, 2).to_dense(), torch.tensor([[0.16, 1.4]]))


@pytest.mark.parametrize(
    ("d_in", "d_sae", "num_latents", "special"),
    [(5, 7, 7, ["cut to zero", "best again", "none positive"]), (6, 15, 15, ["cut to zero"]), (12, 30, 7, [])],
)
def test_is_its_definition_token_by_token(d_in: int, d_sae: int, num_latents: int, special: list[str]) -> None:
    x, W_dec, b_dec = normal(100, d_in), unit_rows(d_sae, d_in), normal(d_in, seed=2)
    expected, seen = token_by_token(x, W_dec, b_dec, num_latents)
    assert all(seen[case] > 10 for case in special)
    torch.testing.assert_close(pursue(x, W_dec, b_dec, num_latents).to_dense(), expected, rtol=1e-8, atol=1e-8)
    single = pursue(x.float(), W_dec.float(), b_dec.float(), num_latents)
    torch.testing.assert_close(single.to_dense().double(), expected, rtol=0, atol=1e-4)


def test_a_planted_code_is_recovered_on_an_orthonormal_dictionary() -> None:
    W_dec, b_dec, code = torch.linalg.qr(normal(24, 24))[0], normal(24, seed=1), planted(40, 24, active=5)
    found = pursue(code @ W_dec + b_dec, W_dec, b_dec, 5)
    torch.testing.assert_close(found.to_dense(), code)
    assert found.l0.tolist() == [5] * 40


def test_a_planted_code_is_recovered_on_an_overcomplete_dictionary_of_small_coherence() -> None:
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(8):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    W_dec, b_dec = torch.cat([torch.eye(256, dtype=torch.float64), hadamard / 16]), normal(256, seed=1)
    code = planted(30, 512, active=4)
    found = pursue(code @ W_dec + b_dec, W_dec, b_dec, 4).to_dense()
    assert torch.equal(found > 0, code > 0)
    assert (found - code).abs().max() < 0.15
    # With more iterations than the code needs, the other latents get next to nothing.
    more = pursue(code @ W_dec + b_dec, W_dec, b_dec, 12).to_dense()
    assert (more - code).abs().max() < 0.01


def test_error_decreases_with_the_number_of_latents() -> None:
    x, W_dec, b_dec = normal(200, 16), unit_rows(48, 16), normal(16, seed=2)
    errors = [
        (pursue(x, W_dec, b_dec, num_latents).to_dense() @ W_dec + b_dec - x).square().sum().item()
        for num_latents in (1, 2, 4, 8, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize("num_latents", [1, 3, 10, 15])
def test_weights_are_positive_and_few_and_latents_ascend(num_latents: int) -> None:
    code = pursue(3 * normal(100, 6), unit_rows(15, 6), normal(6, seed=2), num_latents)
    assert (code.values > 0).all()
    assert 0 < code.l0.max() <= num_latents
    assert torch.equal(code.support.offsets.diff(), code.l0)
    place = code.support.tokens * 15 + code.support.indices
    assert (place.diff() > 0).all()
    assert code.support.indices.dtype == torch.int32


def test_what_only_negative_weights_could_explain_is_left_out() -> None:
    x = torch.tensor([[2.0, -1.0, -1.0], [-1.0, -2.0, -3.0], [0.5, 1.5, -1.0]])
    code = pursue(x, torch.eye(3), torch.zeros(3), 3)
    assert torch.equal(code.to_dense(), x.clamp(min=0))
    assert code.l0.tolist() == [1, 0, 2]


def test_an_activation_at_the_bias_has_an_empty_code() -> None:
    b_dec = normal(6, seed=2)
    code = pursue(b_dec.expand(3, -1), unit_rows(15, 6), b_dec, 5)
    assert code.l0.tolist() == [0, 0, 0]
    assert code.support.d_sae == 15


def test_no_activation_has_no_code() -> None:
    code = pursue(torch.zeros(0, 6), unit_rows(15, 6).float(), torch.zeros(6), 5)
    assert code.to_dense().shape == (0, 15)


def test_a_token_does_not_depend_on_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W_dec, b_dec = normal(23, 6), unit_rows(15, 6), normal(6, seed=2)
    whole = pursue(x, W_dec, b_dec, 5)
    sizes, largest = [], gradient_pursuit._largest
    monkeypatch.setattr(
        gradient_pursuit, "_largest", lambda products: (sizes.append(len(products)), largest(products))[1]
    )
    monkeypatch.setitem(reference.ENTRIES_AT_ONCE, "cpu", 60)
    blocks = pursue(x, W_dec, b_dec, 5)
    assert sizes == 25 * [4] + 5 * [3]
    assert torch.equal(blocks.support.offsets, whole.support.offsets)
    torch.testing.assert_close(blocks.to_dense(), whole.to_dense())


def test_a_decoder_that_is_trained_gets_no_gradient() -> None:
    W_dec, b_dec = unit_rows(15, 6).requires_grad_(), normal(6, seed=2).requires_grad_()
    assert not pursue(normal(5, 6), W_dec, b_dec, 3).values.requires_grad


def test_a_zero_row_is_never_chosen() -> None:
    W_dec = unit_rows(15, 6)
    W_dec[4] = 0
    assert pursue(normal(50, 6), W_dec, torch.zeros(6, dtype=torch.float64), 15).firing[4] == 0


def test_a_nan_reaches_the_code_of_its_token_only() -> None:
    x, W_dec, b_dec = normal(3, 6), unit_rows(15, 6), normal(6, seed=2)
    clean = pursue(x, W_dec, b_dec, 4).to_dense()
    x[1, 2] = torch.nan
    code = pursue(x, W_dec, b_dec, 4).to_dense()
    assert code[1].isnan().any()
    torch.testing.assert_close(code[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("num_latents", [0, -1, 16])
def test_a_number_of_latents_out_of_range_is_an_error(num_latents: int, random_sae: Callable[..., SAE]) -> None:
    with pytest.raises(ValueError, match=f"num_latents is {num_latents}, .* 1 to 15"):
        pursue(normal(2, 6), unit_rows(15, 6), normal(6), num_latents)
    sae = random_sae("relu", 6, 15)
    sae.fold_decoder_norm_()
    with pytest.raises(ValueError, match=f"num_latents is {num_latents}, .* 1 to 15"):
        pursued("pursued", SITE, sae, num_latents)


def test_decoder_rows_that_are_not_of_unit_norm_are_an_error(random_sae: Callable[..., SAE]) -> None:
    W_dec = unit_rows(15, 6)
    W_dec[3] *= 1.5
    W_dec[8] *= 0.25
    with pytest.raises(ValueError, match="2 decoder rows have norms between 0.25 and 1.5"):
        pursue(normal(2, 6), W_dec, normal(6), 2)
    with pytest.raises(ValueError, match="fold_decoder_norm_"):
        pursued("pursued", SITE, random_sae("gated"), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_candidate_encodes_by_pursuit_and_decodes_by_the_sae(
    random_sae: Callable[..., SAE], dtype: torch.dtype
) -> None:
    sae = random_sae("gated")
    sae.fold_decoder_norm_()
    sae = sae.to(dtype)
    candidate = pursued("pursued", SITE, sae, 3)
    assert (candidate.name, candidate.site, candidate.d_in) == ("pursued", SITE, 6)
    torch.testing.assert_close(candidate.decoder_norm, torch.ones(10), rtol=0, atol=0.01)
    x = 2 * normal(20, 6).float()
    code = candidate.encode(x)
    assert not code.values.requires_grad
    expected, _ = token_by_token(x, sae.W_dec.detach(), sae.b_dec.detach(), 3)
    torch.testing.assert_close(code.to_dense().double(), expected, rtol=1e-4, atol=1e-4)
    x_hat = expected @ sae.W_dec.detach().double() + sae.b_dec.detach().double()
    torch.testing.assert_close(candidate.decode(code).detach().double(), x_hat, rtol=1e-4, atol=1e-4)
