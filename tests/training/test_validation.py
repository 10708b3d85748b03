"""L0 is steered on text that a run sets aside for validation."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.activations.harvest import fill_cache
from penstock.language_models.loading import LanguageModel
from penstock.language_models.texts import documents
from penstock.training.batches import training_stream, validation_cache
from penstock.training.run import TrainingRun
from penstock.training.settings import ResamplingConfig, RunConfig, SAEConfig

MakeRun = Callable[..., RunConfig]

SITE = "resid_post.0"


def test_l0_is_steered_on_text_that_is_set_aside(tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    config = tiny_run().resolve(tiny_lm)
    run = TrainingRun.begin(config, tmp_path, tiny_lm)
    assert run.validation is not None and run.validation.num_tokens > 50
    trained = {tuple(row.tolist()) for row in fill_cache(training_stream(config, tiny_lm), 10**6, seed=0).acts[SITE]}
    set_aside = {tuple(row.tolist()) for row in run.validation.acts[SITE]}
    # Tokens near the start of a row may have the same few tokens before them by chance.
    assert len(set_aside & trained) < 0.1 * len(set_aside)
    for _ in range(10):
        run._step()
    gated, relu = run.trainers
    assert gated.controller is not None and gated.controller.comparisons == 7  # from the end of the warm-up on
    assert relu.controller is None


def test_without_validation_text_l0_is_steered_on_the_training_tokens(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [document.text for document in documents(tiny_run().data.text, split="train")]
    held_out = [document.text for document in documents(tiny_run().data.text, split="held_out")]
    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows + held_out))
    config = tiny_run()
    config = replace(config, data=replace(config.data, text=str(short))).resolve(tiny_lm)
    with caplog.at_level(logging.WARNING):
        run = TrainingRun.begin(config, tmp_path, tiny_lm)
    assert f"{short} is too short for a validation split" in caplog.text
    assert run.validation is None
    run._step()


def test_a_run_without_target_sets_nothing_aside(tiny_run: MakeRun, tiny_lm: LanguageModel) -> None:
    relu = SAEConfig(arch="relu", site="resid_post.1", d_sae=32, sparsity_coef=0.6)
    resampling = ResamplingConfig(window_tokens=64)
    assert validation_cache(tiny_run(relu, resampling=resampling).resolve(tiny_lm), tiny_lm) is None
