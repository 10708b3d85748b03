"""A finished run that the studies look at."""

from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.studies.finished_run import FinishedRun
from penstock.studies.sweep import run_sweep
from penstock.training.config import ResamplingConfig, RunConfig, SAEConfig


def sae(arch: str, seed: int, target_l0: float = 3.0) -> SAEConfig:
    return SAEConfig(arch=arch, site="resid_post.0", d_sae=32, target_l0=target_l0, seed=seed, name=f"{arch}{seed}")


@pytest.fixture(scope="session")
def run_folder(tiny_run: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms with two seeds each, trained for a moment and evaluated; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    saes = [sae(arch, seed) for arch in ("gated", "relu") for seed in (0, 1)]
    resampling = ResamplingConfig(window_tokens=64)  # none of them resamples
    run_sweep(tiny_run(*saes, steps=120, cached=True, resampling=resampling), folder)
    return folder


@pytest.fixture(scope="session")
def finished(run_folder: Path) -> FinishedRun:
    return FinishedRun.load(run_folder)
