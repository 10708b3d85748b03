"""The Gated SAE against the paper's equations, written out again without its shortcuts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from penstock.saes import DECODER_RULES, SAE, DecoderRule, GatedSAE

MakeSAE = Callable[..., SAE]

RECONSTRUCTION = {"W_enc", "b_mag", "r_mag", "W_dec", "b_dec"}
"""What the reconstruction trains: W_enc through the tied magnitude path, and not b_gate."""
GATE = {"W_enc", "b_gate", "b_dec"}
"""What stands between x and pi_gate; b_dec because the encoder reads x - b_dec."""

GRADIENTS: dict[tuple[str, str], set[str]] = {
    ("unit", "reconstruction"): RECONSTRUCTION,
    ("unit", "sparsity"): GATE,
    ("unit", "auxiliary"): GATE,
    ("norm_weighted", "reconstruction"): RECONSTRUCTION,
    ("norm_weighted", "sparsity"): GATE | {"W_dec"},
    ("norm_weighted", "auxiliary"): GATE | {"W_dec"},
    ("norm_weighted_frozen", "reconstruction"): RECONSTRUCTION,
    ("norm_weighted_frozen", "sparsity"): GATE,
    ("norm_weighted_frozen", "auxiliary"): GATE,
}


@pytest.fixture
def gated(random_sae: MakeSAE) -> GatedSAE:
    sae = random_sae("gated")
    assert isinstance(sae, GatedSAE)
    return sae


@pytest.fixture
def x() -> Tensor:
    return 2 * torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gated_2x2() -> GatedSAE:
    """Both latents read the first coordinate; the second has three times the magnitude, plus 10."""
    sae = GatedSAE(2, 2)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        sae.b_gate.copy_(torch.tensor([1.0, -2.0]))
        sae.b_mag.copy_(torch.tensor([-3.0, 10.0]))
        sae.r_mag.copy_(torch.tensor([1.0, 3.0]).log())
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        sae.b_dec.copy_(torch.tensor([0.5, -0.5]))
    return sae


def test_a_closed_gate_silences_a_latent_of_any_magnitude() -> None:
    # s = 1.5 - 0.5 = 1: the second latent's gate is at 1 - 2 < 0 while its magnitude would be 13.
    acts = gated_2x2().encode(torch.tensor([[1.5, 0.0]]))
    assert acts[0, 1] == 0


def test_an_open_gate_without_magnitude_does_not_count_as_firing() -> None:
    # s = 1: the first latent's gate is open at 1 + 1 = 2, its magnitude is ReLU(1 - 3) = 0.
    sae = gated_2x2()
    acts = sae.encode(torch.tensor([[1.5, 0.0]]))
    assert acts[0, 0] == 0
    assert (acts != 0).sum() == 0
    assert sae(torch.tensor([[1.5, 0.0]])).tolist() == [[0.5, -0.5]]


def test_an_open_gate_lets_the_magnitude_through_as_it_is() -> None:
    # s = 4: gates at 5 and 2, magnitudes 4 - 3 = 1 and 3 * 4 + 10 = 22.
    acts = gated_2x2().encode(torch.tensor([[4.5, 0.0]]))
    torch.testing.assert_close(acts, torch.tensor([[1.0, 22.0]]))


def test_a_gate_at_exactly_zero_is_closed() -> None:
    # s = 2: the second gate is at 2 - 2 = 0.
    assert gated_2x2().encode(torch.tensor([[2.5, 0.0]]))[0, 1] == 0


def test_the_penalty_and_the_auxiliary_task_act_on_the_gate_and_not_on_the_code() -> None:
    # s = 1: gates 2 and -1, code empty. Penalty 2; x_aux = (2, 0) + b_dec = (2.5, -0.5) against (1.5, 0).
    loss = gated_2x2().loss(torch.tensor([[1.5, 0.0]]), 0.1, DECODER_RULES["unit"])
    terms = {name: round(value.item(), 6) for name, value in loss.terms.items()}
    assert terms == {"reconstruction": 1.25, "sparsity": 2.0, "auxiliary": 1.25}
    assert loss.total.item() == pytest.approx(1.25 + 0.1 * 2 + 1.25)


def equation_8(sae: GatedSAE, x: Tensor, sparsity_coef: float, rule: DecoderRule) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss token by token with column vectors, two encoders and copies in place of stopped gradients."""
    W_gate = sae.W_enc.T
    W_mag = torch.stack([row * torch.exp(r) for row, r in zip(W_gate, sae.r_mag, strict=True)])
    frozen = rule.auxiliary_decoder == "frozen"
    W_aux, b_aux = (sae.W_dec.data.clone(), sae.b_dec.data.clone()) if frozen else (sae.W_dec, sae.b_dec)
    columns, columns_aux = sae.W_dec.T, W_aux.T
    weights = torch.ones(sae.d_sae, dtype=x.dtype)
    if rule.decoder_norm == "free":
        weights = (sae.W_dec.data.clone() if frozen else sae.W_dec).square().sum(dim=1).sqrt()
    terms = {name: torch.zeros((), dtype=x.dtype) for name in ("reconstruction", "sparsity", "auxiliary")}
    for token in x:
        pi_gate = W_gate @ (token - sae.b_dec) + sae.b_gate
        f_gate = torch.where(pi_gate > 0, 1.0, 0.0).to(x.dtype)
        f_mag = (W_mag @ (token - sae.b_dec) + sae.b_mag).clamp(min=0)
        x_hat = columns @ (f_gate * f_mag) + sae.b_dec
        x_aux = columns_aux @ pi_gate.clamp(min=0) + b_aux
        terms["reconstruction"] = terms["reconstruction"] + (token - x_hat) @ (token - x_hat) / len(x)
        terms["sparsity"] = terms["sparsity"] + weights @ pi_gate.clamp(min=0) / len(x)
        terms["auxiliary"] = terms["auxiliary"] + (token - x_aux) @ (token - x_aux) / len(x)
    return terms["reconstruction"] + sparsity_coef * terms["sparsity"] + terms["auxiliary"], terms


