"""What every architecture must do; a new line in ARCHITECTURES is tested by itself."""

from collections.abc import Callable

import pytest
import torch

from penstock.saes import ARCHITECTURES, DECODER_RULES, SAE, DecoderRule, TrainableSAE, trainable

MakeSAE = Callable[..., SAE]

every_architecture = pytest.mark.parametrize("arch", ARCHITECTURES)
every_trainable = pytest.mark.parametrize("arch", trainable())


def activations(num: int = 200, d_in: int = 6, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return (2 * torch.randn(num, d_in, generator=generator, dtype=torch.float64) + 0.5).to(dtype)


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def test_the_shared_random_sae_leaves_no_parameter_out(random_sae: MakeSAE) -> None:
    for arch in ARCHITECTURES:
        sae = random_sae(arch)
        assert all(parameter.abs().min() > 0 for parameter in sae.parameters())
    gated = random_sae("gated")
    theta = gated.get_parameter("b_mag") - gated.get_parameter("r_mag").exp() * gated.get_parameter("b_gate")
    assert (theta < 0).sum() == (theta > 0).sum() == 5


@every_architecture
def test_the_name_in_the_table_is_the_architectures_own(arch: str) -> None:
    assert ARCHITECTURES[arch].name == ARCHITECTURES[arch].sae.arch == arch


@every_architecture
def test_widths_are_read_off_the_decoder(arch: str) -> None:
    sae = ARCHITECTURES[arch].make(3, 5)
    assert (sae.d_in, sae.d_sae) == (3, 5)


@every_architecture
def test_code_and_reconstruction_have_the_right_shapes(arch: str, random_sae: MakeSAE) -> None:
    sae = random_sae(arch, 3, 5)
    acts = sae.encode(activations(7, 3))
    assert acts.shape == (7, 5)
    assert sae.decode(acts).shape == (7, 3)
    assert sae.encode(activations(0, 3)).shape == (0, 5)


@every_architecture
def test_forward_is_the_decoded_code(arch: str, random_sae: MakeSAE) -> None:
    sae, x = random_sae(arch), activations()
    torch.testing.assert_close(sae(x), sae.decode(sae.encode(x)), rtol=1e-12, atol=1e-12)


@every_architecture
def test_the_code_is_non_negative_and_has_both_zeros_and_firing_latents(arch: str, random_sae: MakeSAE) -> None:
    acts = random_sae(arch).encode(activations())
    assert (acts >= 0).all()
    assert 0.1 < (acts > 0).double().mean() < 0.9


@every_architecture
def test_decode_adds_the_rows_of_the_firing_latents(arch: str, random_sae: MakeSAE) -> None:
    sae = random_sae(arch)
    acts = torch.zeros(1, 10, dtype=torch.float64)
    acts[0, 3], acts[0, 8] = 2.0, 0.5
    expected = 2.0 * sae.W_dec[3] + 0.5 * sae.W_dec[8] + sae.b_dec
    torch.testing.assert_close(sae.decode(acts)[0], expected, rtol=0, atol=1e-14)


@every_architecture
def test_the_encoder_reads_activations_relative_to_b_dec(arch: str, random_sae: MakeSAE) -> None:
    sae, x = random_sae(arch), activations()
    before = sae.encode(x)
    shift = torch.full_like(sae.b_dec, 0.7)
    with torch.no_grad():
        sae.b_dec += shift
    torch.testing.assert_close(sae.encode(x + shift), before, rtol=0, atol=1e-12)


@every_architecture
def test_folding_the_decoder_norm_keeps_every_reconstruction(arch: str, random_sae: MakeSAE) -> None:
    sae, x = random_sae(arch), activations()
    norm, acts, x_hat = sae.W_dec.norm(dim=1).detach(), sae.encode(x), sae(x)

    sae.fold_decoder_norm_()

    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones_like(norm), rtol=0, atol=1e-14)
    assert largest_difference(sae(x), x_hat) < 1e-12
    assert largest_difference(sae.encode(x), acts * norm) < 1e-12


@every_architecture
def test_folding_the_decoder_norm_leaves_a_row_of_zeros_alone(arch: str, random_sae: MakeSAE) -> None:
    sae, x = random_sae(arch), activations()
    with torch.no_grad():
        sae.W_dec[4] = 0
    acts, x_hat = sae.encode(x), sae(x)

    sae.fold_decoder_norm_()

    assert torch.equal(sae.W_dec[4], torch.zeros(6, dtype=torch.float64))
    assert torch.equal(sae.encode(x)[:, 4], acts[:, 4])
    assert largest_difference(sae(x), x_hat) < 1e-12


@every_architecture
@pytest.mark.parametrize("scale", [0.05, 1.0, 37.0])
def test_folding_the_input_scale_moves_it_from_the_activations_into_the_sae(
    arch: str, scale: float, random_sae: MakeSAE
) -> None:
    sae, x = random_sae(arch), activations() / scale
    acts, x_hat, norm = sae.encode(scale * x), sae(scale * x), sae.W_dec.norm(dim=1)

    sae.fold_input_scale_(scale)

    assert largest_difference(sae.encode(x), acts / scale) < 1e-12 / scale
    assert largest_difference(sae(x), x_hat / scale) < 1e-12 / scale
    assert torch.equal(sae.W_dec.norm(dim=1), norm)


