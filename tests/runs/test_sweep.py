"""A sweep on a tiny model: its directory, its records, and saved SAEs evaluated again."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from penstock.formats import load_sae, save_sae
from penstock.kernels import buffers
from penstock.language_models.loading import LanguageModel
from penstock.language_models.stdlib_corpus import Split
from penstock.language_models.texts import documents
from penstock.runs import sweep
from penstock.runs.load_model import load_language_model
from penstock.runs.run_evaluation import evaluate_run, evaluate_saes
from penstock.saes import GatedSAE
from penstock.training.settings import DataConfig, EvalConfig, LanguageModelConfig, RunConfig
from penstock.training.settings.config_file import config_from_file, read_config

MakeRun = Callable[..., RunConfig]

GATED = "gated-paper-resid_post.0-48-l0_1-lr_0.03-seed0"
RELU = "relu-norm_weighted-resid_post.1-32-coef_0.6-seed0"
CONTROLS = ("identity", "zero", "mean", "pca_1")


@pytest.fixture(scope="module")
def swept(tiny_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("sweep") / "runs" / "first"
    return folder, sweep.run_sweep(tiny_run(), folder)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def strict_json(text: str) -> Any:
    """JSON without NaN and Infinity, which Python would read but nothing else."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def write_corpus(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return path


def test_a_run_is_a_directory_with_all_its_files(swept: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = swept
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "environment.json", "metrics.jsonl", "saes", ".lock"),
        *("records.jsonl", "comparison.json", "sums.safetensors"),
    }
    assert {path.name for path in (folder / "saes").iterdir()} == {GATED, RELU}
    for name in ("config.json", "environment.json", "comparison.json"):
        strict_json((folder / name).read_text())
    for name in ("records.jsonl", "metrics.jsonl"):
        assert [strict_json(line) for line in (folder / name).read_text().splitlines()]


