"""Resampling of dead latents: which inputs, what becomes of the latents, and what stays."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from penstock.saes import ARCHITECTURES, TrainableSAE
from penstock.training.resampling import DeadCounter, choose_inputs, resample_

D_IN, D_SAE = 5, 8
DEAD = torch.tensor([False, True, False, False, True, False, False, True])


def numbered(count: int) -> Tensor:
    return torch.arange(count).float()[:, None].expand(-1, D_IN).clone()


def test_inputs_are_chosen_in_proportion_to_their_squared_loss() -> None:
    losses = torch.tensor([0.0, 1.0, 2.0, 3.0])
    generator = torch.Generator().manual_seed(0)
    draws = 3500
    found = Counter(
        int(choose_inputs(numbered(4), lambda x: losses[x[:, 0].long()], 1, generator)[0, 0]) for _ in range(draws)
    )
    # Squares 0, 1, 4, 9 of 14: 250, 1,000 and 2,250 expected, standard deviations 15, 27 and 28.
    assert found[0] == 0
    for number, expected in ((1, 250), (2, 1000), (3, 2250)):
        assert abs(found[number] - expected) < 90


def test_no_input_is_chosen_twice_while_others_have_a_loss() -> None:
    losses = torch.tensor([5.0, 0.0, 1.0, 0.1, 0.0, 3.0])
    chosen = choose_inputs(numbered(6), lambda x: losses[x[:, 0].long()], 4, torch.Generator())
    assert sorted(chosen[:, 0].tolist()) == [0, 2, 3, 5]


def test_more_latents_than_inputs_share_the_inputs() -> None:
    losses = torch.tensor([5.0, 0.0, 1.0])
    chosen = choose_inputs(numbered(3), lambda x: losses[x[:, 0].long()], 50, torch.Generator().manual_seed(0))
    assert len(chosen) == 50
    assert set(chosen[:, 0].tolist()) == {0, 2}


def test_inputs_without_any_loss_are_chosen_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    found = Counter(
        int(choose_inputs(numbered(3), lambda x: torch.zeros(len(x)), 1, generator)[0, 0]) for _ in range(900)
    )
    assert all(250 < found[number] < 350 for number in range(3))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_inputs_of_an_sae_that_has_diverged_are_chosen_without_an_error(loss: float) -> None:
    losses = torch.tensor([1.0, loss, 2.0])
    chosen = choose_inputs(numbered(3), lambda x: losses[x[:, 0].long()], 3, torch.Generator().manual_seed(0))
    assert sorted(chosen[:, 0].tolist()) == [0, 1, 2]


def test_inputs_are_encoded_in_chunks_and_all_are_candidates() -> None:
    sizes: list[int] = []

    def errors_of(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return torch.ones(len(x))

    chosen = choose_inputs(numbered(10), errors_of, 10, torch.Generator(), chunk=4)
    assert sizes == [4, 4, 2]
    assert sorted(chosen[:, 0].tolist()) == list(range(10))


class Trained:
    """An SAE after a few Adam steps, with copies of everything from before resampling."""

    def __init__(self, arch: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.sae: TrainableSAE = ARCHITECTURES[arch].make_trainable(D_IN, D_SAE)
        with torch.no_grad():
            for parameter in self.sae.parameters():
                parameter.normal_(generator=generator)
        self.optimiser = torch.optim.Adam(self.sae.parameters(), betas=(0.9, 0.999), fused=True)
        for _ in range(3):
            for parameter in self.sae.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            self.optimiser.step()
        self.chosen = torch.randn(3, D_IN, generator=generator)
        self.before = {name: value.clone() for name, value in self.sae.state_dict().items()}
        self.adam_before = self.adam()

    def resample(self, dead: Tensor) -> None:
        resample_(self.sae, dead, self.chosen[: int(dead.sum())], self.optimiser, encoder_scale=0.2)

    def adam(self) -> dict[str, dict[str, Tensor]]:
        return {
            name: {key: value.clone() for key, value in self.optimiser.state[parameter].items()}
            for name, parameter in self.sae.named_parameters()
        }


@pytest.fixture(params=["gated", "relu"])
def trained(request: pytest.FixtureRequest) -> Trained:
    return Trained(request.param)


def test_the_new_decoder_rows_point_at_the_inputs_with_the_mean_norm_of_the_living(trained: Trained) -> None:
    trained.resample(DEAD)
    norm = trained.before["W_dec"][~DEAD].norm(dim=1).mean()
    for row, x in zip(trained.sae.W_dec[DEAD], trained.chosen, strict=True):
        seen = x - trained.before["b_dec"]
        torch.testing.assert_close(row, norm * seen / seen.norm())


def test_the_new_encoder_vectors_have_a_fifth_of_the_mean_norm_of_the_living(trained: Trained) -> None:
    trained.resample(DEAD)
    norm = trained.before["W_enc"][:, ~DEAD].norm(dim=0).mean()
    for column, x in zip(trained.sae.W_enc[:, DEAD].T, trained.chosen, strict=True):
        seen = x - trained.before["b_dec"]
        torch.testing.assert_close(column, 0.2 * norm * seen / seen.norm())


def test_unit_rows_stay_unit(trained: Trained) -> None:
    with torch.no_grad():
        trained.sae.W_dec /= trained.sae.W_dec.norm(dim=1, keepdim=True)
    trained.resample(DEAD)
    torch.testing.assert_close(trained.sae.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_the_new_latents_biases_are_zero(trained: Trained) -> None:
    trained.resample(DEAD)
    names = {"gated": ("b_gate", "b_mag", "r_mag"), "relu": ("b_enc",)}[trained.sae.arch]
    for name in names:
        assert trained.sae.get_parameter(name)[DEAD].tolist() == [0, 0, 0]


def test_the_living_latents_and_b_dec_are_untouched(trained: Trained) -> None:
    trained.resample(DEAD)
    for name, value in trained.sae.state_dict().items():
        before = trained.before[name]
        if name == "b_dec":
            assert torch.equal(value, before)
        elif name == "W_enc":
            assert torch.equal(value[:, ~DEAD], before[:, ~DEAD])
        else:
            assert torch.equal(value[~DEAD], before[~DEAD])


def test_adam_forgets_the_new_latents_and_nothing_else(trained: Trained) -> None:
    trained.resample(DEAD)
    for name, state in trained.adam().items():
        before = trained.adam_before[name]
        assert torch.equal(state["step"], before["step"])
        for key in ("exp_avg", "exp_avg_sq"):
            now, then = (moments.T if name == "W_enc" else moments for moments in (state[key], before[key]))
            if name == "b_dec":
                assert torch.equal(now, then)
                continue
            assert not now[DEAD].any()
            assert torch.equal(now[~DEAD], then[~DEAD])
            assert then[DEAD].all()


def test_adams_state_is_told_apart_by_parameter_where_shapes_coincide() -> None:
    # A square SAE: W_enc and W_dec have one shape, and b_dec is as long as b_enc.
    sae = ARCHITECTURES["relu"].make_trainable(4, 4)
    optimiser = torch.optim.Adam(sae.parameters())
    for parameter in sae.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    dead = torch.tensor([True, False, False, False])
    resample_(sae, dead, torch.ones(1, 4), optimiser, encoder_scale=0.2)
    moments = {name: optimiser.state[p]["exp_avg"] == 0 for name, p in sae.named_parameters()}
    assert moments["b_dec"].sum() == 0
    assert moments["b_enc"].tolist() == dead.tolist()
    assert moments["W_dec"].all(dim=1).tolist() == moments["W_dec"].any(dim=1).tolist() == dead.tolist()
    assert moments["W_enc"].all(dim=0).tolist() == moments["W_enc"].any(dim=0).tolist() == dead.tolist()


def test_with_no_latent_dead_nothing_changes(trained: Trained) -> None:
    trained.resample(torch.zeros(D_SAE, dtype=torch.bool))
    for name, value in trained.sae.state_dict().items():
        assert torch.equal(value, trained.before[name])
    for name, state in trained.adam().items():
        assert all(torch.equal(value, trained.adam_before[name][key]) for key, value in state.items())


def test_with_all_latents_dead_the_means_run_over_all(trained: Trained) -> None:
    trained.chosen = torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(7))
    trained.resample(torch.ones(D_SAE, dtype=torch.bool))
    for now, then, dim in (("W_dec", 1.0, 1), ("W_enc", 0.2, 0)):
        mean = trained.before[now].norm(dim=dim).mean()
        norms = trained.sae.get_parameter(now).norm(dim=dim)
        torch.testing.assert_close(norms, then * mean.expand(D_SAE))


def test_an_sae_that_has_taken_no_step_can_be_resampled() -> None:
    sae = ARCHITECTURES["gated"].make_trainable(D_IN, D_SAE)
    optimiser = torch.optim.Adam(sae.parameters(), fused=True)
    resample_(sae, DEAD, torch.ones(3, D_IN), optimiser, encoder_scale=0.2)
    sae.W_dec.square().sum().backward()
    optimiser.step()
    assert torch.isfinite(sae.W_dec).all()


def test_the_dead_counter_counts_tokens_since_the_last_firing() -> None:
    counter = DeadCounter(3, torch.device("cpu"))
    for fires, tokens, expected in (
        ([1.0, 0.0, 0.0], 4, [0, 4, 4]),
        ([0.0, 2.0, 0.0], 4, [4, 0, 8]),
        ([0.0, 0.0, 0.0], 2, [6, 2, 10]),
    ):
        acts = torch.zeros(tokens, 3)
        acts[tokens // 2] = torch.tensor(fires)
        counter.update((acts > 0).any(dim=0), len(acts))
        assert counter.tokens_since.tolist() == expected
    assert counter.dead(10).tolist() == [False, False, True]
    assert counter.dead(6).tolist() == [True, False, True]
    assert counter.dead(11).tolist() == [False, False, False]