@pytest.mark.parametrize("rule", DECODER_RULES)
def test_the_loss_and_its_gradients_are_those_of_equation_8(gated: GatedSAE, x: Tensor, rule: str) -> None:
    x.requires_grad_()
    loss = gated.loss(x, 0.3, DECODER_RULES[rule])
    total, terms = equation_8(gated, x, 0.3, DECODER_RULES[rule])

    assert set(loss.terms) == set(terms)
    for name, value in terms.items():
        torch.testing.assert_close(loss.terms[name], value, rtol=1e-12, atol=0, msg=name)
    torch.testing.assert_close(loss.total, total, rtol=1e-12, atol=0)
    named = {"x": x, **dict(gated.named_parameters())}
    pairs = [(loss.total, total), *((loss.terms[name], terms[name]) for name in terms)]
    for ours, theirs in pairs:
        found, expected = (
            torch.autograd.grad(value, list(named.values()), retain_graph=True, materialize_grads=True)
            for value in (ours, theirs)
        )
        for name, one, other in zip(named, found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12, msg=name)


def test_the_table_of_gradients_has_every_kind_of_recipe() -> None:
    listed = [DECODER_RULES[name] for name, _ in GRADIENTS]
    assert all(rule in listed for rule in DECODER_RULES.values())


@pytest.mark.parametrize(("rule", "term"), GRADIENTS)
def test_each_term_trains_exactly_the_parameters_of_the_papers_table(
    gated: GatedSAE, x: Tensor, rule: str, term: str
) -> None:
    loss = gated.loss(x, 0.3, DECODER_RULES[rule])
    parameters = dict(gated.named_parameters())
    gradients = torch.autograd.grad(loss.terms[term], list(parameters.values()), allow_unused=True)
    trained = {name for name, g in zip(parameters, gradients, strict=True) if g is not None and (g != 0).any()}
    assert trained == GRADIENTS[rule, term]


@pytest.mark.parametrize("rule", DECODER_RULES)
def test_b_dec_learns_from_the_auxiliary_task_through_the_encoder_and_only_unfrozen_through_the_decoder(
    gated: GatedSAE, x: Tensor, rule: str
) -> None:
    loss = gated.loss(x, 0.3, DECODER_RULES[rule])
    (found,) = torch.autograd.grad(loss.terms["auxiliary"], gated.b_dec)

    with torch.no_grad():
        pi_gate = (x - gated.b_dec) @ gated.W_enc + gated.b_gate
        error = pi_gate.clamp(min=0) @ gated.W_dec + gated.b_dec - x
        through_encoder = -((2 * error @ gated.W_dec.T * (pi_gate > 0)) @ gated.W_enc.T).mean(dim=0)
        through_decoder = (2 * error).mean(dim=0)
    unfrozen = rule == "norm_weighted"
    torch.testing.assert_close(found, through_encoder + through_decoder if unfrozen else through_encoder)