def test_records_hold_every_sae_and_control_and_are_what_is_returned(
    swept: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, records = swept
    assert read_lines(folder / "records.jsonl") == json.loads(json.dumps(records))
    expected = {GATED, RELU} | {f"{c}-resid_post.{layer}" for c in CONTROLS for layer in (0, 1)}
    assert {record["name"] for record in records} == expected
    assert len({tuple(sorted(record)) for record in records}) == 1
    by_name = {record["name"]: record for record in records}
    for layer in (0, 1):
        identity, zero, mean, pca = (by_name[f"{control}-resid_post.{layer}"] for control in CONTROLS)
        assert identity["delta_ce"] == pytest.approx(0, abs=1e-6)
        assert identity["fvu"] == pytest.approx(0, abs=1e-9)
        assert zero["ce_spliced"] == zero["ce_zero"] != zero["ce_clean"]
        # The control's mean is that of training tokens, the metric's that of the held-out ones.
        assert mean["fvu"] == pytest.approx(1, abs=0.05)
        assert 0.3 < pca["fvu"] < 1
        assert (pca["d_in"], pca["d_sae"], pca["l0"]) == (16, 1, 1)
    gated = by_name[GATED]
    assert (gated["arch"], gated["recipe"], gated["target_l0"], gated["seed"]) == ("gated", "paper", 1.0, 0)
    assert (gated["d_in"], gated["d_sae"], gated["tokens_trained"]) == (16, 48, 3840)
    assert gated["resampled"] > 3
    assert gated["tokens_evaluated"] >= 300
    metadata = load_sae(folder / "saes" / GATED).metadata
    assert gated["sparsity_coef"] == metadata["sparsity_coef"]
    assert [w for w in gated["warnings"] if w in metadata["warnings"]] == metadata["warnings"]


def test_the_settings_on_disk_are_decided_and_give_the_same_run_again(
    swept: tuple[Path, list[dict[str, Any]]], tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    folder, records = swept
    config = read_config(folder)
    assert config.data.context == 32
    assert all(sae.lr is not None and sae.resample_at is not None for sae in config.saes)
    asked = config_from_file(folder)
    assert asked == config_from_file(folder / "config.json")
    assert asked.resolve(tiny_lm) == config
    again = sweep.run_sweep(config, tmp_path / "again")
    for name in (GATED, RELU):
        weights = [(run / "saes" / name / "sae.safetensors").read_bytes() for run in (folder, tmp_path / "again")]
        assert weights[0] == weights[1]
    unlike = [key for one, two in zip(records, again, strict=True) for key in one if one[key] != two[key]]
    assert set(unlike) == {"train_seconds"}


def test_a_sweep_leaves_threads_and_memory_as_they_were(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(sweep, "evaluate_run", lambda *_: seen.append(torch.get_num_threads()) or [])
    before = torch.get_num_threads()
    sweep.run_sweep(tiny_run(steps=20, threads=before + 1), tmp_path / "run")
    assert seen == [before + 1] and torch.get_num_threads() == before
    assert buffers._arrays.most_in_use == 0, "released after the last step"


def test_the_environment_says_what_a_result_depends_on(
    swept: tuple[Path, list[dict[str, Any]]], tiny_lm: LanguageModel, tiny_run: MakeRun, tmp_path: Path
) -> None:
    environment = json.loads((swept[0] / "environment.json").read_text())
    assert environment["torch"] == version("torch")
    assert environment["threads"] == 1
    assert environment["device"] == "cpu"
    assert {"penstock", "python", "transformers", "platform", "cpu", "git_commit", "started", "command"} <= {
        *environment
    }
    sweep.prepare(tiny_run(threads=7), tmp_path / "run", tiny_lm)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["threads"] == 7


def test_a_run_can_be_evaluated_again_with_the_same_numbers(
    swept: tuple[Path, list[dict[str, Any]]], tiny_lm: LanguageModel
) -> None:
    folder, records = swept
    assert evaluate_run(folder, tiny_lm) == records


def test_saved_saes_are_evaluated_on_their_own_model_and_text(
    swept: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, records = swept
    settings = read_config(folder).eval
    again = evaluate_saes([folder / "saes" / RELU, folder / "saes" / GATED], settings)
    expected = {record["name"]: record for record in records}
    assert again == [expected[RELU], expected[GATED]]


def test_saes_of_the_same_name_are_kept_apart(swept: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    folder, records = swept
    original = folder / "saes" / RELU
    sae, facts = load_sae(original)
    with torch.no_grad():
        sae.get_parameter("b_dec").add_(1.0)
    save_sae(sae, tmp_path / "changed", facts.metadata)
    settings = read_config(folder).eval
    one, two = evaluate_saes([original, tmp_path / "changed"], settings)
    assert one == next(record for record in records if record["name"] == RELU)
    assert two["name"] == str(tmp_path / "changed")
    assert two["fvu"] > one["fvu"]


def test_an_sae_of_another_width_than_the_models_site_is_an_error(
    swept: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    metadata = load_sae(swept[0] / "saes" / RELU).metadata
    save_sae(GatedSAE(17, 20), tmp_path / "wide", metadata | {"name": "wide"})
    with pytest.raises(ValueError, match="wide takes activations of width 17, but resid_post.1 .* has width 16"):
        evaluate_saes([tmp_path / "wide"], EvalConfig(eval_tokens=50))


def test_an_sae_that_does_not_say_its_site_or_model_is_an_error(
    swept: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    metadata = load_sae(swept[0] / "saes" / RELU).metadata
    for key, expected in (
        ("site", "does not name the site that the SAE was trained on"),
        ("model", "do not say which model they were trained on. Give it with --model"),
        ("text", "do not say which text they were trained on. Give it with --text"),
    ):
        partly = {name: value for name, value in metadata.items() if name != key}
        save_sae(GatedSAE(16, 20), tmp_path / key, partly)
        with pytest.raises(ValueError, match=expected):
            evaluate_saes([tmp_path / key], EvalConfig(eval_tokens=50))


def test_saes_of_different_models_are_not_evaluated_together(
    swept: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    metadata = load_sae(swept[0] / "saes" / RELU).metadata
    save_sae(GatedSAE(16, 20), tmp_path / "other", metadata | {"model": "gpt2"})
    with pytest.raises(ValueError, match="differ in their model: .*, gpt2. .* give one for all with --model"):
        evaluate_saes([swept[0] / "saes" / RELU, tmp_path / "other"], EvalConfig())


def test_the_column_and_packing_of_a_text_are_remembered(
    tiny_run: MakeRun, tiny_lm: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    texts = [document.text for split in get_args(Split) for document in documents(corpus, split=split)]
    body = write_corpus(tmp_path / "body.jsonl", texts, field="body")
    config = tiny_run(steps=10)
    data = replace(config.data, text=str(body), text_field="body", packing="truncated")
    records = sweep.run_sweep(replace(config, data=data, checkpoint_steps=None), tmp_path / "run")
    again = evaluate_saes([tmp_path / "run" / "saes" / RELU], config.eval)
    assert again == [record for record in records if record["name"] == RELU]


def test_a_directory_that_holds_a_run_is_not_run_over(
    swept: tuple[Path, list[dict[str, Any]]], tiny_run: MakeRun, tiny_lm: LanguageModel
) -> None:
    folder, _ = swept
    before = (folder / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match="already holds a run. Continue it with: .*first, or choose another"):
        sweep.prepare(tiny_run(steps=30), folder, tiny_lm)
    assert (folder / "config.json").read_bytes() == before


def test_where_there_is_no_run_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json does not exist.*Start one with penstock"):
        read_config(tmp_path)


BAD_TEXTS = {
    "empty file": ([], "No documents in split 'train'"),
    "no held-out document": (["a" * 40], "No documents in split 'held_out'"),
    "one token each": (list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"), "one token each"),
}


@pytest.mark.parametrize("texts", BAD_TEXTS)
@pytest.mark.parametrize("cached", [False, True])
def test_a_text_that_will_not_do_fails_before_there_is_a_run(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path, texts: str, cached: bool
) -> None:
    lines, expected = BAD_TEXTS[texts]
    path = write_corpus(tmp_path / "text.jsonl", lines)
    config = tiny_run(cached=cached)
    with pytest.raises(ValueError, match=expected):
        sweep.prepare(replace(config, data=replace(config.data, text=str(path))), tmp_path / "run", tiny_lm)
    assert not (tmp_path / "run").exists()


def test_settings_that_do_not_fit_the_model_fail_before_there_is_a_run(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    config = tiny_run()
    wrong_site = replace(config, saes=(replace(config.saes[0], site="resid_post.2"),))
    with pytest.raises(ValueError, match=r"(?s)resid_post\.2.*resid_post\.1"):
        sweep.prepare(wrong_site, tmp_path / "run", tiny_lm)
    assert not (tmp_path / "run").exists()


def test_a_dtype_that_does_not_exist_lists_those_that_do(tiny_lm_folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16; got 'float8'"):
        load_language_model(LanguageModelConfig(model=str(tiny_lm_folder), dtype="float8"))


def test_a_text_that_does_not_exist_is_an_error(tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    config = tiny_run(data=DataConfig(text=str(tmp_path / "none.jsonl"), buffer_tokens=512))
    with pytest.raises(FileNotFoundError, match="No text source .*none.jsonl"):
        sweep.prepare(config, tmp_path / "run", tiny_lm)


def test_a_directory_that_cannot_be_made_is_an_error_with_the_remedy(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="run cannot be the run.s directory: .*file is a file. Choose another --out"):
        sweep.prepare(tiny_run(), tmp_path / "file" / "run", tiny_lm)


def test_a_read_only_disk_is_an_error_with_the_remedy(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"Cannot mount a read-only file system ({mounted.stderr.strip()}); un-skip where we are root.")
    try:
        with pytest.raises(OSError, match="cannot be written, because .*disk is read-only or belongs.* --out below"):
            sweep.prepare(tiny_run(), disk / "run", tiny_lm)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_half_a_directory_from_a_full_disk_is_not_a_run(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot be written: No space left on device. Make room"):
        sweep.prepare(tiny_run(), tmp_path / "run", tiny_lm)
    monkeypatch.undo()
    sweep.prepare(tiny_run(), tmp_path / "run", tiny_lm)
    assert read_config(tmp_path / "run").num_steps == 60
