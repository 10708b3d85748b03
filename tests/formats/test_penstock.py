"""SAEs written to disk come back as they were, and damage is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from penstock.formats import SAEFileError, load_sae, save_sae
from penstock.kernels import forced
from penstock.saes import ARCHITECTURES, SAE, ReLUSAE, trainable

MakeSAE = Callable[..., SAE]

METADATA = {
    "model": "embedded",
    "site": "resid_post.2",
    "recipe": "paper",
    "sparsity_coef": 0.125,
    "seed": None,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_sae_comes_back_bit_for_bit(arch: str, dtype: torch.dtype, random_sae: MakeSAE, tmp_path: Path) -> None:
    sae = random_sae(arch, dtype=dtype)
    save_sae(sae, tmp_path / "new" / "folder", METADATA)
    loaded, facts = load_sae(tmp_path / "new" / "folder")

    assert type(loaded) is type(sae)
    assert facts.metadata == METADATA
    assert facts.format == "penstock"
    assert loaded.settings == facts.settings == sae.settings
    assert loaded.W_enc.T.is_contiguous(), "what the kernels and LatentAdam gather"
    before, after = sae.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    for name, value in before.items():
        assert after[name].dtype == dtype
        assert torch.equal(after[name], value), name
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(loaded(x), sae(x))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_default_device_does_not_move_a_part_of_an_sae(arch: str, random_sae: MakeSAE, tmp_path: Path) -> None:
    sae = random_sae(arch)
    save_sae(sae, tmp_path, METADATA)
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.device("meta"), forced("cpu"):
        loaded, _ = load_sae(tmp_path)
        found = loaded(x), loaded.encode(x)
    with forced("cpu"):
        assert torch.equal(found[0], sae(x)) and torch.equal(found[1], sae.encode(x))


@pytest.mark.parametrize("arch", trainable())
@pytest.mark.parametrize(("d_in", "d_sae"), [(1, 3), (3, 1), (1, 1)])
def test_saes_of_width_one_can_be_saved(arch: str, d_in: int, d_sae: int, tmp_path: Path) -> None:
    sae = ARCHITECTURES[arch].make_trainable(d_in, d_sae)
    save_sae(sae, tmp_path, {})
    assert torch.equal(load_sae(tmp_path).sae.W_enc, sae.W_enc)


def test_a_loaded_sae_asks_for_no_gradients(random_sae: MakeSAE, tmp_path: Path) -> None:
    save_sae(random_sae("gated"), tmp_path, {})
    assert not any(parameter.requires_grad for parameter in load_sae(tmp_path).sae.parameters())


def test_cfg_json_describes_the_sae(random_sae: MakeSAE, tmp_path: Path) -> None:
    save_sae(random_sae("gated", 6, 10, dtype=torch.float32), tmp_path, METADATA)
    assert json.loads((tmp_path / "cfg.json").read_text()) == {
        "architecture": "gated",
        "d_in": 6,
        "d_sae": 10,
        "settings": {},
        "dtype": "float32",
        "metadata": METADATA,
    }


def test_tensors_are_stored_under_the_names_and_shapes_of_the_parameters(random_sae: MakeSAE, tmp_path: Path) -> None:
    save_sae(random_sae("gated", 6, 10), tmp_path, {})
    tensors = safetensors.torch.load_file(tmp_path / "sae.safetensors")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "W_enc": (6, 10),
        "b_gate": (10,),
        "b_mag": (10,),
        "r_mag": (10,),
        "W_dec": (10, 6),
        "b_dec": (6,),
    }


def test_a_square_sae_is_not_transposed(random_sae: MakeSAE, tmp_path: Path) -> None:
    sae = random_sae("relu", 6, 6)
    save_sae(sae, tmp_path, {})
    assert torch.equal(load_sae(tmp_path).sae.W_enc, sae.W_enc)
    assert not torch.equal(sae.W_enc, sae.W_enc.T)


def test_a_loaded_sae_does_not_depend_on_its_file_any_more(random_sae: MakeSAE, tmp_path: Path) -> None:
    sae = random_sae("relu")
    save_sae(sae, tmp_path, {})
    loaded = load_sae(tmp_path).sae
    # In place and of the same length: were the tensors views of the file, they would turn to zero.
    with (tmp_path / "sae.safetensors").open("r+b") as file:
        file.write(bytes((tmp_path / "sae.safetensors").stat().st_size))
    assert torch.equal(loaded.W_dec, sae.W_dec)


def test_a_loaded_sae_can_be_saved_to_the_folder_it_came_from(random_sae: MakeSAE, tmp_path: Path) -> None:
    sae = random_sae("relu")
    save_sae(sae, tmp_path, {})
    loaded = load_sae(tmp_path).sae
    loaded.W_dec.mul_(2)
    save_sae(loaded, tmp_path, {})
    assert torch.equal(load_sae(tmp_path).sae.W_dec, 2 * sae.W_dec)


@pytest.fixture
def saved(random_sae: MakeSAE, tmp_path: Path) -> Path:
    save_sae(random_sae("gated"), tmp_path / "sae", METADATA)
    return tmp_path / "sae"


@pytest.mark.parametrize("missing", ["cfg.json", "sae.safetensors"])
def test_a_missing_file_is_named(saved: Path, missing: str) -> None:
    (saved / missing).unlink()
    with pytest.raises(SAEFileError, match=f"is not an SAE: {missing} missing"):
        load_sae(saved)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SAEFileError, match="nowhere is not an SAE: there is no such folder"):
        load_sae(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("cfg.json", b'{"architecture": "gat'),
        ("cfg.json", b"\xff\xfe\x00"),
        ("cfg.json", b""),
        ("sae.safetensors", b""),
        ("sae.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{ nonsense"),
    ],
)
def test_a_damaged_file_is_an_error_that_says_so(saved: Path, file: str, content: bytes) -> None:
    (saved / file).write_bytes(content)
    with pytest.raises(SAEFileError, match="is damaged|is not valid JSON|is not UTF-8"):
        load_sae(saved)


def test_a_truncated_tensor_file_is_an_error_that_says_so(saved: Path) -> None:
    whole = (saved / "sae.safetensors").read_bytes()
    (saved / "sae.safetensors").write_bytes(whole[:-8])
    with pytest.raises(SAEFileError, match="is damaged"):
        load_sae(saved)


def rewrite_cfg(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(change(cfg)))


def test_an_unknown_architecture_is_an_error_that_lists_the_known_ones(saved: Path) -> None:
    rewrite_cfg(saved, lambda cfg: cfg | {"architecture": "gatd"})
    known = "gated, gated_no_auxiliary, gated_no_r_mag, gated_untied, jumprelu, relu"
    with pytest.raises(SAEFileError, match=f"'gatd', which is not known: it must be one of {known}"):
        load_sae(saved)


@pytest.mark.parametrize("key", ["architecture", "d_in", "d_sae"])
def test_a_cfg_without_what_it_takes_is_an_error(saved: Path, key: str) -> None:
    rewrite_cfg(saved, lambda cfg: {name: value for name, value in cfg.items() if name != key})
    with pytest.raises(SAEFileError, match=f"cfg.json: {key} is missing; it must be a"):
        load_sae(saved)


def test_a_cfg_that_is_no_object_is_an_error(saved: Path) -> None:
    rewrite_cfg(saved, lambda cfg: [cfg])
    with pytest.raises(SAEFileError, match="must be an object"):
        load_sae(saved)


@pytest.mark.parametrize("change", [{"d_sae": 11}, {"d_in": 7}, {"architecture": "relu"}])
def test_tensors_that_do_not_fit_the_cfg_are_an_error(saved: Path, change: dict[str, Any]) -> None:
    rewrite_cfg(saved, lambda cfg: cfg | change)
    with pytest.raises(SAEFileError, match="does not fit"):
        load_sae(saved)


def test_both_files_of_a_saved_sae_can_be_read_by_the_same_people(tmp_path: Path) -> None:
    save_sae(ReLUSAE(2, 4), tmp_path / "sae", {})
    modes = {path.stat().st_mode for path in (tmp_path / "sae").iterdir()}
    assert len(modes) == 1