@every_trainable
def test_a_new_sae_reads_along_the_unit_directions_it_writes(arch: str) -> None:
    sae = ARCHITECTURES[arch].make_trainable(16, 40, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    matrices = sae.encoder_matrices
    assert all(torch.equal(sae.get_parameter(name), sae.W_dec.T) for name in matrices)
    rest = {name: value for name, value in sae.named_parameters() if name not in (*matrices, "W_dec")}
    assert all((value == 0).all() for value in rest.values())


@every_trainable
def test_decoder_rows_can_begin_with_another_norm(arch: str) -> None:
    sae = ARCHITECTURES[arch].make_trainable(16, 40, decoder_norm=0.1)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((40,), 0.1))
    assert torch.equal(sae.W_enc, sae.W_dec.T)


@every_trainable
def test_initial_directions_are_spread_evenly(arch: str) -> None:
    rows = ARCHITECTURES[arch].make_trainable(8, 4000).W_dec
    assert rows.mean(dim=0).abs().max() < 0.03
    torch.testing.assert_close(rows.T @ rows / 4000, torch.eye(8) / 8, rtol=0, atol=0.02)


@every_trainable
def test_the_generator_decides_the_weights(arch: str) -> None:
    def rows(seed: int) -> torch.Tensor:
        return ARCHITECTURES[arch].make_trainable(6, 10, generator=torch.Generator().manual_seed(seed)).W_dec

    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))


def test_architectures_begin_in_the_same_directions_for_a_seed() -> None:
    one, other = (
        ARCHITECTURES[arch].make_trainable(6, 10, generator=torch.Generator().manual_seed(5)).W_dec
        for arch in ("relu", "gated")
    )
    assert torch.equal(one, other)


@every_trainable
@pytest.mark.parametrize(("d_in", "d_sae"), [(1, 3), (3, 1), (1, 1)])
def test_encoder_and_decoder_are_separate_memory_at_any_width(arch: str, d_in: int, d_sae: int) -> None:
    sae = ARCHITECTURES[arch].make_trainable(d_in, d_sae)
    before = sae.W_dec.clone()
    with torch.no_grad():
        sae.W_enc += 1
    assert torch.equal(sae.W_dec, before)


@every_trainable
@pytest.mark.parametrize("rule", DECODER_RULES.values(), ids=DECODER_RULES)
def test_gradients_of_the_loss_reach_every_parameter(arch: str, rule: DecoderRule, random_sae: MakeSAE) -> None:
    sae = random_sae(arch)
    assert isinstance(sae, TrainableSAE)
    sae.loss(activations(), 0.5, rule).total.backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(), name


@every_trainable
@pytest.mark.parametrize("rule", DECODER_RULES.values(), ids=DECODER_RULES)
def test_the_loss_reports_the_code_and_each_tokens_error_without_gradients(
    arch: str, rule: DecoderRule, random_sae: MakeSAE
) -> None:
    sae, x = random_sae(arch), activations()
    assert isinstance(sae, TrainableSAE)
    loss = sae.loss(x, 0.5, rule)
    assert torch.equal(loss.acts.to_dense(), sae.encode(x))
    torch.testing.assert_close(loss.errors, ((sae(x) - x) ** 2).sum(dim=1).detach())
    assert not loss.acts.values.requires_grad and not loss.errors.requires_grad


@every_trainable
@pytest.mark.parametrize("rule", DECODER_RULES.values(), ids=DECODER_RULES)
def test_the_loss_is_a_mean_over_tokens(arch: str, rule: DecoderRule, random_sae: MakeSAE) -> None:
    sae, x = random_sae(arch), activations()
    assert isinstance(sae, TrainableSAE)
    once, twice = sae.loss(x, 0.5, rule), sae.loss(torch.cat([x, x]), 0.5, rule)
    torch.testing.assert_close(twice.total, once.total, rtol=1e-12, atol=0)


@every_trainable
@pytest.mark.parametrize("name", ["norm_weighted", "norm_weighted_frozen"])
def test_louder_latents_with_shorter_rows_cost_the_same_when_the_penalty_is_norm_weighted(
    arch: str, name: str, random_sae: MakeSAE
) -> None:
    sae, x = random_sae(arch), activations()
    assert isinstance(sae, TrainableSAE)
    before, plain = sae.loss(x, 0.5, DECODER_RULES[name]), sae.loss(x, 0.5, DECODER_RULES["unit"])
    with torch.no_grad():
        sae.W_dec /= 2
        for parameter in (*sae.encoder_matrices, *sae.scaled_by_decoder_norm):
            sae.get_parameter(parameter).mul_(2)
    after, plain_after = sae.loss(x, 0.5, DECODER_RULES[name]), sae.loss(x, 0.5, DECODER_RULES["unit"])

    torch.testing.assert_close(after.acts.to_dense(), 2 * before.acts.to_dense())
    for term, value in before.terms.items():
        torch.testing.assert_close(after.terms[term], value, msg=term)
    # The plain L1 can be evaded this way, which is why it needs unit rows.
    torch.testing.assert_close(plain_after.terms["sparsity"], 2 * plain.terms["sparsity"])