def test_b_dec_learns_from_the_reconstruction_through_encoder_and_decoder(gated: GatedSAE, x: Tensor) -> None:
    (found,) = torch.autograd.grad(gated.loss(x, 0.3, DECODER_RULES["unit"]).terms["reconstruction"], gated.b_dec)

    with torch.no_grad():
        acts, error = gated.encode(x), gated(x) - x
        through_encoder = -((2 * error @ gated.W_dec.T * (acts > 0) * gated.r_mag.exp()) @ gated.W_enc.T).mean(dim=0)
        through_decoder = (2 * error).mean(dim=0)
    torch.testing.assert_close(found, through_encoder + through_decoder)


def test_the_penalty_trains_the_decoder_norm_by_how_open_the_gate_is(gated: GatedSAE, x: Tensor) -> None:
    loss = gated.loss(x, 0.3, DECODER_RULES["norm_weighted"])
    (found,) = torch.autograd.grad(loss.terms["sparsity"], gated.W_dec)
    with torch.no_grad():
        opening = ((x - gated.b_dec) @ gated.W_enc + gated.b_gate).clamp(min=0).mean(dim=0)
        expected = opening[:, None] * gated.W_dec / gated.W_dec.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected)


def test_the_gate_shrinks_and_the_code_does_not() -> None:
    """Figure 2 of the paper with a Gated SAE: the gate is shrunk to a half, the code stays 1."""
    sae, x = GatedSAE(1, 1), torch.ones(1, 1)
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.W_dec.fill_(1.0)
    optimiser = torch.optim.SGD([sae.b_gate, sae.b_mag], lr=0.1)
    for _ in range(100):
        optimiser.zero_grad()
        sae.loss(x, 1.0, DECODER_RULES["unit"]).total.backward()
        optimiser.step()
    assert (x + sae.b_gate).item() == pytest.approx(0.5, abs=1e-5)
    assert sae.encode(x).item() == pytest.approx(1.0, abs=1e-5)


def test_as_jumprelu_it_is_the_same_function(gated: GatedSAE, x: Tensor) -> None:
    jumprelu = gated.to_jumprelu()
    assert jumprelu.W_dec.dtype == torch.float64
    torch.testing.assert_close(jumprelu.encode(x), gated.encode(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(jumprelu(x), gated(x), rtol=0, atol=1e-12)
    assert ((jumprelu.encode(x) != 0) == (gated.encode(x) != 0)).all()


def test_as_jumprelu_its_threshold_must_not_be_negative(gated: GatedSAE, x: Tensor) -> None:
    plain = gated.b_mag - gated.r_mag.exp() * gated.b_gate
    jumprelu = gated.to_jumprelu()
    assert (jumprelu.threshold >= 0).all()
    assert torch.equal(jumprelu.threshold[plain > 0], plain[plain > 0])

    with torch.no_grad():
        jumprelu.threshold.copy_(plain)
    wrong = (jumprelu.encode(x) - gated.encode(x)).abs().amax(dim=0) > 1e-9
    assert wrong.any()
    assert (plain[wrong] < 0).all()
    assert (jumprelu.encode(x) < 0).any()


def test_converting_to_jumprelu_leaves_the_gated_sae_as_it_is(gated: GatedSAE, x: Tensor) -> None:
    before = gated(x)
    jumprelu = gated.to_jumprelu()
    with torch.no_grad():
        for parameter in jumprelu.parameters():
            parameter += 1
    assert torch.equal(gated(x), before)


def test_both_folds_commute_with_the_conversion_to_jumprelu(gated: GatedSAE, x: Tensor) -> None:
    converted_first = gated.to_jumprelu()
    for sae in (converted_first, gated):
        sae.fold_decoder_norm_()
        sae.fold_input_scale_(3.0)
    torch.testing.assert_close(gated.to_jumprelu().encode(x), converted_first.encode(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(gated.to_jumprelu()(x), converted_first(x), rtol=0, atol=1e-12)
