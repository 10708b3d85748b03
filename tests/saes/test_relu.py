"""The baseline SAE against its equations."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from penstock.saes import DECODER_RULES, SAE, ReLUSAE


def relu_2x2() -> ReLUSAE:
    sae = ReLUSAE(2, 2)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        sae.b_enc.copy_(torch.tensor([-0.5, 0.25]))
        sae.W_dec.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        sae.b_dec.copy_(torch.tensor([1.0, -1.0]))
    return sae


def test_code_and_reconstruction_by_hand() -> None:
    # x - b_dec = (2, 1): pre-activations 2 - 0.5 = 1.5 and 4 - 1 + 0.25 = 3.25.
    # x - b_dec = (0, 1): -0.5 and -0.75, so nothing fires and the reconstruction is b_dec.
    x = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    sae = relu_2x2()
    assert sae.encode(x).tolist() == [[1.5, 3.25], [0.0, 0.0]]
    assert sae(x).tolist() == [[1 + 4.5, -1 + 6 + 3.25], [1.0, -1.0]]


@pytest.mark.parametrize(
    ("rule", "penalty"),
    [
        ("unit", 1.5 + 3.25),
        ("norm_weighted", 1.5 * 5 + 3.25 * 1),
        ("norm_weighted_frozen", 1.5 * 5 + 3.25 * 1),
    ],
)
def test_loss_by_hand(rule: str, penalty: float) -> None:
    # x_hat - x is (2.5, 8.25) for the first token and (0, -1) for the second; terms are means over both.
    x = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    loss = relu_2x2().loss(x, 0.1, DECODER_RULES[rule])
    errors = [2.5**2 + 8.25**2, 1.0]
    assert loss.errors.tolist() == errors
    assert loss.terms["reconstruction"].item() == pytest.approx(sum(errors) / 2)
    assert loss.terms["sparsity"].item() == pytest.approx(penalty / 2)
    assert loss.total.item() == pytest.approx(sum(errors) / 2 + 0.1 * penalty / 2)
    assert set(loss.terms) == {"reconstruction", "sparsity"}


def test_gradients_of_the_penalty_reach_the_decoder_only_when_its_norms_are_trained() -> None:
    x = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    found = {}
    for name, rule in DECODER_RULES.items():
        sae = relu_2x2()
        (gradient,) = torch.autograd.grad(sae.loss(x, 1.0, rule).terms["sparsity"], sae.W_dec, allow_unused=True)
        found[name] = gradient
    assert found["unit"] is None
    assert found["norm_weighted_frozen"] is None
    # d(acts_j |d_j|) / d d_j = acts_j d_j / |d_j|, halved by the mean over two tokens.
    expected = np.array([[1.5 * 3 / 5, 1.5 * 4 / 5], [0, 3.25]]) / 2
    np.testing.assert_allclose(found["norm_weighted"].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("sparsity_coef", [1.0, 0.5])
def test_the_penalty_shrinks_the_only_latent_to_one_minus_half_the_coefficient(sparsity_coef: float) -> None:
    """Figure 2 of the paper: (1 - f)^2 + |f| is least at f = 1/2, so a true 1 is read as a half."""
    sae, x = ReLUSAE(1, 1), torch.ones(1, 1)
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.W_dec.fill_(1.0)
    optimiser = torch.optim.SGD([sae.b_enc], lr=0.1)
    for _ in range(100):
        optimiser.zero_grad()
        sae.loss(x, sparsity_coef, DECODER_RULES["unit"]).total.backward()
        optimiser.step()
    assert sae.encode(x).item() == pytest.approx(1 - sparsity_coef / 2, abs=1e-5)


@pytest.mark.parametrize("rule", DECODER_RULES)
def test_every_term_has_dense_autograds_value_and_gradients(random_sae: Callable[..., SAE], rule: str) -> None:
    sae = random_sae("relu")
    assert isinstance(sae, ReLUSAE)
    x = 2 * torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x.requires_grad_()
    acts = torch.clamp((x - sae.b_dec) @ sae.W_enc + sae.b_enc, min=0)
    weights = torch.ones(sae.d_sae, dtype=x.dtype)
    if DECODER_RULES[rule].decoder_norm == "free":
        rows = sae.W_dec.detach() if DECODER_RULES[rule].penalty_norm == "frozen" else sae.W_dec
        weights = rows.square().sum(dim=1).sqrt()
    terms = {
        "reconstruction": (acts @ sae.W_dec + sae.b_dec - x).square().sum() / len(x),
        "sparsity": (acts @ weights).sum() / len(x),
    }
    loss = sae.loss(x, 0.3, DECODER_RULES[rule])
    named = {"x": x, **dict(sae.named_parameters())}
    pairs = [(loss.terms[name], terms[name]) for name in terms]
    for ours, theirs in [*pairs, (loss.total, terms["reconstruction"] + 0.3 * terms["sparsity"])]:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
        found, expected = (
            torch.autograd.grad(value, list(named.values()), retain_graph=True, materialize_grads=True)
            for value in (ours, theirs)
        )
        for name, one, other in zip(named, found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12, msg=name)
