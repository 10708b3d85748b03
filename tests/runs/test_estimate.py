"""Estimates by hand on tiny numbers, against real SAEs and trainers, and against products counted in a real step."""

from collections import Counter
from typing import Any

import pytest
import torch

from penstock.kernels import reference
from penstock.kernels.dispatch import forced
from penstock.paper.presets import PRESETS
from penstock.runs.estimate import Estimate, estimate, parameters, step_flops
from penstock.saes import ARCHITECTURES, trainable
from penstock.training.schedules import Schedule
from penstock.training.settings import DataConfig, LanguageModelConfig, OptimConfig, ResolvedRun, RunConfig, SAEConfig
from penstock.training.settings.defaults import PlannedModel
from penstock.training.settings.recipes import RECIPES
from penstock.training.trainer import SAETrainer

D_IN, D_SAE = 6, 10


def sae_config(arch: str = "gated", site: str = "resid_post.0", **changes: Any) -> SAEConfig:
    settings: dict[str, Any] = {"d_sae": D_SAE, "recipe": "paper"}
    settings |= {} if "sparsity_coef" in changes else {"target_l0": 3.0}
    return SAEConfig(arch=arch, site=site, **(settings | changes))


def decided(config: RunConfig) -> ResolvedRun:
    return config.resolve(PlannedModel("model", context=128, widths=dict.fromkeys(config.sites, D_IN)))


def run_config(*saes: SAEConfig, data: dict[str, Any] | None = None, **changes: Any) -> ResolvedRun:
    """Ten steps of 8 tokens, on one thread."""
    settings: dict[str, Any] = {"tokens": 80, "buffer_tokens": 20} if data is None else data
    rest = {"optim": OptimConfig(batch_size=8), "threads": 1} | changes
    return decided(RunConfig(saes=saes, data=DataConfig(**settings), **rest))


def in_layers(*saes: SAEConfig, **arguments: Any) -> Estimate:
    """A model of 4 blocks and 1,000 parameters."""
    return estimate(run_config(*saes), {sae.site: D_IN for sae in saes}, 1000, 4, **arguments)


def test_a_run_by_hand() -> None:
    """Two SAEs at one site, in the second of 4 blocks."""
    saes = (sae_config(site="mlp_out.1"), sae_config("relu", site="mlp_out.1", d_sae=20))
    found = in_layers(*saes)
    assert (found.tokens, found.steps) == (80, 10)
    assert found.flops_language_model == 2 * 1000 * 80 * 2 / 4
    # Encoder product 2*8*6*10 and b_dec's 2*6*10; 8*3 pairs, 2*6 operations, 2 + 2 + 1 + 1 and 1 + 1 + 1 + 1 times.
    gated = 960 + 120 + 24 * 12 * 6
    relu = 1920 + 240 + 24 * 12 * 4
    assert found.flops_saes == 10 * (gated + relu)
    assert found.bytes_language_model == 4 * 1000
    assert found.bytes_parameters == 4 * ((120 + 30 + 6) + (240 + 20 + 6))
    # Second moments; one count of steps; last update and last firing of each latent.
    assert found.bytes_optimiser == (4 * 156 + 8 + 16 * 10) + (4 * 266 + 8 + 16 * 20)
    assert found.bytes_activations == 4 * 3 * 20 * 6
    # One thread: the larger of both. Gradients, 10 tensors of half of all pairs, 5 or 3 of 8*6 numbers, a block.
    gated_step = 4 * (156 + 10 * 40 + 5 * 48 + 80)
    relu_step = 4 * (266 + 10 * 80 + 3 * 48 + 160)
    assert found.bytes_batch == 4 * 2 * 8 * 6 + max(gated_step, relu_step)
    assert found.bytes_total == sum(found[4:9])
    two_threads = estimate(run_config(*saes, threads=2), {"mlp_out.1": D_IN}, 1000, 4)
    assert two_threads.bytes_batch == 4 * 2 * 8 * 6 + gated_step + relu_step


