"""Steps of the trainer against the same steps written out by hand, and what it reports."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from penstock.training.optimisers import project_gradient_, unit_norm_rows_
from penstock.training.schedules import Schedule
from penstock.training.settings import SAEConfig
from penstock.training.settings.defaults import PlannedModel
from penstock.training.settings.sae_config import resolve_sae
from penstock.training.trainer import DivergenceError, SAETrainer, _placed_like

D_IN, D_SAE, BATCH = 6, 12, 32
BETA1, BETA2 = 0.7, 0.95
ADAM_EPS = 1e-8

RECIPES = ("paper", "norm_weighted", "norm_weighted_frozen")


def make_trainer(arch: str = "gated", recipe: str = "paper", num_steps: int = 40, **changes: Any) -> SAETrainer:
    settings: dict[str, Any] = {
        "lr": 0.01,
        "beta1": BETA1,
        "grad_clip": 0.0,
        "decoder_init_norm": 1.0 if recipe == "paper" else 0.5,
        "sparsity_coef": None if "target_l0" in changes else 0.2,
    }
    schedule = {"num_steps": num_steps, "warmup": 4, "decay": 0, "sparsity_warmup": 5}
    schedule |= {key: changes.pop(key) for key in tuple(changes) if key in (*schedule, "dips")}
    encoder_precision = changes.pop("encoder_precision", "float32")
    dead_window = changes.pop("dead_window", 10**9)
    asked = SAEConfig(arch=arch, recipe=recipe, site="resid_post.0", d_sae=D_SAE, **(settings | changes))
    return SAETrainer(
        resolve_sae(asked, PlannedModel("model", 8, {}), num_steps=num_steps, warmup_share=0.0),
        Schedule(**schedule),
        d_in=D_IN,
        beta2=BETA2,
        encoder_precision=encoder_precision,
        dead_window=dead_window,
        encoder_scale=0.2,
        device="cpu",
    )


def batch(seed: int = 0, size: int = BATCH, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, D_IN, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def roughen_(trainer: SAETrainer) -> None:
    """Float64 for exact comparison, and no bias or r_mag zero."""
    generator = torch.Generator().manual_seed(5)
    trainer.sae.double()
    with torch.no_grad():
        for name, parameter in trainer.sae.named_parameters():
            if name not in ("W_enc", "W_dec"):
                parameter.normal_(std=0.1, generator=generator)


def loss_by_hand(p: dict[str, Tensor], x: Tensor, coef: float, arch: str, recipe: str) -> Tensor:
    """Equation 8 of the paper, or 2.2 for the baseline, token by token."""
    weights = torch.ones(D_SAE, dtype=x.dtype) if recipe == "paper" else p["W_dec"].norm(dim=1)
    frozen = recipe != "norm_weighted"
    if frozen:
        weights = weights.detach()
    total = torch.zeros((), dtype=x.dtype)
    for token in x:
        pre = (token - p["b_dec"]) @ p["W_enc"]
        if arch == "relu":
            code = penalised = (pre + p["b_enc"]).clamp(min=0)
        else:
            gate = pre + p["b_gate"]
            code = torch.where(gate > 0, (p["r_mag"].exp() * pre + p["b_mag"]).clamp(min=0), 0.0)
            penalised = gate.clamp(min=0)
            W_aux, b_aux = (p["W_dec"], p["b_dec"]) if not frozen else (p["W_dec"].data, p["b_dec"].data)
            total = total + (token - penalised @ W_aux - b_aux).pow(2).sum()
        total = total + (token - code @ p["W_dec"] - p["b_dec"]).pow(2).sum()
        total = total + coef * (penalised * weights).sum()
    return total / len(x)


def steps_by_hand(trainer: SAETrainer, batches: list[Tensor], clip: float) -> tuple[dict[str, Tensor], list[float]]:
    """Adam as in its paper, on the trainer's parameters as they are now."""
    config, schedule = trainer.config, trainer.schedule
    p = {name: value.detach().clone().requires_grad_() for name, value in trainer.sae.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in p.items()}
    second = {name: torch.zeros_like(value) for name, value in p.items()}
    losses = []
    for step, x in enumerate(batches):
        assert config.sparsity_coef is not None
        lr = config.lr * min(1, (step + 1) / schedule.warmup)
        coef = config.sparsity_coef * min(1, (step + 1) / schedule.sparsity_warmup)
        loss = loss_by_hand(p, x, coef, config.arch, config.recipe)
        gradients = dict(zip(p, torch.autograd.grad(loss, list(p.values())), strict=True))
        if config.recipe == "paper":
            rows = p["W_dec"].detach() / p["W_dec"].detach().norm(dim=1, keepdim=True)
            for row, gradient in zip(rows, gradients["W_dec"], strict=True):
                gradient -= torch.dot(gradient, row) * row
        norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
        factor = min(1.0, clip / norm.item()) if clip else 1.0
        for name, value in p.items():
            g = gradients[name] * factor
            first[name] = BETA1 * first[name] + (1 - BETA1) * g
            second[name] = BETA2 * second[name] + (1 - BETA2) * g**2
            mean, square = first[name] / (1 - BETA1 ** (step + 1)), second[name] / (1 - BETA2 ** (step + 1))
            value.data = value.data - lr * mean / (square.sqrt() + ADAM_EPS)
        if config.recipe == "paper":
            p["W_dec"].data = torch.nn.functional.normalize(p["W_dec"].data, dim=1)
        losses.append(loss.item())
    return p, losses


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("arch", ["gated", "relu"])
def test_steps_are_adam_steps_on_the_papers_loss(arch: str, recipe: str, clip: float) -> None:
    trainer = make_trainer(arch, recipe, grad_clip=clip)
    roughen_(trainer)
    batches = [batch(seed, dtype=torch.float64) for seed in range(6)]
    expected, losses = steps_by_hand(trainer, batches, clip)
    reported = [trainer.step(x, step)["loss"] for step, x in enumerate(batches)]
    assert reported == pytest.approx(losses, rel=1e-9)
    for name, parameter in trainer.sae.named_parameters():
        # The clip adds 1e-6 to the norm that it divides by.
        torch.testing.assert_close(parameter.detach(), expected[name].detach(), rtol=1e-5, atol=1e-7)


