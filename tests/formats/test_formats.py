"""Formats are found by what a folder holds; those of other libraries are named; one can be added from outside."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from penstock.formats import FORMATS, SAEFacts, SAEFileError, SavedSAE, format_of, load_sae, read_facts, save_sae
from penstock.saes import ARCHITECTURES, SAE

MakeSAE = Callable[..., SAE]

SPARSIFY = {
    "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": 0, "k": 32,
    "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": 4,
}  # fmt: skip
SAELENS = {
    "d_in": 4, "d_sae": 8, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True, "architecture": "gated",
    "normalize_activations": "none", "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.0.hook_mlp_out"},
}  # fmt: skip
DICTIONARY_LEARNING = {"trainer": {"dict_class": "GatedAutoEncoder", "activation_dim": 4, "dict_size": 8}}
LAYOUTS: dict[str, dict[str, Any]] = {
    "SAELens": {"cfg.json": SAELENS, "sae_weights.safetensors": b"weights"},
    # Versions before 6 had no metadata.
    "SAELens (version 5)": {
        "cfg.json": {"d_in": 4, "d_sae": 8, "hook_name": "a"},
        "sae_weights.safetensors": b"weights",
    },
    "SAELens (weights missing)": {"cfg.json": SAELENS},
    "dictionary_learning": {"config.json": DICTIONARY_LEARNING, "ae.pt": b"pickle"},
    "dictionary_learning (weights alone)": {"ae.pt": b"pickle"},
    "sparsify": {"cfg.json": SPARSIFY, "sae.safetensors": b"weights"},
    "Gemma Scope": {"params.npz": b"arrays"},
}


def lay_out(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_another_library_is_named_with_what_to_do(layout: str, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "sae", LAYOUTS[layout])
    library = layout.split(" (")[0]
    for read in (load_sae, read_facts):
        with pytest.raises(SAEFileError) as caught:
            read(folder)
        assert f"holds an SAE of {library} (" in str(caught.value)
        assert "penstock.save_sae: docs/formats.md says how" in str(caught.value)
        assert "damaged" not in str(caught.value)


def test_a_folder_of_several_saes_names_those_inside(tmp_path: Path) -> None:
    for number in range(5):
        lay_out(tmp_path / f"layers.{number}", LAYOUTS["sparsify"])
    with pytest.raises(SAEFileError, match=r"folders inside it are: layers\.0, layers\.1, layers\.2 and 2 more"):
        load_sae(tmp_path)


def test_a_run_is_not_an_sae_and_its_saes_are_named(random_sae: MakeSAE, tmp_path: Path) -> None:
    save_sae(random_sae("relu"), tmp_path / "run" / "saes" / "first", {})
    with pytest.raises(SAEFileError, match="folders inside it are: saes/first"):
        load_sae(tmp_path / "run")


def test_a_file_in_place_of_its_folder_is_said(random_sae: MakeSAE, tmp_path: Path) -> None:
    save_sae(random_sae("relu"), tmp_path / "sae", {})
    with pytest.raises(SAEFileError, match=r"cfg\.json is a file\. Give the folder that holds it: .*sae"):
        load_sae(tmp_path / "sae" / "cfg.json")


def test_an_empty_folder_is_not_an_sae(tmp_path: Path) -> None:
    with pytest.raises(SAEFileError, match=r"is not an SAE: it has no cfg\.json"):
        load_sae(tmp_path)


def test_an_unknown_format_is_refused_before_anything_is_written(random_sae: MakeSAE, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format='saelens' is not known: it must be one of penstock"):
        save_sae(random_sae("relu"), tmp_path / "sae", {}, format="saelens")
    assert not (tmp_path / "sae").exists()


class OneFile:
    """A format added from outside: a single file, its facts in the header."""

    def detect(self, path: Path) -> bool:
        return (path / "one.safetensors").is_file()

    def read_facts(self, path: Path) -> SAEFacts:
        with safetensors.safe_open(path / "one.safetensors", "pt") as file:
            about = json.loads(file.metadata()["about"])
        return SAEFacts(
            about["arch"], about["d_in"], about["d_sae"], ARCHITECTURES[about["arch"]].settings_of(None), {}
        )

    def read(self, path: Path, *, device: str) -> SavedSAE:
        facts = self.read_facts(path)
        sae = ARCHITECTURES[facts.arch].make(facts.d_in, facts.d_sae, facts.settings)
        sae.load_state_dict(safetensors.torch.load_file(path / "one.safetensors", device=device))
        return SavedSAE(sae, facts)

    def write(self, sae: SAE, path: Path, metadata: dict[str, Any]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        about = {"about": json.dumps({"arch": sae.arch, "d_in": sae.d_in, "d_sae": sae.d_sae})}
        tensors = {name: value.contiguous() for name, value in sae.state_dict().items()}
        safetensors.torch.save_file(tensors, path / "one.safetensors", about)


def test_a_format_can_be_added_from_outside(
    random_sae: MakeSAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "one-file", OneFile())
    sae = random_sae("gated", dtype=torch.float32)
    save_sae(sae, tmp_path / "sae", {}, format="one-file")
    assert format_of(tmp_path / "sae") == "one-file"
    loaded, facts = load_sae(tmp_path / "sae")
    assert (facts.format, facts.arch, facts.d_sae) == ("one-file", "gated", 10)
    assert read_facts(tmp_path / "sae") == facts
    x = torch.ones(3, 6)
    assert torch.equal(loaded(x), sae(x))
    # And converted into penstock's own.
    save_sae(loaded, tmp_path / "own", facts.metadata)
    assert format_of(tmp_path / "own") == "penstock"
    assert torch.equal(load_sae(tmp_path / "own").sae(x), sae(x))