def test_an_accelerator_steps_one_sae_at_a_time_and_takes_more_pairs_at_once() -> None:
    sae = sae_config(d_sae=2**20)
    other = sae_config(d_sae=2**20, seed=1)
    on = {
        device: estimate(
            run_config(
                sae,
                other,
                data={"tokens": 40_960, "buffer_tokens": 4096},
                optim=OptimConfig(),
                language_model=LanguageModelConfig(device=device),
                threads=2,
            ),
            {"resid_post.0": D_IN},
            1000,
            4,
        )
        for device in ("cpu", "cuda:1")
    }
    batch, step = 4 * 2 * 4096 * D_IN, 4 * (parameters(sae, D_IN) + 5 * 4096 * D_IN)
    assert on["cpu"].bytes_batch == batch + 2 * (step + 4 * (10 * 2**23 + 2**23))
    assert on["cuda:1"].bytes_batch == batch + step + 4 * (10 * 2**26 + 2**27)


@pytest.mark.parametrize(
    ("sites", "share"),
    [
        (("resid_post.0",), 1 / 4),
        (("resid_pre.3",), 1.0),
        (("mlp_out.0", "attn_z.2", "mlp_act.1"), 3 / 4),
        (("model.layers.1.mlp.down_proj.input",), 2 / 4),
        (("model.layers.2.output",), 3 / 4),
        (("model.norm.output",), 1.0),
    ],
)
def test_the_language_model_runs_up_to_the_deepest_site(sites: tuple[str, ...], share: float) -> None:
    found = in_layers(*(sae_config(site=site) for site in sites))
    assert found.flops_language_model == pytest.approx(2 * 1000 * 80 * share)


def test_a_cache_is_harvested_once() -> None:
    config = run_config(sae_config(), data={"tokens": 80, "cache_tokens": 32})
    found = estimate(config, {"resid_post.0": D_IN}, 1000, 4)
    assert found.flops_language_model == 2 * 1000 * 32 / 4
    assert found.flops_saes == in_layers(sae_config()).flops_saes
    assert found.bytes_activations == 4 * 2 * 32 * 6


def test_a_buffer_left_open_has_its_default_size() -> None:
    for tokens, held in ((2**19, 2**18), (80, 80)):
        config = run_config(sae_config(), data={"tokens": tokens})
        assert estimate(config, {"resid_post.0": D_IN}, 1000, 4).bytes_activations == 4 * 3 * held * 6


def test_half_precision_halves_the_language_model_only() -> None:
    model = LanguageModelConfig(dtype="bfloat16")
    found = estimate(run_config(sae_config(), language_model=model), {"resid_post.0": D_IN}, 1000, 4)
    expected = in_layers(sae_config())
    assert found.bytes_language_model == 2000
    assert found.bytes_total == expected.bytes_total - 2000


def test_without_a_target_the_l0_is_what_is_given() -> None:
    sae = sae_config(sparsity_coef=0.1)
    assert in_layers(sae, pairs_per_token=3.0).flops_saes == in_layers(sae_config()).flops_saes
    assert in_layers(sae).flops_saes == 10 * step_flops(sae, D_IN, 8, 100.0)


def test_hours_are_operations_over_speed() -> None:
    found = in_layers(sae_config())
    operations = found.flops_language_model + found.flops_saes
    assert found.hours(operations) == pytest.approx(1 / 3600)
    assert found.hours(operations / 7200) == pytest.approx(2)
    with pytest.raises(ValueError, match="must be above 0"):
        found.hours(0.0)


@pytest.mark.parametrize("arch", trainable())
@pytest.mark.parametrize("recipe", ["paper", "norm_weighted"])
def test_bytes_are_those_of_a_real_trainer(arch: str, recipe: str) -> None:
    """`paper` has `latent_adam`, `norm_weighted` PyTorch's Adam with a first moment."""
    sae = sae_config(arch, recipe=recipe)
    config = run_config(sae)
    trainer = SAETrainer(
        config.saes[0],
        Schedule(num_steps=10, warmup=1, decay=0, sparsity_warmup=0),
        d_in=D_IN,
        beta2=0.999,
        encoder_precision="float32",
        dead_window=10,
        encoder_scale=0.2,
        device="cpu",
    )
    with forced("reference"):
        trainer.step(torch.randn(8, D_IN, generator=torch.Generator().manual_seed(0)), 0)
    sizes: Counter[bool] = Counter()
    # Where r_mag is a constant it is no parameter, and of the size of a bias.
    constants = {f"sae/{name}" for name, _ in trainer.sae.named_buffers()}
    for name, tensor in trainer.tensors().items():
        if name not in constants:
            sizes[name.startswith("sae/")] += tensor.nbytes
    found = estimate(config, {"resid_post.0": D_IN}, 1000, 4)
    assert found.bytes_parameters == sizes[True] == 4 * parameters(sae, D_IN)
    assert found.bytes_optimiser == sizes[False]


