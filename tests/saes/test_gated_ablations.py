"""Each ablation against dense autograd in float64, written out from the paper's equations."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from penstock.saes import ABLATION_RULES, ARCHITECTURES, DECODER_RULES, SAE, DecoderRule, GatedSAE, TrainableSAE

COEF = 0.3


def activations() -> Tensor:
    return 2 * torch.randn(40, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64) + 0.5


def dense_loss(weights: dict[str, Tensor], x: Tensor, rule: DecoderRule, *, auxiliary: bool = True) -> Tensor:
    """Equation 8 on whole matrices; without W_mag both paths share W_enc, without r_mag it is 0."""
    centred = x - weights["b_dec"]
    gate = torch.relu(centred @ weights["W_enc"] + weights["b_gate"])
    scale = weights["r_mag"].exp() if "r_mag" in weights else 1.0
    magnitude = torch.relu(centred @ weights.get("W_mag", weights["W_enc"]) * scale + weights["b_mag"])
    W_dec, b_dec = weights["W_dec"], weights["b_dec"]
    x_hat = ((gate > 0) * magnitude) @ W_dec + b_dec
    norm = W_dec.norm(dim=1) if rule.decoder_norm == "free" else torch.ones(len(W_dec), dtype=x.dtype)
    norm = norm.detach() if rule.penalty_norm == "frozen" else norm
    loss = (x_hat - x).square().sum(dim=1) + COEF * (gate * norm).sum(dim=1)
    if auxiliary:
        trained = rule.auxiliary_decoder == "trained"
        x_aux = gate @ (W_dec if trained else W_dec.detach()) + (b_dec if trained else b_dec.detach())
        loss = loss + (x_aux - x).square().sum(dim=1)
    return loss.mean()


@pytest.mark.parametrize("arch", ["gated", "gated_no_r_mag", "gated_untied", "gated_no_auxiliary"])
@pytest.mark.parametrize("rule", [DECODER_RULES["unit"], *ABLATION_RULES.values()], ids=["unit", *ABLATION_RULES])
def test_loss_and_gradients_are_those_of_the_dense_equations(
    arch: str, rule: DecoderRule, random_sae: Callable[..., SAE]
) -> None:
    sae, x = random_sae(arch), activations()
    assert isinstance(sae, TrainableSAE)
    sae.loss(x, COEF, rule).total.backward()
    weights = {name: value.detach().clone().requires_grad_(True) for name, value in sae.named_parameters()}
    loss = dense_loss(weights, x, rule, auxiliary=arch != "gated_no_auxiliary")
    loss.backward()
    torch.testing.assert_close(sae.loss(x, COEF, rule).total, loss, rtol=1e-12, atol=0)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-10, atol=1e-12, msg=name)


def test_without_r_mag_nothing_but_biases_tells_gate_and_magnitude_apart(random_sae: Callable[..., SAE]) -> None:
    sae = random_sae("gated_no_r_mag")
    assert isinstance(sae, GatedSAE)
    assert "r_mag" not in dict(sae.named_parameters()) and (sae.r_mag == 0).all()
    with torch.no_grad():
        sae.get_parameter("b_mag").copy_(sae.get_parameter("b_gate"))
    products = (activations() - sae.b_dec) @ sae.W_enc + sae.get_parameter("b_gate")
    torch.testing.assert_close(sae.encode(activations()), torch.relu(products))


def test_an_untied_sae_whose_encoders_are_one_is_a_gated_sae(random_sae: Callable[..., SAE]) -> None:
    gated, untied = random_sae("gated"), random_sae("gated_untied")
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag"):
            untied.get_parameter(name).copy_(gated.get_parameter(name))
        untied.get_parameter("W_mag").copy_(gated.W_enc * gated.get_parameter("r_mag").exp())
    torch.testing.assert_close(untied.encode(activations()), gated.encode(activations()))


def test_without_the_auxiliary_task_the_penalty_alone_moves_the_gates_bias() -> None:
    """At the start every token pays for its open gates and nothing pays back: b_gate falls, wherever it fires."""
    sae = ARCHITECTURES["gated_no_auxiliary"].make_trainable(6, 10).double()
    sae.loss(activations(), COEF, DECODER_RULES["unit"]).total.backward()
    gradient = sae.get_parameter("b_gate").grad
    fires = (activations() @ sae.W_enc > 0).double().mean(dim=0)
    torch.testing.assert_close(gradient, COEF * fires)


def test_the_mixture_is_what_recipe_refuses() -> None:
    mixture = ABLATION_RULES["inconsistent_mixture"]
    assert (mixture.decoder_norm, mixture.auxiliary_decoder, mixture.penalty_norm) == ("free", "frozen", "trained")
    with pytest.raises(ValueError, match="inconsistent mixture"):
        DecoderRule(decoder_norm="free", auxiliary_decoder="frozen", penalty_norm="trained")
    assert not set(ABLATION_RULES) & set(DECODER_RULES)