def test_a_step_reports_the_terms_the_coefficient_and_the_learning_rate_as_applied() -> None:
    trainer = make_trainer("gated", num_steps=40)
    rows = [trainer.step(batch(step), step) for step in range(6)]
    for step, row in enumerate(rows):
        assert row["sparsity_coef"] == pytest.approx(0.2 * min(1, (step + 1) / 5))
        assert row["lr"] == pytest.approx(0.01 * min(1, (step + 1) / 4))
        total = row["reconstruction"] + row["sparsity_coef"] * row["sparsity"] + row["auxiliary"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
    before = make_trainer("gated", num_steps=40)
    assert rows[0]["l0"] == (before.sae.encode(batch(0)) > 0).sum() / BATCH


def test_the_gradient_used_has_no_part_along_the_rows_and_the_rest_of_it_is_kept() -> None:
    sae = make_trainer("relu").sae
    sae.W_dec.grad = torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(0))
    before = sae.W_dec.grad.clone()
    project_gradient_(sae)
    removed = before - sae.W_dec.grad
    assert torch.einsum("ij,ij->i", sae.W_dec.grad, sae.W_dec).abs().max() < 1e-6
    for row, part in zip(sae.W_dec, removed, strict=True):
        assert torch.linalg.matrix_rank(torch.stack([row, part]), atol=1e-5) == 1


def test_rows_are_unit_after_every_step_of_the_paper_recipe_and_free_in_the_others() -> None:
    for arch in ("gated", "relu"):
        unit, free = make_trainer(arch, "paper", lr=0.3), make_trainer(arch, "norm_weighted", lr=0.3)
        for step in range(5):
            unit.step(batch(step), step)
            free.step(batch(step), step)
            torch.testing.assert_close(unit.sae.W_dec.norm(dim=1), torch.ones(D_SAE))
        assert (free.sae.W_dec.norm(dim=1) - 0.5).abs().min() > 1e-3


def test_renormalising_keeps_directions() -> None:
    sae = make_trainer("relu").sae
    directions = sae.W_dec.detach().clone()
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.1, 5, D_SAE)[:, None]
    unit_norm_rows_(sae)
    torch.testing.assert_close(sae.W_dec.detach(), directions)


def test_the_seed_decides_the_initial_weights() -> None:
    first, same, other = make_trainer(seed=1), make_trainer(seed=1), make_trainer(seed=2)
    assert torch.equal(first.sae.W_dec, same.sae.W_dec)
    assert not torch.equal(first.sae.W_dec, other.sae.W_dec)
    assert torch.equal(first.sae.W_enc, first.sae.W_dec.T)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("arch", ["gated", "relu"])
def test_a_loss_that_is_not_finite_stops_before_anything_changes(arch: str, bad: float) -> None:
    trainer = make_trainer(arch)
    trainer.step(batch(), 0)
    before = {name: value.clone() for name, value in trainer.tensors().items()}
    x = batch()
    x[3, 2] = bad
    with pytest.raises(DivergenceError) as caught:
        trainer.step(x, 17)
    message = str(caught.value)
    assert "The reconstruction loss of" in message
    assert trainer.config.folder in message
    assert "step 17" in message
    assert "try a third of it (lr)" in message
    for name, value in trainer.tensors().items():
        assert torch.equal(value, before[name]), name