@pytest.mark.parametrize(
    ("arch", "recipe"),
    [("gated", "paper"), ("gated", "norm_weighted"), ("gated", "norm_weighted_frozen"), ("relu", "paper")],
)
def test_operations_are_those_of_a_real_step(arch: str, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts what the kernels are asked for in a forward and backward pass; b_dec's gradient is no kernel's."""
    batch, counted = 16, Counter()
    originals = {name: getattr(reference, name) for name in ("select", "decode", "value_gradients", "weight_gradient")}

    def select(x: torch.Tensor, W_enc: torch.Tensor, *rest: Any) -> Any:
        counted["dense"] += 2 * x.shape[0] * W_enc.numel()
        return originals["select"](x, W_enc, *rest)

    def on_support(name: str) -> Any:
        def call(support: Any, codes: Any, *rest: Any) -> Any:
            counted["support"] += 2 * D_IN * len(codes) * len(support.indices)
            return originals[name](support, codes, *rest)

        return call

    monkeypatch.setattr(reference, "select", select)
    for name in ("decode", "value_gradients", "weight_gradient"):
        monkeypatch.setattr(reference, name, on_support(name))
    sae = ARCHITECTURES[arch].make_trainable(D_IN, D_SAE)
    x = torch.randn(batch, D_IN, generator=torch.Generator().manual_seed(0))
    with forced("reference"):
        loss = sae.loss(x, 0.1, RECIPES[recipe].rule)
        loss.total.backward()
    pairs = len(loss.acts.values)
    assert pairs > batch
    b_dec = 2 * D_IN * D_SAE
    expected = step_flops(sae_config(arch, recipe=recipe), D_IN, batch, pairs / batch)
    assert counted["dense"] + counted["support"] + b_dec == pytest.approx(expected)


def test_at_the_papers_sizes_the_number_of_latents_decides_what_a_step_costs() -> None:
    """The encoder's product is nearly all of it, so 1.5 times the latents cost 1.5 times as much."""
    gated = step_flops(sae_config(d_sae=2**17), 3072, 4096, 50.0)
    assert step_flops(sae_config("relu", d_sae=2**17), 3072, 4096, 50.0) == pytest.approx(gated, rel=1e-3)
    assert step_flops(sae_config("relu", d_sae=3 * 2**16), 3072, 4096, 50.0) == pytest.approx(1.5 * gated, rel=1e-2)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_estimated(name: str) -> None:
    preset = PRESETS[name]
    for config, site in zip(preset.run_configs(), preset.sites, strict=True):
        config = config.resolve(preset.planned_model())
        found = estimate(config, {site.name: site.d_in.value}, preset.model_parameters.value, preset.num_layers.value)
        assert found.tokens == preset.steps.value * preset.optim["batch_size"].value
        assert found.bytes_parameters >= len(config.saes) * 8 * site.d_in.value * site.arms["gated"].d_sae.value
        assert found.flops_language_model > 0 and 0 < found.hours(1e14) < found.hours(1e13)


def test_what_cannot_be_estimated_is_refused() -> None:
    config = run_config(sae_config(site="resid_post.4"))
    with pytest.raises(ValueError, match="widths lacks resid_post.4"):
        estimate(config, {}, 1000, 5)
    with pytest.raises(ValueError, match="is in block 4, but the language model has 4 blocks"):
        estimate(config, {"resid_post.4": D_IN}, 1000, 4)
    model = LanguageModelConfig(dtype="int8")
    with pytest.raises(ValueError, match="'int8' is not known"):
        estimate(run_config(sae_config(), language_model=model), {"resid_post.0": D_IN}, 1000, 4)
