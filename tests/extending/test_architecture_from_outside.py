"""An architecture in a file of its own goes through everything: options, training, files, comparison, report."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.cli import main
from penstock.formats import SAEFileError, load_sae, save_sae
from penstock.runs.estimate import step_flops
from penstock.saes import ARCHITECTURES
from penstock.training.settings import SAEConfig
from penstock.training.settings.config_file import read_config

COMMON = (
    "--site", "resid_post.0", "--d-sae", "32", "--context", "32", "--tokens", "1920", "--batch-size", "64",
    "--buffer-tokens", "512", "--eval-tokens", "300", "--bootstrap", "20", "--threads", "1", "--model-batch-rows", "8",
)  # fmt: skip

Told = Callable[..., int]


@pytest.fixture(autouse=True, scope="module")
def topk() -> Iterator[None]:
    """Registers the architecture, which is all that a user does."""
    spec = importlib.util.spec_from_file_location("topk_from_outside", Path(__file__).with_name("topk.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    ARCHITECTURES["topk"] = module.TOPK
    yield
    del ARCHITECTURES["topk"], sys.modules[spec.name]


@pytest.fixture(scope="module")
def swept(topk: None, tiny_lm_folder: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extending") / "run"
    options = [*COMMON]
    chosen = ("--arch", "topk", "relu", "--k", "2", "4", "--target-l0", "2", "4")
    command = ["sweep", "--model", str(tiny_lm_folder), "--text", str(corpus), "--out", str(folder), *options, *chosen]
    assert main(command) == 0
    return folder


def names(run: Path) -> list[str]:
    return [sae.folder for sae in read_config(run).saes]


def test_its_settings_are_options_and_part_of_the_names(swept: Path) -> None:
    assert [name for name in names(swept) if name.startswith("topk")] == [
        "topk-paper_clipped-resid_post.0-32-k_2-seed0",
        "topk-paper_clipped-resid_post.0-32-k_4-seed0",
    ]


def test_its_settings_come_back_exactly(swept: Path) -> None:
    for sae in read_config(swept).saes:
        if sae.arch == "topk":
            loaded, facts = load_sae(swept / "saes" / sae.folder)
            assert facts.settings == loaded.settings == sae.own_settings
            code = loaded.encode(torch.randn(7, 16, generator=torch.Generator().manual_seed(0)))
            assert ((code != 0).sum(dim=1) == sae.own_settings.to_json()["k"]).all()
            assert f"k={sae.own_settings.to_json()['k']}" in repr(loaded)


def test_an_sae_saved_with_k_3_has_k_3_again(tmp_path: Path) -> None:
    sae = ARCHITECTURES["topk"].make(6, 10, {"k": 3})
    save_sae(sae, tmp_path, {})
    assert json.loads((tmp_path / "cfg.json").read_text())["settings"] == {"k": 3}
    assert load_sae(tmp_path).sae.settings == sae.settings
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"settings": {"k": 3, "kk": 1}}))
    with pytest.raises(SAEFileError, match="kk has no effect on 'topk', which takes k"):
        load_sae(tmp_path)


def test_it_is_evaluated_and_compared_and_drawn(swept: Path) -> None:
    records = [json.loads(line) for line in (swept / "records.jsonl").read_text().splitlines()]
    l0 = {record["name"]: record["l0"] for record in records if record["arch"] == "topk"}
    assert list(l0.values()) == pytest.approx([2, 4], abs=0.2)
    (comparison,) = json.loads((swept / "comparison.json").read_text())["comparisons"]
    assert (comparison["arm"], comparison["baseline"]) == ("topk", "relu")
    assert "TopK" in (swept / "report.html").read_text()
    assert main(["eval", str(swept / "saes" / names(swept)[0]), "--eval-tokens", "100", "--bootstrap", "10"]) == 0
    assert main(["info", str(swept / "saes" / names(swept)[0])]) == 0


def test_it_resumes_to_the_same_bits(
    swept: Path, tiny_lm_folder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.training.trainer import SAETrainer

    step = SAETrainer.step

    def broken(trainer: SAETrainer, x: torch.Tensor, number: int, *validation: Any) -> dict[str, float]:
        if number == 20:
            raise OSError("stopped on purpose")
        return step(trainer, x, number, *validation)

    command = ["--model", str(tiny_lm_folder), "--text", str(corpus), "--checkpoint-steps", "10", *COMMON]
    with monkeypatch.context() as patch:
        patch.setattr(SAETrainer, "step", broken)
        assert main(["train", "--arch", "topk", "--k", "2", "--out", str(tmp_path / "run"), *command]) == 1
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    (name,) = names(tmp_path / "run")
    one, other = (load_sae(run / "saes" / name).sae.state_dict() for run in (tmp_path / "run", swept))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--k", "0"), "k=0 is out of range"),
        (("--target-l0", "4"), "target_l0=4.0 has no effect on 'topk'"),
        (("--recipe", "norm_weighted"), "recipe='norm_weighted' has decoder_norm='free'"),
        (("--arch", "relu", "--k", "4"), "k has no effect on 'relu'"),
    ],
)
def test_options_without_effect_are_refused(
    options: tuple[str, ...], said: str, tiny_lm_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arch = () if "--arch" in options else ("--arch", "topk")
    command = ["train", "--model", str(tiny_lm_folder), "--out", str(tmp_path / "run"), *arch, *COMMON, *options]
    assert main(command) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_its_cost_follows_from_its_facts() -> None:
    sae = SAEConfig(arch="topk", site="resid_post.0", d_sae=64, settings={"k": 4})
    relu = replace(sae, arch="relu", settings=None, target_l0=4.0)
    assert sae.aimed_l0 == 4
    assert step_flops(sae, 16, 32, 4.0) == step_flops(relu, 16, 32, 4.0)