def kill_(trainer: SAETrainer, latents: list[int]) -> None:
    """Biases so low that these latents fire on nothing; in Gated they then get no gradient."""
    name = "b_gate" if trainer.sae.arch == "gated" else "b_enc"
    with torch.no_grad():
        trainer.sae.get_parameter(name)[latents] = -1e3


def features(seed: int, size: int = 256) -> Tensor:
    """Twelve fixed directions, each present in a tenth of the tokens."""
    directions = torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(size, D_SAE, generator=generator) < 0.1
    return (present * (0.5 + torch.rand(size, D_SAE, generator=generator))) @ directions


@pytest.mark.parametrize("arch", ["gated", "relu"])
def test_a_dead_latent_comes_alive_after_resampling_and_not_before(arch: str) -> None:
    trainer = make_trainer(arch, "paper", num_steps=200, dead_window=5 * 256, sparsity_coef=0.02, dips=(50,))
    kill_(trainer, [0, 1, 7])
    for step in range(50):
        row = trainer.step(features(step), step)
    assert row["dead_share"] == 3 / D_SAE
    assert trainer.dead_counter.tokens_since[[0, 1, 7]].tolist() == [50 * 256] * 3
    trainer.resample(features(1000, 2000), torch.Generator().manual_seed(0))
    assert trainer.resampled == 3
    assert trainer.dead_counter.tokens_since[[0, 1, 7]].tolist() == [0, 0, 0]
    for step in range(50, 100):
        row = trainer.step(features(step), step)
    assert row["dead_share"] == 0
    fired = (trainer.sae.encode(features(2000, 2000)) > 0).any(dim=0)
    assert fired[[0, 1, 7]].all()


def test_resampling_without_dead_latents_changes_nothing() -> None:
    trainer = make_trainer("gated", dead_window=10**6)
    trainer.step(batch(), 0)
    before = {name: value.clone() for name, value in trainer.tensors().items()}
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    trainer.resample(batch(1), generator)
    assert trainer.resampled == 0
    assert torch.equal(generator.get_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in trainer.tensors().items())


@pytest.mark.parametrize("arch", ["gated", "relu"])
@pytest.mark.parametrize("aim", [{"target_l0": 2.0}, {"sparsity_coef": 0.1}])
def test_a_trainer_loaded_from_its_tensors_and_numbers_goes_on_to_the_same_bits(
    arch: str, aim: dict[str, float]
) -> None:
    whole, resumed = (make_trainer(arch, "norm_weighted", dead_window=4 * BATCH, **aim) for _ in range(2))
    kill_(whole, [2, 5])
    for step in range(20):
        whole.step(batch(step), step)
    # As a checkpoint would: through safetensors and JSON.
    tensors = {name: value.detach().contiguous().clone() for name, value in whole.tensors().items()}
    stored = safetensors.torch.load(safetensors.torch.save(tensors))
    resumed.load(stored, json.loads(json.dumps(whole.numbers())))
    for step in range(20, 40):
        if step == 21:
            for trainer in (whole, resumed):
                trainer.resample(batch(7), torch.Generator().manual_seed(0))
                assert trainer.resampled == 2
        assert whole.step(batch(step), step) == resumed.step(batch(step), step)
    for name, value in whole.tensors().items():
        assert torch.equal(value, resumed.tensors()[name]), name
    assert whole.numbers() == resumed.numbers()
    assert whole.warnings() == resumed.warnings()


def test_target_l0_moves_the_coefficient_towards_the_target() -> None:
    trainer = make_trainer("relu", target_l0=1.0, num_steps=40)
    rows = [trainer.step(batch(step), step) for step in range(40)]
    for row, after in pairwise(rows[5:]):
        change = after["sparsity_coef"] - row["sparsity_coef"]
        assert change * (row["l0"] - 1.0) >= 0
    assert len({row["sparsity_coef"] for row in rows[5:]}) > 5


@pytest.mark.parametrize("arch", ["gated", "relu"])
def test_a_steered_sae_records_the_coefficient_that_trained_it(arch: str) -> None:
    trainer = make_trainer(arch, target_l0=1.0, num_steps=40)
    rows = [trainer.step(batch(step), step) for step in range(40)]
    assert trainer.trained_coef == pytest.approx(sum(row["sparsity_coef"] for row in rows[-4:]) / 4)
    assert make_trainer(arch, sparsity_coef=0.2).trained_coef == 0.2


def trained(x_of: Callable[[int], Tensor], **changes: Any) -> SAETrainer:
    trainer = make_trainer(num_steps=100, **changes)
    for step in range(100):
        trainer.step(x_of(step), step)
    return trainer


def test_a_run_that_has_settled_draws_no_warning() -> None:
    assert trained(lambda step: batch(0), lr=1e-9).warnings() == []


