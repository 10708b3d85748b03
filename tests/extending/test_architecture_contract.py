"""What the library asks of every architecture beyond its page; a new line in ARCHITECTURES is tested by itself."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from penstock.cli.architecture_options import of_one_sae
from penstock.cli.runs import Train
from penstock.formats import load_sae, save_sae
from penstock.kernels import forced
from penstock.saes import ARCHITECTURES, SAE, trainable, training_of
from penstock.training.schedules import Schedule
from penstock.training.settings import SAEConfig
from penstock.training.settings.defaults import PlannedModel
from penstock.training.settings.recipes import KNOWN_RECIPES
from penstock.training.settings.sae_config import ResolvedSAE, resolve_sae
from penstock.training.trainer import SAETrainer

KERNELS = ("reference", "cpu", "cuda") if importlib.util.find_spec("triton") else ("reference", "cpu")

MakeSAE = Callable[..., SAE]


def settled(arch: str) -> ResolvedSAE:
    aim = {} if not training_of(arch).aims else {"sparsity_coef": 0.1}
    asked = SAEConfig(
        arch=arch, site="resid_post.0", d_sae=10, lr=0.01, beta1=0.0, optimiser="latent_adam", grad_clip=0.0,
        decoder_init_norm=1.0, **aim,
    )  # fmt: skip
    return resolve_sae(asked, PlannedModel("model", 8, {}), num_steps=4, warmup_share=0.0)


@pytest.mark.parametrize("arch", trainable())
def test_two_steps_are_the_same_on_every_kernel(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    found = {}
    for kernels in KERNELS:
        trainer = SAETrainer(
            settled(arch), Schedule(num_steps=4, warmup=0, decay=0, sparsity_warmup=0), d_in=6, beta2=0.999,
            encoder_precision="float32", dead_window=10**6, encoder_scale=0.2, device="cpu",
        )  # fmt: skip
        with forced(kernels):
            rows = [trainer.step(x, step) for step in range(2)]
        assert rows[1]["loss"] < rows[0]["loss"]
        found[kernels] = trainer.sae.state_dict()
    for kernels in KERNELS[1:]:
        for name, value in found["reference"].items():
            torch.testing.assert_close(found[kernels][name], value, rtol=1e-4, atol=1e-5, msg=f"{kernels}: {name}")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_settings_and_outputs_come_back_to_the_bit(arch: str, random_sae: MakeSAE, tmp_path: Path) -> None:
    sae = random_sae(arch, dtype=torch.float32)
    save_sae(sae, tmp_path, {})
    loaded, facts = load_sae(tmp_path)
    assert facts.arch == arch and facts.settings == loaded.settings == sae.settings
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded.encode(x), sae.encode(x))
    assert torch.equal(loaded(x), sae(x))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_its_code_is_negative_only_if_it_says_so(arch: str, random_sae: MakeSAE) -> None:
    acts = random_sae(arch).encode(torch.randn(50, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    assert ARCHITECTURES[arch].negative_code == bool((acts < 0).any())


@pytest.mark.parametrize("arch", trainable())
def test_its_default_recipe_is_one_that_it_can_be_trained_with(arch: str) -> None:
    training = training_of(arch)
    assert KNOWN_RECIPES[training.default_recipe].rule.decoder_norm in training.decoder_norms


def test_own_settings_of_one_name_have_one_type() -> None:
    types: dict[str, object] = {}
    for architecture in ARCHITECTURES.values():
        for name, kind in architecture.settings.__annotations__.items():
            assert types.setdefault(name, kind) == kind, f"--{name} cannot be one option for {architecture.label}"


def test_every_own_setting_is_an_option_that_no_other_option_has() -> None:
    options = {name for name in of_one_sae(Train).__dataclass_fields__}
    assert {name for one in ARCHITECTURES.values() for name in one.settings.names()} <= options
    assert not {name for one in ARCHITECTURES.values() for name in one.settings.names()} & {*Train.__dataclass_fields__}
