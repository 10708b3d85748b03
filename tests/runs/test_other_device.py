"""A run that goes on, is measured or is repeated on another machine than the one with a GPU where it was made.

Its config.json says cuda, which this machine does not have.
"""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.language_models.loading import LanguageModel
from penstock.runs.finished_run import FinishedRun
from penstock.runs.sweep import prepare, prepare_once, read_config, train
from penstock.training.settings import LanguageModelConfig, RunConfig

MakeRun = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


def of_a_gpu(run: Path) -> Path:
    """Rewrite config.json as a machine with a GPU writes it."""
    path = run / "config.json"
    settings = json.loads(path.read_text())
    settings["language_model"]["device"] = "cuda:0"
    settings["optim"]["encoder_precision"] = "bfloat16"
    path.write_text(json.dumps(settings))
    return run


@pytest.fixture
def made_elsewhere(run_folder: Path, tmp_path: Path) -> Path:
    return of_a_gpu(Path(shutil.copytree(run_folder, tmp_path / "run")))


@pytest.fixture
def begun_elsewhere(tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path) -> Path:
    prepare(tiny_run(), tmp_path / "begun", tiny_lm)
    return of_a_gpu(tmp_path / "begun")


def test_it_is_evaluated_on_the_cpu_with_a_warning(
    made_elsewhere: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (made_elsewhere / "records.jsonl").read_text()
    (made_elsewhere / "records.jsonl").unlink()
    assert main(["eval", str(made_elsewhere)]) == 0
    assert "cuda:0, which the run was made on, is not available here" in caplog.text + capsys.readouterr().err
    assert (made_elsewhere / "records.jsonl").read_text() == before


@pytest.mark.parametrize("device", [[], ["--device", "cpu"]])
def test_it_is_studied_on_the_cpu(
    made_elsewhere: Path, device: list[str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "cost", str(made_elsewhere), "--repeats", "1", *device]) == 0
    warned = "cuda:0, which the run was made on, is not available here" in caplog.text + capsys.readouterr().err
    assert warned == (not device)
    assert (made_elsewhere / "studies" / "cost" / "records.jsonl").exists()


def test_a_finished_run_is_on_one_device(made_elsewhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        finished = FinishedRun.load(made_elsewhere)
    assert finished.config.language_model.device == str(finished.model.device) == "cpu"
    assert all(sae.W_dec.device.type == "cpu" for sae in finished.saes.values())


def test_it_is_not_resumed_on_the_cpu_unasked(begun_elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(begun_elsewhere)]) == 2
    assert "device='cuda:0' is not available here" in (told := capsys.readouterr().err.replace("\n", " "))
    assert "--device cpu" in told


def test_it_is_resumed_on_the_device_that_is_asked_for(begun_elsewhere: Path) -> None:
    assert main(["train", "--resume", str(begun_elsewhere), "--device", "cpu"]) == 0
    assert (begun_elsewhere / "report.html").exists()
    # What it was begun with stays in its settings.
    assert read_config(begun_elsewhere).language_model.device == "cuda:0"


def test_a_caller_resumes_it_where_the_model_is_loaded(begun_elsewhere: Path, tiny_lm: LanguageModel) -> None:
    train(begun_elsewhere, tiny_lm)
    assert len(list((begun_elsewhere / "saes").glob("*/sae.safetensors"))) == 2


def test_its_settings_are_repeated_on_another_device(made_elsewhere: Path, tmp_path: Path) -> None:
    again = ["train", "--from", str(made_elsewhere), "--out", str(tmp_path / "again")]
    assert main(again) == 2
    assert main([*again, "--device", "cpu"]) == 0
    assert read_config(tmp_path / "again").language_model.device == "cpu"


def test_the_command_that_began_it_goes_on_elsewhere(
    begun_elsewhere: Path, tiny_run: MakeRun, tiny_lm: LanguageModel
) -> None:
    """Number of threads, precision and device of the machine are no other settings; what the user says is."""
    asked = replace(tiny_run(), threads=None)
    prepare_once(asked, begun_elsewhere, tiny_lm)
    for other in (
        replace(asked, threads=3),
        replace(asked, optim=replace(asked.optim, encoder_precision="float32")),
        replace(asked, language_model=LanguageModelConfig(model="embedded")),
    ):
        with pytest.raises(ValueError, match="holds a run with other settings"):
            prepare_once(other, begun_elsewhere, tiny_lm)