def test_a_run_that_still_improves_says_so() -> None:
    warnings = trained(lambda step: batch(0), lr=1e-3, arch="relu").warnings()
    assert len(warnings) == 1
    assert warnings[0].startswith("still improving: before the learning rate decayed, the loss fell by ")


def test_a_loss_that_falls_only_in_the_decay_draws_no_warning() -> None:
    trainer = make_trainer("relu", num_steps=100, lr=1e-9, decay=20)
    for step in range(100):
        trainer.step(batch() * (0.9 if step >= 80 else 1.0), step)
    assert trainer.warnings() == []


def test_many_dead_latents_are_a_warning() -> None:
    trainer = make_trainer("relu", num_steps=40, dead_window=4 * BATCH, lr=1e-9)
    kill_(trainer, [0, 1])
    for step in range(40):
        trainer.step(batch(step), step)
    assert trainer.warnings() == ["dead latents: 17% have not fired on the last 128 tokens."]
    kill_one = make_trainer("relu", num_steps=40, dead_window=4 * BATCH, lr=1e-9)
    kill_(kill_one, [0])
    for step in range(40):
        kill_one.step(batch(step), step)
    assert kill_one.warnings() == []


def test_a_missed_target_is_a_warning() -> None:
    warnings = trained(lambda step: batch(step), lr=1e-9, target_l0=1.0, arch="relu").warnings()
    assert len(warnings) == 1
    assert warnings[0].startswith("target missed: the mean L0 at the end is ")
    assert "the target is 1." in warnings[0]


@pytest.mark.parametrize("arch", ["gated", "relu"])
@pytest.mark.parametrize("optimiser", ["latent_adam", "adam"])
def test_a_batch_too_dense_for_one_pass_is_taken_in_parts_to_the_same_steps(
    arch: str, optimiser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = (make_trainer(arch, beta1=0.0, optimiser=optimiser, grad_clip=0.5) for _ in range(2))
    for trainer in (whole, parts):
        trainer.sae.double()
    sizes: list[int] = []
    original = parts.sae.loss

    def counted(x: Tensor, *settings: Any) -> Any:
        sizes.append(len(x))
        return original(x, *settings)

    parts.sae.loss = counted  # pyright: ignore[reportAttributeAccessIssue]
    for step in range(3):
        expected = whole.step(batch(step, dtype=torch.float64), step)
        with monkeypatch.context() as patched:
            limit = {"cpu": 12 * D_SAE * parts.density + 1e-6}
            patched.setattr("penstock.training.trainer.PAIRS_AT_ONCE", limit)
            found = parts.step(batch(step, dtype=torch.float64), step)
        assert found == pytest.approx(expected, rel=1e-9)
    assert sizes == 3 * [12, 12, 8]
    assert parts.density == whole.density
    assert torch.equal(parts.dead_counter.tokens_since, whole.dead_counter.tokens_since)
    for name, value in whole.sae.named_parameters():
        torch.testing.assert_close(parts.sae.get_parameter(name), value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("arch", ["gated", "relu"])
def test_rounded_factors_change_the_gate_a_little_and_leave_weights_in_float32(arch: str) -> None:
    exact, rounded = make_trainer(arch), make_trainer(arch, encoder_precision="bfloat16")
    for step in range(5):
        row, other = exact.step(batch(step), step), rounded.step(batch(step), step)
    assert row["loss"] != other["loss"] and row["loss"] == pytest.approx(other["loss"], rel=0.02)
    assert {parameter.dtype for parameter in rounded.sae.parameters()} == {torch.float32}
    assert (rounded.sae.W_dec != rounded.sae.W_dec.bfloat16()).any()


@pytest.mark.parametrize("optimiser", ["latent_adam", "adam"])
def test_a_latent_whose_gate_opens_without_magnitude_is_trained_too(optimiser: str) -> None:
    trainer = make_trainer("gated", beta1=0.0, optimiser=optimiser)
    with torch.no_grad():
        trainer.sae.get_parameter("b_mag").fill_(-100.0)
    before = trainer.sae.W_enc.detach().clone()
    row = trainer.step(batch(), 0)
    assert row["l0"] == 0 and row["auxiliary"] > 0
    assert (trainer.sae.W_enc != before).any(dim=0).all()


def test_a_resumed_optimiser_has_its_state_where_it_keeps_it() -> None:
    """PyTorch's fused Adam counts steps on the device, where a resumed one found its count on the CPU."""
    elsewhere = torch.empty(3, device="meta")
    count = torch.tensor(7.0)
    assert _placed_like(elsewhere, count, None).device.type == "meta"
    ours = _placed_like(elsewhere, count, torch.tensor(0))
    assert ours.device.type == "cpu" and ours == 7 and ours.data_ptr() != count.data_ptr()
